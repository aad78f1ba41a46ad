"""An LLM's probabilities of the choices of each row, beside its rationales: `<split>_labels.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.data.common.text_files import fault_of, read_document
from potstill.errors import DataError
from potstill.runtime.json_text import parse_json

FIELD = "label_probabilities"  # of rows of the user's own
KEY = "objective.soft_weight"

Probabilities = Mapping[str, float]


def labels_file(folder: Path, split: str) -> Path:
    """The file of a part, in the folder of its rationales; a list of objects and nulls, one a row."""
    return folder / f"{split}_labels.json"


def home_of(folder: Path, name: str, split: str, rationales: str) -> Path:
    """The folder of the rationales of a part, as `outputs.read_outputs` finds them."""
    if rationales == "palm":
        return folder / name / "llm"
    if rationales == "gpt":
        return folder / "gpt-neox" / name
    at = Path(rationales.replace("{split}", split)).expanduser()
    return at if at.is_dir() else at.parent


def read_probabilities(path: Path, rows: int) -> list[Probabilities | None]:
    """The probabilities of each row's choices, None for rows without; all None where there is no such file.

    Args:
        path: of the file.
        rows: how many outputs there are.

    Raises:
        DataError: the file cannot be used, or has another number of rows.
    """
    if not path.exists():
        return [None] * rows
    if fault := fault_of(path):
        raise DataError(f"data.rationales: '{path}' {fault}; make it anew by stage=rationales")
    try:
        found = parse_json(read_document(path, "data.rationales"))
    except ValueError as error:
        raise DataError(
            f"data.rationales: '{path}' is no JSON ({error}); make it anew by stage=rationales"
        ) from None
    if not isinstance(found, list) or len(found) != rows:
        size = f"{len(found):,} rows" if isinstance(found, list) else "no list"
        raise DataError(f"data.rationales: '{path}' has {size}, but there are {rows:,} outputs; one a row")
    return [checked(value, path, f"row {number}") for number, value in enumerate(found)]


def checked(value: Any, path: Path, place: str) -> Probabilities | None:
    """Probabilities as they are stored.

    Raises:
        DataError: they are no object of numbers from 0 to 1 with a sum of 1.
    """
    if value is None:
        return None
    numbers = isinstance(value, dict) and all(
        isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one <= 1 for one in value.values()
    )
    if not numbers or not math.isclose(sum(value.values()), 1.0, abs_tol=1e-3):
        raise DataError(
            f"data.rationales: '{path}' {place}: {value!r:.60} are no probabilities; give an object of choices with "
            "numbers that add up to 1, or null"
        )
    return {str(choice): float(one) for choice, one in value.items()}


def aligned(probabilities: Probabilities | None, choices: Sequence[str] | None) -> list[float] | None:
    """Probabilities in the order of a row's choices, scaled to 1; None where none of them has any."""
    if probabilities is None or not choices:
        return None
    found = [probabilities.get(choice, 0.0) for choice in choices]
    total = sum(found)
    return [value / total for value in found] if total > 0 else None
