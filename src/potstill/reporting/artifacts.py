"""Students as artifacts of wandb runs, with their teachers as inputs."""

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
# Weights, configurations and vocabularies, by their file names in transformers.
_SAVED = re.compile(
    r"(model|pytorch_model|adapter_model)([.-][\w-]+)*\.(safetensors|bin)(\.index\.json)?"
    r"|((generation|tokenizer|adapter|processor|preprocessor)_)?config\.json|tokenizer\.json|chat_template\.(jinja|json)"
    r"|(special_tokens_map|added_tokens|vocab)\.json|vocab\.txt|merges\.txt"
    r"|(spiece|sentencepiece|sentencepiece\.bpe|tokenizer|spm)\.model"
)
MAX_NAME = 128  # characters of an artifact's name; a limit of wandb


def log_student(
    loggers: Sequence[Logger], folder: Path, teachers: Sequence[str], metadata: dict[str, Any], limit_mb: float
) -> None:
    """Log the student as an artifact of the wandb run, and the teachers as its inputs.

    Files are not copied: an offline run is synchronized from the student's folder, which has to be kept.

    Args:
        loggers: of the run; others than wandb's are ignored.
        folder: the saved student.
        teachers: folders or hub ids; a student of another run is the artifact of that run.
        metadata: of the student's artifact.
        limit_mb: in 10^6 bytes; a larger student is not logged, a larger teacher is a reference to its files. 0: off.
    """
    for logger in loggers:
        if not isinstance(logger, WandbLogger) or logger.experiment.disabled:
            continue
        run = logger.experiment
        if size_mb(model_files(folder, card=True)) > limit_mb:
            if limit_mb:
                log.info("%s: not logged as an artifact, larger than logger.artifact_mb=%g", folder, limit_mb)
            continue
        import wandb

        try:
            _log(run, folder, teachers, metadata, limit_mb)
        except (wandb.errors.Error, OSError, ValueError) as error:  # the student is saved already
            log.warning("%s: not logged as an artifact (%s)", folder, str(error).splitlines()[0])


def _log(run: Any, folder: Path, teachers: Sequence[str], metadata: dict[str, Any], limit_mb: float) -> None:
    for teacher in teachers:
        used = _artifact(teacher, limit_mb, redacted({"source": teacher}))
        if run.offline:
            # `use_artifact` raises offline, though `wandb sync` uploads this record.
            run._log_artifact(used, use_after_commit=True)
        else:
            run.use_artifact(used)
    own = redacted({**metadata, "teachers": list(teachers)})
    run.log_artifact(_artifact(str(folder), limit_mb, own, card=True))


def model_files(folder: Path, *, card: bool = False) -> list[Path]:
    """Files that `save_pretrained` writes into a model folder, and into its subfolders of several tasks.

    Hidden and other files, and links to files outside of the folder, are left out.

    Args:
        folder: of a model.
        card: whether to include README.md.
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
    """Size of files in 10^6 bytes."""
    return sum(path.stat().st_size for path in files) / 1e6


def artifact_name(model: str) -> str:
    """Name of a model's artifact: by the wandb run that trained it, otherwise by the last two parts of its path.

    Args:
        model: a folder or hub id.
    """
    run_id = Path(model).parent / "wandb_id"
    if Path(model).name == "student" and run_id.is_file():
        return f"student-{run_id.read_text().strip()}"
    return re.sub(r"[^\w.-]+", "-", "-".join(Path(model).parts[-2:]), flags=re.ASCII).strip("-")[-MAX_NAME:]


def _artifact(model: str, limit_mb: float, metadata: dict[str, Any], *, card: bool = False) -> Any:
    """An artifact of a folder's files, or a reference to a hub id or to files above the limit."""
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
