"""The output folder of a run: one command at a time may write it, and only into folders of this package.

Hydra writes its record before it calls the job, so a folder is claimed by a Hydra callback, and the record goes to
`.hydra.new` until the run begins. No torch.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import logging
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import OmegaConf, read_write

from potstill.errors import ConfigError
from potstill.runtime.atomic import write_whole
from potstill.runtime.json_text import json_text, read_json
from potstill.runtime.process import is_first_rank
from potstill.validation.generation import REPEATED

MARK = ".potstill.json"  # names the command that wrote the folder
LOCK = ".potstill.lock"
RECORD, STAGED = ".hydra", ".hydra.new"
TRAIN, EVALUATE, PIPELINE = "train", "evaluate", "recipe"
DOCTOR, SWEEP = "doctor", "sweep"
# Content without MARK that is not the user's: of a command that was rejected or killed early, or of a copied run.
_HARMLESS = (RECORD, STAGED, LOCK, "*.log", "wandb", "checkpoints")
# Results of a run; not wandb/, which may still have to be uploaded, and not the log, which is appended to.
_RESULTS = (
    "summary.json", "config.yaml", "report.html", "metrics.csv", "student", "checkpoints", "wandb_id", "error.txt",
    "tensorboard", "predictions*", "submission*", "export", "sweep.csv", "glue.csv", "share.csv", "stages.yaml",
)  # fmt: skip
_DONE = "summary.json"
_LAST = Path("checkpoints") / "last.ckpt"

log = logging.getLogger(__name__)


class RejectedFolder(BaseException):
    """A folder that a command must not write; not an Exception, as Hydra turns those of callbacks into warnings."""

    def __init__(self, error: Exception):
        super().__init__(str(error))
        self.error = error


class ClaimFolder(Callback):
    """Claims the output folder before Hydra writes into it."""

    def on_run_start(self, config: Any, **_: Any) -> None:
        """Claim the folder of a single run; only the first rank writes a record."""
        HydraConfig.instance().set_config(config)
        if not is_first_rank():
            with read_write(config.hydra):
                config.hydra.output_subdir = None
            return
        _claim_or_reject(Path(str(config.hydra.run.dir)), kind_of(config), config)

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Claim the folder of a sweep; each job claims its own."""
        HydraConfig.instance().set_config(config)
        folder = Path(str(config.hydra.sweep.dir))
        _claim_or_reject(folder, SWEEP, config)
        with suppress(OSError):  # reported by the first job
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / MARK, json_text({"command": SWEEP}) + "\n")


def _claim_or_reject(folder: Path, kind: str, config: Any) -> None:
    try:
        claim(folder, kind, config)
    except (ConfigError, OSError) as error:
        raise RejectedFolder(error) from None


def kind_of(config: Any) -> str:
    """The kind of command that a configuration belongs to."""
    if "objective" not in config:
        return EVALUATE
    if config.stages:
        return PIPELINE
    if config.doctor:
        return DOCTOR
    return config.stage if config.stage in REPEATED else TRAIN


class _Claim:
    def __init__(self, lock: FileLock, kind: str, digest: str):
        self.lock, self.mark, self.begun = lock, {"command": kind, "config": digest}, False


_claims: dict[Path, _Claim] = {}  # of this process


def claim(folder: Path, kind: str, config: Any) -> None:
    """Lock a folder for a command until `release` or the end of this process.

    Args:
        folder: output folder; may be missing.
        kind: of the command.
        config: of the command.

    Raises:
        ConfigError: it holds files of the user or results that would be replaced, or another command is running in it.
    """
    folder = folder.absolute()
    if folder in _claims or (folder.exists() and not folder.is_dir()):
        return  # a file is rejected when the folder is created
    if not _is_ours(folder):
        raise ConfigError(f"hydra.run.dir={folder}: holds files that are not of a run; name a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"hydra.run.dir={folder}: another command is running in it; use another folder or wait"
        ) from None
    except NotImplementedError:
        log.warning("%s: the file system has no locks; run one command at a time", folder)
    found = _Claim(lock, kind, _digest(config))
    try:
        _check_results(folder, found, config)
    except ConfigError:
        lock.release()
        raise
    _claims[folder] = found


def begin(folder: Path, *, anew: bool) -> None:
    """Start the run: its record replaces that of the last run.

    Args:
        folder: of the run; nothing happens if this process has not claimed it.
        anew: whether the results of an earlier run are removed; otherwise only its summary.json is.
    """
    found = _claims.get(folder.absolute())
    if found is None:
        return
    if (folder / MARK).is_file():
        for entry in list(folder.iterdir()):
            if entry.name == _DONE or (anew and _is_named(entry.name, _RESULTS)):
                _remove(entry)
    for partial in folder.glob(".student.*.*"):  # of a process that was killed
        _remove(partial)
    write_whole(folder / MARK, json_text(found.mark) + "\n")
    _publish(folder)
    found.begun = True


def release(folder: Path) -> None:
    """Unlock a folder; the record of a command that did not begin is kept only in folders without another run."""
    folder = folder.absolute()
    found = _claims.pop(folder, None)
    if found is None:
        if is_first_rank():  # a job of a sweep that was rejected
            shutil.rmtree(folder / STAGED, ignore_errors=True)
        return
    if not found.begun:
        if (folder / MARK).is_file():
            shutil.rmtree(folder / STAGED, ignore_errors=True)
        else:
            _publish(folder)
    found.lock.release()


def _publish(folder: Path) -> None:
    if (folder / STAGED).is_dir():
        shutil.rmtree(folder / RECORD, ignore_errors=True)
        (folder / STAGED).rename(folder / RECORD)


def is_claimed(folder: Path) -> bool:
    """Whether this process has claimed a folder."""
    return folder.absolute() in _claims


def is_untouched(folder: Path) -> bool:
    """Whether a folder holds nothing but the record of a rejected command."""
    return folder.is_dir() and all(_is_named(entry.name, (RECORD, STAGED, LOCK, "*.log")) for entry in folder.iterdir())


def _is_ours(folder: Path) -> bool:
    if not folder.is_dir() or (folder / MARK).is_file():
        return True
    return all(_is_named(entry.name, _HARMLESS) for entry in folder.iterdir())


def _check_results(folder: Path, found: _Claim, config: Any) -> None:
    """Reject a folder with results, unless they are resumed or `overwrite=true` is set."""
    kind = found.mark["command"]
    if kind in (SWEEP, DOCTOR):
        return
    done, begun = (folder / _DONE).is_file(), (folder / _LAST).is_file()
    if kind == TRAIN and config.overwrite and (config.resume or _own_checkpoint(folder, config)):
        key = "resume" if config.resume else "ckpt_path"
        raise ConfigError(f"overwrite=true with {key}={config[key]}: give one of the two")
    if config.overwrite or not (done or begun):
        return
    before = _read_mark(folder)
    same_kind = before.get("command") in (kind, None)
    if kind == TRAIN and same_kind and (config.resume or _own_checkpoint(folder, config)):
        return
    if same_kind and (kind in (*REPEATED, PIPELINE) or (kind == EVALUATE and before == found.mark)):
        return
    state = "holds a finished run" if done else "holds an interrupted run"
    resume = "resume=auto to resume it, " if kind == TRAIN and same_kind else ""
    raise ConfigError(f"hydra.run.dir={folder}: {state}; {resume}overwrite=true to replace it, or another folder")


def _own_checkpoint(folder: Path, config: Any) -> bool:
    path = config.ckpt_path
    return path is not None and Path(path).expanduser().resolve().parent == (folder / _LAST).parent.resolve()


def _read_mark(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / MARK)
    except (OSError, ValueError):
        found = {}
    return found if isinstance(found, dict) else {}


def _digest(config: Any) -> str:
    settings = OmegaConf.to_container(config, resolve=False)
    assert isinstance(settings, dict)
    kept = {key: value for key, value in settings.items() if key not in ("hydra", "overwrite")}
    return hashlib.sha256(json.dumps(kept, default=str, sort_keys=True).encode()).hexdigest()


def _is_named(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
