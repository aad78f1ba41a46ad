"""What a benchmark asks of a model, and its labels as numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from potstill.data.tasks.readers import Rows
from potstill.errors import ConfigError, DataError
from potstill.models.head_labels import Head

CLASSIFICATION, REGRESSION = "classification", "regression"
TOKENS, SPANS = "tokens", "spans"  # named entities; answers that are pieces of a text
# What a model can be judged by; evaluation/judges.py computes them.
METRICS = {
    CLASSIFICATION: ("accuracy", "f1", "f1_macro", "matthews"),
    REGRESSION: ("pearson", "spearman", "mse"),
    TOKENS: ("f1", "precision", "recall", "accuracy"),
    SPANS: ("em", "f1"),
}
MAX_LABELS = 1000  # more are taken for a column of another kind


@dataclass(frozen=True)
class Task:
    """What a benchmark asks of a model.

    Attributes:
        name: of the benchmark.
        kind: `classification`, `regression`, `tokens` or `spans`.
        labels: names by number; empty for a regression, or where they are not known yet. Of tokens they are tags, of
            spans the ends of an answer.
        aliases: other spellings in files, and the labels that they stand for.
        metrics: names, as in `METRICS`.
        monitor: the metric that decides.
        mode: `min` or `max`.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    monitor: str
    mode: str
    aliases: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> Head:
        """What a model of it labels."""
        heads: dict[str, Head] = {TOKENS: "tokens", SPANS: "spans"}
        return heads.get(self.kind, "sequence")

    @property
    def outputs(self) -> int:
        """Width of the head: a number a label, or a score."""
        return 1 if self.kind == REGRESSION else len(self.labels)

    def with_labels(self, labels: tuple[str, ...]) -> Task:
        """The same task, of these labels.

        Raises:
            ConfigError: a metric is not one of so many labels.
        """
        if self.kind == CLASSIFICATION and "f1" in self.metrics and len(labels) != 2:
            raise ConfigError(
                f"benchmark.metrics=[{', '.join(self.metrics)}]: f1 is of the second of two labels, {self.name} has "
                f"{len(labels)}; use f1_macro"
            )
        return replace(self, labels=labels)


def labels_of(rows: Rows) -> tuple[str, ...]:
    """The labels that occur, in order: numbers by size, others by the alphabet.

    Raises:
        DataError: one is blank, or they are fewer than two, or so many that the column holds something else.
    """
    written = [label.strip() for label in rows.labels or ()]
    if "" in written:
        raise DataError(
            f"{rows.key}: '{rows.name}' {rows.places[written.index('')]}: label '' is blank; give every row one, or "
            "leave the row out"
        )
    found = set(written)
    if not 2 <= len(found) <= MAX_LABELS:
        raise DataError(
            f"{rows.key}: '{rows.name}' has {len(found)} different labels; a classification has 2 to {MAX_LABELS}: "
            "name their column by benchmark.label_column, or the labels by benchmark.labels=[a,b]"
        )
    numbers = all(_is_number(label) for label in found)
    return tuple(sorted(found, key=int if numbers else str))  # type: ignore[arg-type]


def encode_labels(rows: Rows, task: Task) -> NDArray[np.int64] | NDArray[np.float32] | None:
    """Labels as numbers: `(rows,)` int64 of a classification, float32 of a regression; None where there are none.

    A label is written as a name, as another spelling of one, or as its number where no name is a number.

    Raises:
        DataError: a label is none of the task's, or no finite number; the message says where.
    """
    if rows.labels is None:
        return None
    if task.kind == REGRESSION:
        return np.array([_score(rows, i, text) for i, text in enumerate(rows.labels)], dtype=np.float32)
    numbers = {name: number for number, name in enumerate(task.labels)}
    known = {} if any(map(_is_number, task.labels)) else {str(n): n for n in range(len(task.labels))}
    known |= {spelling: numbers[name] for spelling, name in task.aliases.items() if name in numbers}
    known |= numbers
    try:
        return np.array([known[label.strip()] for label in rows.labels], dtype=np.int64)
    except KeyError:
        at = next(i for i, label in enumerate(rows.labels) if label.strip() not in known)
        raise DataError(
            f"{rows.key}: '{rows.name}' {rows.places[at]}: label '{rows.labels[at]}' is unknown; {task.name} has "
            f"{', '.join(task.labels)}"
        ) from None


def _score(rows: Rows, at: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"{rows.key}: '{rows.name}' {rows.places[at]}: score '{text}' is no number; give one such as 2.5"
        )
    return value


def _is_number(label: str) -> bool:
    return label.removeprefix("-").isdecimal()
