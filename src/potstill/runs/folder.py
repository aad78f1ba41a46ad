"""The folder of a run: whose it is, that one command at a time writes it, and what a new run leaves of an old one.

Hydra writes its record into the folder before any code of ours runs in the job, so the folder of a command is claimed
when Hydra starts it, and the record goes to `.hydra.new` until the run begins. No torch.
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
from omegaconf import DictConfig, OmegaConf, read_write

from potstill.errors import ConfigError
from potstill.runtime.atomic import write_whole
from potstill.runtime.json_text import json_text, read_json
from potstill.runtime.process import is_first_rank

MARK = ".potstill.json"  # of a folder that a command of ours has written: which one
LOCK = ".potstill.lock"
RECORD, STAGED = ".hydra", ".hydra.new"
TRAIN, EVALUATE, RATIONALES, RECIPE, DOCTOR, SWEEP = (
    "train",
    "evaluate",
    "rationales",
    "recipe",
    "doctor",
    "sweep",
)
# What a folder of ours may hold without MARK: a command that was rejected or killed before it began, or a copied run.
_HARMLESS = (RECORD, STAGED, LOCK, "*.log", "wandb", "checkpoints")
# What a run leaves, but for wandb/, which may not be uploaded yet, and the log, which is appended to.
_RESULTS = (
    "summary.json", "config.yaml", "report.html", "metrics.csv", "student", "checkpoints", "wandb_id", "fault.txt",
    "tensorboard", "predictions*", "submission*", "export", "sweep.csv", "glue.csv", "share.csv", "stages.yaml",
)  # fmt: skip
_DONE = "summary.json"
_LAST = Path("checkpoints") / "last.ckpt"

log = logging.getLogger(__name__)


class RejectedFolder(BaseException):
    """A folder that a command must not write; no Exception, which Hydra would turn into a warning."""

    def __init__(self, fault: Exception):
        super().__init__(str(fault))
        self.fault = fault


class ClaimFolder(Callback):
    """Claims the folder of a command, or of a sweep, before Hydra writes into it."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Claim the folder of a single run; the other processes of a distributed run leave no record."""
        HydraConfig.instance().set_config(config)
        if not is_first_rank():
            with read_write(config.hydra):
                config.hydra.output_subdir = None
            return
        _claim_or_reject(Path(str(config.hydra.run.dir)), kind_of(config), config)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Claim the folder of a sweep; each job claims its own."""
        HydraConfig.instance().set_config(config)
        folder = Path(str(config.hydra.sweep.dir))
        _claim_or_reject(folder, SWEEP, config)
        with suppress(OSError):  # the first job finds out
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / MARK, json_text({"command": SWEEP}) + "\n")


def _claim_or_reject(folder: Path, kind: str, config: DictConfig) -> None:
    try:
        claim(folder, kind, config)
    except (ConfigError, OSError) as fault:
        raise RejectedFolder(fault) from None


def kind_of(config: DictConfig) -> str:
    """Which kind of command a configuration is of."""
    if "objective" not in config:
        return EVALUATE
    if config.stages:
        return RECIPE
    if config.doctor:
        return DOCTOR
    return RATIONALES if config.stage == "rationales" else TRAIN


class _Claim:
    def __init__(self, lock: FileLock, kind: str, digest: str):
        self.lock, self.mark, self.begun = lock, {"command": kind, "config": digest}, False


_claims: dict[Path, _Claim] = {}  # of this process


def claim(folder: Path, kind: str, config: DictConfig) -> None:
    """Take a folder for a command until `release`, or until this process ends.

    Args:
        folder: of the command; may be missing.
        kind: of the command.
        config: of the command.

    Raises:
        ConfigError: files of the user's own are in it, another command is running in it, or results that the command
            would replace.
    """
    folder = folder.absolute()
    if folder in _claims or (folder.exists() and not folder.is_dir()):
        return  # what is no folder is rejected when it is made
    if not _is_ours(folder):
        raise ConfigError(
            f"hydra.run.dir={folder}: holds files that no run of potstill wrote; name a new or empty folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"hydra.run.dir={folder}: another command is running in it; take another folder, or wait for its end"
        ) from None
    except NotImplementedError:
        log.warning("%s: no locks on this disk; run one command at a time in it", folder)
    found = _Claim(lock, kind, _digest(config))
    try:
        _check_results(folder, found, config)
    except ConfigError:
        lock.release()
        raise
    _claims[folder] = found


def begin(folder: Path, *, anew: bool) -> None:
    """From here on the folder is the run's: its record replaces the last one's.

    Args:
        folder: of the run; nothing is done in one that this process has not claimed.
        anew: whether the results of an earlier run are removed; of a resumed one only what says that it is done is.
    """
    found = _claims.get(folder.absolute())
    if found is None:
        return
    if (folder / MARK).is_file():
        for entry in list(folder.iterdir()):
            if entry.name == _DONE or (anew and _is_named(entry.name, _RESULTS)):
                _remove(entry)
    for torn in folder.glob(".student.*.*"):  # of a process that was killed while it wrote
        _remove(torn)
    write_whole(folder / MARK, json_text(found.mark) + "\n")
    _publish(folder)
    found.begun = True


def release(folder: Path) -> None:
    """Give a folder back; the record of a command that never began stays only where no other run has left one."""
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
    """Whether there is nothing in a folder but what a command leaves that was rejected."""
    return folder.is_dir() and all(
        _is_named(entry.name, (RECORD, STAGED, LOCK, "*.log")) for entry in folder.iterdir()
    )


def _is_ours(folder: Path) -> bool:
    if not folder.is_dir() or (folder / MARK).is_file():
        return True
    return all(_is_named(entry.name, _HARMLESS) for entry in folder.iterdir())


def _check_results(folder: Path, found: _Claim, config: DictConfig) -> None:
    """What would be replaced has to be named: `overwrite=true`, or continued."""
    kind = found.mark["command"]
    if kind in (SWEEP, DOCTOR):
        return
    done, begun = (folder / _DONE).is_file(), (folder / _LAST).is_file()
    if kind == TRAIN and config.overwrite and (config.resume or _own_checkpoint(folder, config)):
        key = "resume" if config.resume else "ckpt_path"
        raise ConfigError(f"overwrite=true with {key}={config[key]}: give one of them")
    if config.overwrite or not (done or begun):
        return
    before = _read_mark(folder)
    same_kind = before.get("command") in (kind, None)
    if kind == TRAIN and same_kind and (config.resume or _own_checkpoint(folder, config)):
        return
    if same_kind and (kind in (RATIONALES, RECIPE) or (kind == EVALUATE and before == found.mark)):
        return
    state = "a finished run is in it" if done else "an interrupted run is in it"
    resume = "resume=auto continues it, " if kind == TRAIN and same_kind else ""
    raise ConfigError(
        f"hydra.run.dir={folder}: {state}; {resume}overwrite=true replaces it, or take another folder"
    )


def _own_checkpoint(folder: Path, config: DictConfig) -> bool:
    path = config.ckpt_path
    return path is not None and Path(path).expanduser().resolve().parent == (folder / _LAST).parent.resolve()


def _read_mark(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / MARK)
    except (OSError, ValueError):
        found = {}
    return found if isinstance(found, dict) else {}


def _digest(config: DictConfig) -> str:
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
