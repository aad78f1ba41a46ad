"""The identity of a run: a table of keys that may change on resuming, and the comparison of two runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from potstill.config import TrainConfig
from potstill.config.typed import as_written

# Keys and sections that change no result, or change it by rounding alone.
NEUTRAL = (
    "logger", "checkpoint", "resume", "ckpt_path", "overwrite", "doctor", "stage", "stages", "generation", "trial",
    "compile", "trainer.enable_progress_bar", "trainer.log_every_n_steps", "trainer.accelerator", "trainer.devices",
    "trainer.num_nodes", "trainer.strategy", "data.cache", "data.engine", "data.num_proc", "data.num_workers",
    "teacher.cache.folder", "teacher.attention", "student.attention", "student.checkpointing",
    "objective.gradient_shares_every",
)  # fmt: skip
# Keys and sections whose value on the command line is in force from the first resumed step on.
CHANGEABLE = (
    "optimizer", "schedule", "callbacks", "trainer.max_steps", "trainer.max_epochs", "trainer.gradient_clip_val",
    "trainer.nonfinite", "trainer.precision", "trainer.val_check_interval",
)  # fmt: skip
# Of the sections above, what has to be as it was. Whatever is in neither list has to be, too.
FIXED = ("optimizer._target_", "optimizer.layer_decay")
# Their product has to be as it was: the sequences (tokens, with data.max_tokens) of an optimizer step.
STEP = ("data.batch_size", "data.max_tokens", "trainer.accumulate_grad_batches")
WORLD = ("trainer.devices", "trainer.num_nodes")

# The last parts of keys whose value may be a file or folder, which may have moved.
_PLACES = {
    "file", "files", "folder", "train_files", "eval_files", "test_files", "train_file", "eval_file", "test_file",
    "more_train_files", "tokenizer", "model", "models", "teacher", "rationales", "mapping", "pickle", "token_counts",
}  # fmt: skip
_MODEL_FILES = ("config.json", "tokenizer.json", "vocab.txt", "*.safetensors", "*.bin", "*.gguf")
_BLOCKS, _BLOCK_BYTES = 64, 1 << 16
_MOST_LISTED = 10_000


def within(key: str, sections: tuple[str, ...]) -> bool:
    """Whether a key is one of `sections`, or in one of them."""
    return any(f"{key}.".startswith(f"{section}.") for section in sections)


def identity_of(config: TrainConfig, world: int) -> dict[str, Any]:
    """The identity of a run that its checkpoints record, as primitives.

    Args:
        config: of the run.
        world: number of its processes.
    """
    given = dict(_leaves(asdict(config)))
    places = {key: found for key, value in given.items() if _counts(key) and (found := _places(key, value))}
    settings = {key: value for key, value in _leaves(as_written(config)) if _counts(key)}  # without secrets
    cache = config.teacher.cache
    if cache.replaces_teacher and cache.folder is not None and config.teacher.model is None:
        settings["teacher.cache.folder"] = cache.folder
        places["teacher.cache.folder"] = [_place(f"{cache.folder}/train/index.json")]
    return {"settings": settings, "places": places, "world": world, "defaults": sorted(_at_default(config))}


def _at_default(section: Any, prefix: str = "") -> Iterator[str]:
    """The keys that have the default of their schema."""
    for own in fields(section):
        key, value = f"{prefix}{own.name}", getattr(section, own.name)
        default = own.default if own.default_factory is MISSING else own.default_factory()
        if is_dataclass(value):
            yield from _at_default(value, f"{key}.")
        elif value == default:
            yield key


def _counts(key: str) -> bool:
    return not within(key, NEUTRAL) or key in WORLD


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys that differ and matter, with the value of the checkpoint's run and that of this one.

    A key that the checkpoint's version did not have yet does not matter at its default.

    Args:
        saved: `identity_of` the checkpoint's run.
        now: of this run.
    """
    before, here, new = saved["settings"], now["settings"], now["defaults"]
    return {
        key: (before.get(key), here.get(key))
        for key in dict.fromkeys([*here, *before])
        if key not in (*STEP, *WORLD) and not _same(key, saved, now) and (key in before or key not in new)
    } | _step_differences(saved, now)


def resume_problems(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys of a configuration that contradict the checkpoint that the run is resumed from.

    Args:
        saved: `identity_of` the checkpoint's run.
        now: of this run.
    """
    problems = []
    for key, (before, value) in differences(saved, now).items():
        if within(key, CHANGEABLE) and not within(key, FIXED):
            continue
        if before == value:  # of files, whose contents differ
            problems.append(f"{key}={shown(value)}: its contents are not those that the checkpoint was made with")
        else:
            problems.append(f"{key}={shown(value)}: the checkpoint was made with {shown(before)}")
    return problems


def _step_differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    if _step_size(saved) == _step_size(now):
        return {}
    before, here = saved["settings"], now["settings"]
    found = {key: (before.get(key), here.get(key)) for key in STEP if before.get(key) != here.get(key)}
    if saved["world"] != now["world"]:
        found[WORLD[0]] = (saved["world"], now["world"])
    return found


def _step_size(run: Mapping[str, Any]) -> tuple[str, int]:
    settings = run["settings"]
    unit = "data.max_tokens" if settings.get("data.max_tokens") else "data.batch_size"
    return unit, settings[unit] * settings["trainer.accumulate_grad_batches"] * run["world"]


def _same(key: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    before, here = saved["places"].get(key), now["places"].get(key)
    if not before or not here or len(before) != len(here):
        return bool(saved["settings"].get(key) == now["settings"].get(key))
    return all(_same_place(one, other) for one, other in zip(before, here, strict=True))


def _same_place(before: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """By contents where both have been read, otherwise by path, or by the names and sizes of a moved folder's files."""
    if before["contents"] and here["contents"]:
        return bool(before["contents"] == here["contents"])
    return bool(before["path"] == here["path"] or (before["files"] and before["files"] == here["files"]))


def _places(key: str, value: Any) -> list[dict[str, Any]]:
    """The identity of each file or folder that a key names; empty for any other value."""
    if key.rpartition(".")[2] not in _PLACES:
        return []
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name for name in names):
        return []
    return [_place(name) for name in names]


def _place(name: str) -> dict[str, Any]:
    path = Path(name).expanduser()
    known: dict[str, Any] = {"path": name, "contents": None, "files": None}
    try:
        if path.is_file():
            known |= {"path": str(path.resolve()), "contents": _digest([path])}
        elif path.is_dir():
            known["path"] = str(path.resolve())
            if (path / "config.json").is_file() or any(path.glob("*.gguf")):
                known["contents"] = _digest(sorted(file for glob in _MODEL_FILES for file in path.glob(glob)))
            else:
                known["files"] = _listing(path)
    except (OSError, ValueError):  # what cannot be read is rejected by what reads it
        pass
    return known


def _digest(files: list[Path]) -> str:
    """Digest of the sizes and contents of files; of a large file, blocks spread over it are read."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            digest.update(size.to_bytes(8, "little"))
            step = max(_BLOCK_BYTES, size // _BLOCKS)
            for start in range(0, size, step):
                file.seek(start)
                digest.update(file.read(_BLOCK_BYTES))
            file.seek(max(size - _BLOCK_BYTES, 0))
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _listing(folder: Path) -> str | None:
    """Digest of the names and sizes of a folder's files; None where there are very many."""
    digest = hashlib.sha256()
    files = [path for path, _ in zip(folder.rglob("*"), range(_MOST_LISTED + 1), strict=False)]
    if len(files) > _MOST_LISTED:
        return None
    for path in sorted(file for file in files if file.is_file()):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values of nested dictionaries, and of lists of these; other lists are values."""
    entries = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, inner in entries:
        nested = isinstance(inner, Mapping) or (
            isinstance(inner, list) and inner and all(isinstance(one, Mapping) for one in inner)
        )
        if nested and inner:
            yield from _leaves(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def shown(value: Any) -> str:
    """A value as it is written in a configuration."""
    return "null" if value is None else str(value)
