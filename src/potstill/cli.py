"""The two commands: compose the configuration with Hydra, refuse what is faulty, hand over to `runs`.

Exit codes: 0 done; 2 a fault of the user's, one line on stderr; 1 a bug, with its traceback. Nothing here imports
torch, so that a faulty configuration and `--help` take a second.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from potstill.config import register
from potstill.errors import PotstillError
from potstill.validation import validate_evaluate, validate_train

_DISK_FAULTS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
}


def config_folder() -> Path:
    """The folder of configs: `conf/` of a checkout, or the copy inside an installed wheel."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def train() -> None:
    """`python train.py <overrides>`, `potstill-train <overrides>`."""
    _run("train", _train)


def evaluate() -> None:
    """`python evaluate.py model=... benchmark=... <overrides>`, `potstill-evaluate ...`."""
    _run("evaluate", _evaluate)


def _train(config: DictConfig) -> Any:
    validate_train(config)
    from potstill.runs import train as run  # torch, lightning and transformers are imported only now

    return run(config, _output_folder())


def _evaluate(config: DictConfig) -> Any:
    validate_evaluate(config)
    from potstill.runs import evaluate as run

    return run(config, _output_folder())


def _run(name: str, task: Callable[[DictConfig], Any]) -> None:
    register()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them its own way
    # `experiment` is in the defaults list (as null), so that it composes late; both spellings are welcome.
    sys.argv[1:] = [re.sub(r"^\+(experiment|debug|sweep)=", r"\1=", argument) for argument in sys.argv[1:]]

    started = False

    def job(config: DictConfig) -> Any:
        nonlocal started
        started = True
        try:
            return task(config)
        except (PotstillError, OmegaConfBaseException) as fault:
            _drop_untouched(_output_folder())
            _refuse(fault)
        except OSError as fault:
            if fault.errno not in _DISK_FAULTS:
                raise
            _refuse(fault)

    main = hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=name)
    try:
        main(job)()
    except (HydraException, OmegaConfBaseException, PotstillError) as fault:
        _refuse(fault)
    except OSError as fault:
        if started:  # a fault of the disk was caught in the job; this one is ours
            raise
        _refuse(fault)
    except KeyboardInterrupt:
        sys.exit(130)


def _output_folder() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


def _drop_untouched(folder: Path) -> None:
    """Remove the output folder of a refused run where nothing but Hydra's own record is in it."""
    own = {".hydra", f"{HydraConfig.get().job.name}.log"}
    if folder.is_dir() and {entry.name for entry in folder.iterdir()} <= own:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse(fault: Exception) -> None:
    sys.stderr.write(f"error: {one_line(fault)}\n")
    raise SystemExit(2)


def one_line(fault: Exception) -> str:
    """A fault as one line that names the key, the value and what is right."""
    if isinstance(fault, PotstillError):
        return " ".join(str(fault).split())
    if isinstance(fault, OSError) and not isinstance(fault, HydraException):
        what = os.strerror(fault.errno) if fault.errno else str(fault)
        return (
            f"cannot write {fault.filename or 'to the output folder'}: {what}; choose another hydra.run.dir"
        )
    text = str(fault)
    cause = fault.__cause__
    if cause is not None and str(cause) not in text:
        text = f"{text} {cause}"
    # OmegaConf adds lines for its own developers; the key is all that a user needs of them.
    key = re.search(r"full_key: (\S+)", text)
    text = re.sub(r"(Config search path:|To append to your config).*?(?=\n\S|$)", "", text)
    text = re.sub(r"\n\s*(full_key|object_type|reference_type)[:=].*", "", text)
    text = " ".join(text.split())
    if key and key.group(1) not in text:
        text = f"{key.group(1)}: {text}"
    return text.replace("Could not override", "no such key:") + _closest(text)


def _closest(text: str) -> str:
    unknown = re.search(r"Could not override '([\w./-]+)'|Key '([\w.]+)' (?:is )?not in", text)
    if not unknown:
        return ""
    wanted = (unknown.group(1) or unknown.group(2)).split("@")[0]
    known = _known_keys() + [str(path.name) for path in config_folder().iterdir() if path.is_dir()]
    # A key is misspelled in its last part more often than misplaced, so compare whole paths.
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else "; --help lists the groups, `--cfg job` all keys"


def _known_keys() -> list[str]:
    from potstill.config import EvaluateConfig, TrainConfig

    def walk(node: Any, prefix: str = "") -> list[str]:
        keys = []
        for key in node:
            path = f"{prefix}{key}"
            keys.append(path)
            child = node._get_node(key)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
                keys += walk(child, f"{path}.")
        return keys

    return sorted({*walk(OmegaConf.structured(TrainConfig)), *walk(OmegaConf.structured(EvaluateConfig))})
