"""Labels as written in a file or a data set: one name per row, or a set of names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from potstill.errors import DataError

UNLABELLED = ("", "-1")  # values of missing labels
SHOWN = 60  # characters of a value in a message


def single_label(value: Any, where: str) -> str:
    """A label or a score as text; "" for null.

    Args:
        value: Text or a number.
        where: Beginning of messages: key, file, line and column.

    Raises:
        DataError: Another type of value.
    """
    if isinstance(value, list | tuple):
        raise DataError(
            f"{where} is the list {_shown(value)}; set benchmark.multi_label=true for rows with several labels"
        )
    return "" if value is None else _name(value, where)


def label_set(value: Any, separator: str, where: str) -> tuple[str, ...] | None:
    """The set of labels of a row; None for null.

    Args:
        value: A list of names or numbers, or text with `separator` between them. Blank text is the empty set.
        separator: Separator of labels in text.
        where: Beginning of messages: key, file, line and column.

    Raises:
        DataError: Another type of value, a blank label, or a duplicate label.
    """
    if value is None:
        return None
    if isinstance(value, list | tuple):
        names = [_name(entry, f"{where}, entry {number},").strip() for number, entry in enumerate(value, 1)]
        if "" in names:
            raise DataError(f"{where} is {_shown(value)}: a label is blank; remove it")
    elif isinstance(value, str):
        names = [name for part in value.split(separator) if (name := part.strip())]
    else:
        names = [_name(value, where)]
    if len(set(names)) < len(names):
        raise DataError(
            f"{where} is {_shown(value)}: a label occurs twice; list each label of the row once, by name or number"
        )
    return tuple(names)


def column_of_labels(
    values: Sequence[Any], where: Iterable[str], separator: str | None, labelled: bool
) -> tuple[list[str] | None, list[tuple[str, ...]] | None]:
    """Labels of all rows as text, and their sets for a multi-label task; None without labels.

    Args:
        values: Values of the label column.
        where: Beginning of the messages of each row.
        separator: Separator of labels in text; None for one label per row.
        labelled: Whether the rows must have labels.

    Raises:
        DataError: An invalid label or set of labels.
    """
    if separator is None:
        labels = [single_label(value, place) for value, place in zip(values, where, strict=True)]
        return (labels if labelled or any(labels) else None), None
    if not labelled and all(value is None or value == "" for value in values):
        return None, None
    sets = []
    for value, place in zip(values, where, strict=True):
        found = label_set(value, separator, place)
        if found is None:
            raise DataError(f"{place} is null; use the empty list for a row without labels")
        sets.append(found)
    return [separator.join(own) for own in sets], sets


def _name(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise DataError(f"{where} is {_shown(value)}; a label must be text or a number")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
