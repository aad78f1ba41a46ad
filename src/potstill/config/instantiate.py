"""Where a `_target_` of the configuration becomes an object."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra.utils
from omegaconf import DictConfig

from potstill.errors import ConfigError


def find(key: str, path: str) -> Callable[..., Any]:
    """The function that a dotted path names.

    Raises:
        ConfigError: there is none.
    """
    if (here := str(Path.cwd())) not in sys.path:  # as `python -m` has it
        sys.path.insert(0, here)
    try:
        found = pkgutil.resolve_name(path)
    except Exception as fault:  # importing runs the user's code, which may raise anything
        raise ConfigError(f"{key}={path}: {_reason(fault)}") from fault
    if not callable(found):
        raise ConfigError(f"{key}={path}: a {type(found).__name__}; the path of a function or class")
    return found


def make(key: str, settings: DictConfig, *arguments: Any, kind: type = object) -> Any:
    """Call what `settings._target_` names with `arguments` and the other settings.

    Raises:
        ConfigError: there is no such thing, it does not take these settings, or it gives something that is no `kind`.
    """
    try:
        made = hydra.utils.instantiate(settings, *arguments, _convert_="all")
    except Exception as fault:  # whatever the target raises, its settings are the user's
        raise ConfigError(f"{key}._target_={settings.get('_target_')}: {_reason(fault)}") from fault
    if not isinstance(made, kind):
        raise ConfigError(
            f"{key}._target_={settings.get('_target_')}: gives a {type(made).__name__}, no {kind.__name__}"
        )
    return made


def _reason(fault: BaseException) -> str:
    """What was raised first, in one line."""
    while fault.__cause__ is not None:
        fault = fault.__cause__
    return " ".join(str(fault).split())
