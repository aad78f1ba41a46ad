"""An LLM's probabilities of the choices of each row, in `<split>_labels.json` beside its rationales."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.data.common.records import check_file, read_json_document
from potstill.errors import FormatError

FIELD = "label_probabilities"  # of rows of a user's own file
KEY = "data.rationales"

Probabilities = Mapping[str, float]


def labels_file(folder: Path, split: str) -> Path:
    """The file of a part in the folder of its rationales: a list of objects or nulls, one per row."""
    return folder / f"{split}_labels.json"


def read_probabilities(path: Path, rows: int) -> list[Probabilities | None]:
    """The probabilities of each row's choices, or None; all None without a file.

    Args:
        path: Path of the file.
        rows: Number of outputs.

    Raises:
        DataError: The file cannot be used, or has another number of rows.
    """
    if not path.exists():
        return [None] * rows
    check_file(path, KEY, "stage=rationales to recreate it")
    found = read_json_document(path, KEY)
    if not isinstance(found, list) or len(found) != rows:
        size = f"{len(found):,} rows" if isinstance(found, list) else "no list"
        raise FormatError(f"{KEY}: '{path}' has {size}, but there are {rows:,} outputs")
    return [checked(value, path, f"row {number}") for number, value in enumerate(found)]


def checked(value: Any, path: Path, place: str) -> Probabilities | None:
    """Validate stored probabilities.

    Raises:
        DataError: They are not an object of numbers from 0 to 1 with a sum of 1.
    """
    if value is None:
        return None
    numbers = isinstance(value, dict) and all(
        isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one <= 1 for one in value.values()
    )
    if not numbers or not math.isclose(sum(value.values()), 1.0, abs_tol=1e-3):
        raise FormatError(
            f"{KEY}: '{path}' {place}: invalid probabilities {value!r:.60}; must be null, or an object of "
            "numbers by choice with a sum of 1"
        )
    return {str(choice): float(one) for choice, one in value.items()}


def aligned(probabilities: Probabilities | None, choices: Sequence[str] | None) -> list[float] | None:
    """Probabilities in the order of a row's choices, scaled to a sum of 1; None if all are 0."""
    if probabilities is None or not choices:
        return None
    found = [probabilities.get(choice, 0.0) for choice in choices]
    total = sum(found)
    return [value / total for value in found] if total > 0 else None
