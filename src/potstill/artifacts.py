"""Students as artifacts of wandb runs, with the teachers that they came of: who learnt from whom, as a graph."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

log = logging.getLogger(__name__)

KIND = "model"
_LONGEST = 128  # characters of an artifact's name, by wandb's rule


def log_student(
    loggers: Sequence[Logger],
    folder: Path,
    teachers: Sequence[str],
    metadata: dict[str, Any],
    limit_mb: float,
) -> None:
    """Make the student an artifact of the wandb run, and note the teachers as what the run used.

    Files are not copied: an offline run is synchronised from the student's own folder, which has to stay.

    Args:
        loggers: of the run; those of other kinds have no artifacts.
        folder: the saved student.
        teachers: folders or hub ids. The student of another run is the very artifact that that run logged.
        metadata: figures beside the student's artifact.
        limit_mb: in 10^6 bytes; a larger student is no artifact, a larger teacher a reference to its place. 0: none.
    """
    for logger in loggers:
        if not isinstance(logger, WandbLogger) or logger.experiment.disabled:
            continue
        run = logger.experiment
        if size_mb(folder) > limit_mb:
            if limit_mb:
                log.info("%s: above logger.artifact_mb=%g, so no artifact", folder, limit_mb)
            continue
        import wandb

        try:
            _log(run, folder, teachers, metadata, limit_mb)
        except (
            wandb.errors.Error,
            OSError,
            ValueError,
        ) as fault:  # the student is on the disk: the run is none the worse
            log.warning("%s is no artifact: %s", folder, str(fault).splitlines()[0])


def _log(run: Any, folder: Path, teachers: Sequence[str], metadata: dict[str, Any], limit_mb: float) -> None:
    for teacher in teachers:
        used = _artifact(teacher, limit_mb, {"source": teacher})
        if run.offline:
            # `use_artifact` refuses offline, though the record that `wandb sync` hands on is this one.
            run._log_artifact(used, use_after_commit=True)
        else:
            run.use_artifact(used)
    run.log_artifact(_artifact(str(folder), limit_mb, {**metadata, "teachers": list(teachers)}))


def size_mb(folder: Path) -> float:
    """Size of all files in a folder, in 10^6 bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def artifact_name(model: str) -> str:
    """What a model's artifact is called: by the wandb run that made it, else by the last two parts of its place.

    Args:
        model: a folder or hub id.
    """
    remembered = Path(model).parent / "wandb_id"
    if Path(model).name == "student" and remembered.is_file():
        return f"student-{remembered.read_text().strip()}"
    return re.sub(r"[^\w.-]+", "-", "-".join(Path(model).parts[-2:]), flags=re.ASCII).strip("-")[-_LONGEST:]


def _artifact(model: str, limit_mb: float, metadata: dict[str, Any]) -> Any:
    """Of a folder's files, or, where these are many or on the hub, of their place."""
    import wandb

    artifact, folder = wandb.Artifact(artifact_name(model), type=KIND, metadata=metadata), Path(model)
    if not folder.is_dir():
        artifact.add_reference(f"https://huggingface.co/{model}", name="hub", checksum=False)
    elif size_mb(folder) > limit_mb:
        artifact.add_reference(folder.absolute().as_uri(), name="folder", checksum=False)
    else:
        for path in sorted(folder.absolute().rglob("*")):  # `add_dir` tells the terminal of each folder
            if path.is_file():
                name = path.relative_to(folder.absolute()).as_posix()
                artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
    return artifact
