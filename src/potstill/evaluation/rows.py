"""Rows of an evaluation: the metrics of a model, and their differences to those of the first one, the reference."""

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
        metric: the monitored metric as a function of indices of examples; None if it has no examples.
        examples: number of examples.
        pairing: identifies the examples and their order; rows are paired if it is equal.
        timed: the model for the measurement of latency; None if it is not measured.
        length: tokens of the sequences for that measurement.
        extra: further results for the tables of its evaluator.
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
    """Add `<monitor>_difference`, `_low` and `_high` to each paired row: its metric minus that of the first row."""
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
