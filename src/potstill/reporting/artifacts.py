"""Students as artifacts of wandb runs, with the teachers that they came of: who learnt from whom, as a graph."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from potstill.runtime.redaction import redacted

log = logging.getLogger(__name__)

KIND = "model"
# Weights, configurations and vocabularies, by the names that transformers gives them.
_SAVED = re.compile(
    r"(model|pytorch_model|adapter_model)([.-][\w-]+)*\.(safetensors|bin)(\.index\.json)?"
    r"|((generation|tokenizer|adapter|processor|preprocessor)_)?config\.json|tokenizer\.json|chat_template\.(jinja|json)"
    r"|(special_tokens_map|added_tokens|vocab)\.json|vocab\.txt|merges\.txt"
    r"|(spiece|sentencepiece|sentencepiece\.bpe|tokenizer|spm)\.model"
)
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
        if size_mb(model_files(folder, card=True)) > limit_mb:
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
        used = _artifact(teacher, limit_mb, redacted({"source": teacher}))
        if run.offline:
            # `use_artifact` refuses offline, though the record that `wandb sync` hands on is this one.
            run._log_artifact(used, use_after_commit=True)
        else:
            run.use_artifact(used)
    own = redacted({**metadata, "teachers": list(teachers)})
    run.log_artifact(_artifact(str(folder), limit_mb, own, card=True))


def model_files(folder: Path, *, card: bool = False) -> list[Path]:
    """What `save_pretrained` writes into a folder, and into a student's folder of each task.

    Hidden files, files of other names and whatever a link leads to outside of the folder are left out.

    Args:
        folder: of a model.
        card: whether README.md counts, as in a student's folder.
    """
    root = folder.resolve()
    parts = [folder, *(inner for inner in sorted(folder.iterdir()) if (inner / "config.json").is_file())]
    return [
        path
        for part in parts
        if not part.name.startswith(".") or part == folder
        for path in sorted(part.iterdir())
        if (_SAVED.fullmatch(path.name) or (card and path.name == "README.md"))
        and path.is_file()
        and path.resolve().is_relative_to(root)
    ]


def size_mb(files: Sequence[Path]) -> float:
    """Size of files, in 10^6 bytes."""
    return sum(path.stat().st_size for path in files) / 1e6


def artifact_name(model: str) -> str:
    """What a model's artifact is called: by the wandb run that made it, else by the last two parts of its place.

    Args:
        model: a folder or hub id.
    """
    remembered = Path(model).parent / "wandb_id"
    if Path(model).name == "student" and remembered.is_file():
        return f"student-{remembered.read_text().strip()}"
    return re.sub(r"[^\w.-]+", "-", "-".join(Path(model).parts[-2:]), flags=re.ASCII).strip("-")[-_LONGEST:]


def _artifact(model: str, limit_mb: float, metadata: dict[str, Any], *, card: bool = False) -> Any:
    """Of a folder's files, or, where these are many or on the hub, of their place."""
    import wandb

    artifact, folder = wandb.Artifact(artifact_name(model), type=KIND, metadata=metadata), Path(model)
    if not folder.is_dir():
        artifact.add_reference(f"https://huggingface.co/{model}", name="hub", checksum=False)
        return artifact
    folder = folder.absolute()
    files = model_files(folder, card=card)
    large = size_mb(files) > limit_mb
    for path in files:
        name = path.relative_to(folder).as_posix()
        if large:
            artifact.add_reference(path.as_uri(), name=name, checksum=False)
        else:
            artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
    return artifact
