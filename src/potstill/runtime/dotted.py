"""Functions and classes of the user's own, by dotted path."""

from __future__ import annotations

import pkgutil
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from potstill.errors import ConfigError

PATH = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+"


def is_path(value: Any) -> bool:
    """Whether a value has the form of a dotted path, `my.module.function`."""
    return isinstance(value, str) and re.fullmatch(PATH, value) is not None


def find(key: str, path: str) -> Callable[..., Any]:
    """The function that a dotted path names; modules of the working directory are found too.

    Raises:
        ConfigError: there is none; the message begins with `key`.
    """
    find_in_working_directory()
    try:
        found: Any = pkgutil.resolve_name(path)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise ConfigError(f"{key}={path}: {reason(error)}") from error
    if not callable(found):
        raise ConfigError(f"{key}={path}: a {type(found).__name__}; the path of a function or class")
    return found  # type: ignore[no-any-return]


def find_in_working_directory() -> None:
    """Let imports find modules of the working directory, as `python -m` does."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)


def reason(error: BaseException) -> str:
    """The message of the first exception of a chain, as one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
