"""Keys that do not exist, values that are no section, numbers out of range and text that is no choice of its field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from potstill.config.typed import leaves
from potstill.errors import ConfigError, KeyNameError
from potstill.runtime.dotted import is_path
from potstill.runtime.ranges import CHOICES, FINITE, KEY, PATHS, is_number


def check_keys(section: Any, prefix: str = "") -> None:
    """Reject keys that `+key=value` has added, and references to something else than a section.

    Args:
        section: the options of a command, or a part of them.
        prefix: of its keys.

    Raises:
        ConfigError: the first such key.
    """
    hints = get_type_hints(type(section))
    for name, value in vars(section).items():
        key = f"{prefix}{name}"
        if name not in hints:
            raise KeyNameError(f"{key}={value}: no such key; `--cfg job` shows all keys")
        kinds = {get_origin(hint) for hint in (hints[name], *get_args(hints[name]))}
        if value is None:
            continue
        if is_dataclass(value):
            check_keys(value, f"{key}.")
        elif list in kinds:
            if not isinstance(value, list):
                raise ConfigError(f"{key}={value}: a list")
            for number, item in enumerate(value):
                if is_dataclass(item):
                    check_keys(item, f"{key}.{number}.")
        elif dict in kinds and not isinstance(value, dict):
            raise ConfigError(f"{key}={value}: a dictionary")
        elif section_of(hints[name]):
            raise ConfigError(f"{key}={value}: a section of keys")


def range_problems(section: Any, prefix: str = "") -> list[str]:
    """Every number that is out of its field's range, and every text that is none of its field's choices.

    Numbers in free dictionaries (`optimizer`, `student.config`) and values of any type have no range here, but are
    finite too.

    Args:
        section: the options of a command, or a part of them.
        prefix: of its keys.
    """
    problems: list[str] = []
    for own in fields(section):
        value, key = getattr(section, own.name), f"{prefix}{own.name}"
        if value is None:
            continue
        parts = {f"{key}.{number}.": item for number, item in enumerate(value)} if isinstance(value, list) else {}
        if allowed := own.metadata.get(KEY):
            numbers = value if isinstance(value, list) else [value]
            problems += [f"{key}={value}: {allowed}"] if any(number not in allowed for number in numbers) else []
        elif known := own.metadata.get(CHOICES):
            shown = ", ".join([*known, *(["or null"] if own.default is None else [])])
            problems += [f"{key}={value}: one of {shown}"] if not _is_choice(value, known) else []
        elif is_dataclass(value):
            problems += range_problems(value, f"{key}.")
        elif parts and all(map(is_dataclass, parts.values())):
            for place, part in parts.items():
                problems += range_problems(part, place)
        else:
            problems += [
                f"{place}={inner}: a finite number"
                for place, inner in leaves(key, value)
                if is_number(inner) and inner not in FINITE
            ]
    return problems


def _is_choice(value: Any, known: Sequence[str]) -> bool:
    return value in known or (PATHS in known and is_path(value))


def section_of(hint: Any) -> type | None:
    """The dataclass of a field's type, also where it may be null or is in a list."""
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    return next((found for inner in get_args(hint) if (found := section_of(inner))), None)
