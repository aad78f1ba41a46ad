"""The label of a row as a file or a data set gives it: one name, or a set of names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from potstill.errors import DataError

UNLABELLED = ("", "-1")  # what stands for a label where a part has none
SHOWN = 60  # characters of a value that a message shows


def single_label(value: Any, where: str) -> str:
    """A label, or a score, as text; blank where there is none (null).

    Args:
        value: text or a number.
        where: what messages begin with: key, file, line and column.

    Raises:
        DataError: another kind of value.
    """
    if isinstance(value, list | tuple):
        raise DataError(
            f"{where} is the list {_shown(value)}: rows with several labels need benchmark.multi_label=true"
        )
    return "" if value is None else _name(value, where)


def label_set(value: Any, separator: str, where: str) -> tuple[str, ...] | None:
    """The labels of a row that may have any number of them; None where there is no value (null).

    Args:
        value: a list of names or numbers, or text in which `separator` stands between them. Blank text is the empty
            set, as the empty list is.
        separator: between labels in text.
        where: what messages begin with: key, file, line and column.

    Raises:
        DataError: another kind of value, or a label that occurs twice.
    """
    if value is None:
        return None
    if isinstance(value, list | tuple):
        names = [_name(entry, f"{where}, entry {number},").strip() for number, entry in enumerate(value, 1)]
        if "" in names:
            raise DataError(f"{where} is {_shown(value)}: a label is blank; leave it out")
    elif isinstance(value, str):
        names = [name for part in value.split(separator) if (name := part.strip())]
    else:
        names = [_name(value, where)]
    if len(set(names)) < len(names):
        raise DataError(
            f"{where} is {_shown(value)}: a label occurs twice; list the names, or the numbers, of the labels that the "
            "row has, each once"
        )
    return tuple(names)


def column_of_labels(
    values: Sequence[Any], where: Iterable[str], separator: str | None, labelled: bool
) -> tuple[list[str] | None, list[tuple[str, ...]] | None]:
    """The labels of all rows as text, and their sets where rows have sets; None where no row has a label.

    Args:
        values: of the column of labels.
        where: what the messages of each row begin with.
        separator: between labels in text; None where a row has one label.
        labelled: the rows must have labels.

    Raises:
        DataError: a value is not a label, or not a set of labels.
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
            raise DataError(f"{place} is null; a row without labels has the empty list")
        sets.append(found)
    return [separator.join(own) for own in sets], sets


def _name(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise DataError(f"{where} is {_shown(value)}, not a label; give text or a number")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
