"""Numbers of a composed configuration that are out of their fields' ranges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf

from potstill.runtime.ranges import FINITE, KEY, is_number


def range_faults(config: DictConfig, schema: type, prefix: str = "") -> list[str]:
    """Every number of a composed configuration that is out of its field's range.

    Numbers in free dictionaries (`optimizer`, `student.config`) and values of any type have no range here, but are
    finite too.

    Args:
        config: composed from the schema.
        schema: the dataclass of this section.
        prefix: of this section's keys.
    """
    faults: list[str] = []
    hints = get_type_hints(schema)
    for own in fields(schema):
        if OmegaConf.is_missing(config, own.name) or (value := config[own.name]) is None:
            continue
        key = f"{prefix}{own.name}"
        if allowed := own.metadata.get(KEY):
            numbers = list(value) if isinstance(value, ListConfig) else [value]
            shown = numbers if isinstance(value, ListConfig) else value
            faults += [f"{key}={shown}: {allowed}"] if any(n not in allowed for n in numbers) else []
        elif section := section_of(hints[own.name]):
            parts = {f"{key}.": value} if isinstance(value, DictConfig) else _numbered(key, value)
            for place, part in parts.items():
                faults += range_faults(part, section, place)
        else:
            faults += [
                f"{place}={inner}: a finite number"
                for place, inner in leaves(key, value)
                if is_number(inner) and inner not in FINITE
            ]
    return faults


def section_of(hint: Any) -> type | None:
    """The dataclass of a field's type, also where it may be null or is in a list."""
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    return next((found for inner in get_args(hint) if (found := section_of(inner))), None)


def leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values within nested dictionaries and lists of a configuration."""
    if isinstance(value, DictConfig):
        for name in value:
            yield from leaves(f"{key}.{name!s}", value[name])
    elif isinstance(value, ListConfig):
        for place, part in _numbered(key, value).items():
            yield from leaves(place.removesuffix("."), part)
    else:
        yield key, value


def _numbered(key: str, values: Any) -> dict[str, Any]:
    return {f"{key}.{place}.": value for place, value in enumerate(values)}
