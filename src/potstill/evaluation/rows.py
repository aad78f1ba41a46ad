"""Rows of an evaluation: a model's metrics, and what a comparison with the reference needs of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from potstill.evaluation.bootstrap import LEVEL, Metric, paired_bootstrap
from potstill.evaluation.latency import Timed

DIFFERENCE = ("difference", "difference_low", "difference_high")


@dataclass(frozen=True)
class Row:
    """A model and its metrics.

    Attributes:
        name: of the model in tables.
        metrics: by name.
        metric: the deciding metric as a function of the numbers of examples; None where it has no examples.
        examples: how many there are.
        pairing: identifies the examples and their order; rows are paired only where it is equal.
        timed: the model as its latency is measured; None where it is not.
        length: tokens of the sequences that it is timed on.
        extra: what the evaluator's own tables show of it.
    """

    name: str
    metrics: dict[str, Any]
    metric: Metric | None = None
    examples: int = 0
    pairing: bytes = b""
    timed: Timed | None = None
    length: int = 0
    extra: Any = None


def add_differences(rows: list[Row], monitor: str) -> None:
    """Add `<monitor>_difference`, `_low` and `_high` to every paired row: its metric minus that of the first row."""
    first = rows[0]
    for row in rows[1:]:
        paired = (row.examples, row.pairing) == (first.examples, first.pairing)
        if first.metric is not None and row.metric is not None and paired:
            found = paired_bootstrap(row.metric, first.metric, row.examples)
            for name, value in zip(DIFFERENCE, found, strict=True):
                row.metrics[f"{monitor}_{name}"] = value


def add_difference_column(
    columns: list[str], cells: list[list[Any]], rows: list[Row], monitor: str, examples: str
) -> str:
    """Add the differences to a table, where there are any; returns the sentence that explains them."""
    if not any(f"{monitor}_{DIFFERENCE[0]}" in row.metrics for row in rows):
        return ""
    columns.append("difference")
    for row, cell in zip(rows, cells, strict=True):
        found = [row.metrics[key] for name in DIFFERENCE if (key := f"{monitor}_{name}") in row.metrics]
        cell.append(_signed(*found) if found else "")
    return f" Difference: to the reference, with the {LEVEL:.0%} interval of a paired bootstrap over the {examples}."


def _signed(value: float, low: float, high: float) -> str:
    digits = 4 if max(abs(low), abs(high)) < 10 else 2
    return f"{value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
