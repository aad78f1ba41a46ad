"""What a benchmark asks of a model, and its labels as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.data.tasks.entities import are_plain
from potstill.data.tasks.label_values import UNLABELLED
from potstill.data.tasks.readers import Rows
from potstill.errors import ConfigError, DataError
from potstill.models.head_labels import Head, match_labels, number_of, unnamed
from potstill.models.head_problems import Problem

CLASSIFICATION, REGRESSION = "classification", "regression"
MULTI_LABEL = "multi_label"  # a classification whose rows have any number of labels: benchmark.multi_label
TOKENS, SPANS = "tokens", "spans"  # named entities; answers that are pieces of a text
# What a model can be judged by; evaluation/judges.py computes them.
METRICS = {
    CLASSIFICATION: ("accuracy", "f1", "f1_macro", "matthews"),
    MULTI_LABEL: ("f1_micro", "f1_macro", "accuracy"),
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
        kind: `classification`, `multi_label`, `regression`, `tokens` or `spans`.
        labels: names by number; empty for a regression, or where they are not known yet. Of tokens they are tags, of
            spans the ends of an answer.
        aliases: other spellings in files, and the labels that they stand for.
        ordered: whether the order of the labels is a published or a configured one, so that a number can stand for a
            label.
        separator: between the labels of a row in text.
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
    ordered: bool = False
    separator: str = ","

    @property
    def head(self) -> Head:
        """What a model of it labels."""
        heads: dict[str, Head] = {TOKENS: "tokens", SPANS: "spans"}
        return heads.get(self.kind, "sequence")

    @property
    def problem(self) -> Problem | None:
        """What transformers calls a model's loss on it; None of answers."""
        problems: dict[str, Problem] = {
            REGRESSION: "regression",
            MULTI_LABEL: "multi_label_classification",
        }
        return None if self.kind == SPANS else problems.get(self.kind, "single_label_classification")

    @property
    def outputs(self) -> int:
        """Width of the head: a number a label, or a score."""
        return 1 if self.kind == REGRESSION else len(self.labels)

    @property
    def plain(self) -> bool:
        """Whether its labels are tags that mark words one by one, such as parts of speech."""
        return self.kind == TOKENS and are_plain(self.labels)

    def with_labels(self, labels: tuple[str, ...]) -> Task:
        """The same task, of these labels; plain tags mark no entities, so their only metric is accuracy.

        Raises:
            ConfigError: a metric is not one of so many labels.
        """
        if self.kind == CLASSIFICATION and "f1" in self.metrics and len(labels) != 2:
            raise ConfigError(
                f"benchmark.metrics=[{', '.join(self.metrics)}]: f1 is of the second of two labels, {self.name} has "
                f"{len(labels)}; use f1_macro"
            )
        task = replace(self, labels=labels)
        return replace(task, metrics=("accuracy",), monitor="accuracy", mode="max") if task.plain else task


def labels_of(rows: Rows) -> tuple[str, ...]:
    """The labels that occur, in order: numbers by size, others by the alphabet.

    Spellings of one number (`1`, `1.0`) are one label, which has the shortest of them as its name.

    Raises:
        DataError: one is blank, or they are fewer than two, or so many that the column holds something else.
    """
    if rows.sets is not None:
        return labels_of(_one_by_one(rows, rows.sets)[1])
    written = [label.strip() for label in rows.labels or ()]
    if "" in written:
        raise DataError(
            f"{rows.key}: '{rows.name}' {rows.places[written.index('')]}: label '' is blank; give every row one, or "
            "leave the row out"
        )
    numbers = {label: number_of(label) for label in sorted(set(written), key=lambda own: (len(own), own))}
    names: dict[Any, str] = {}
    for label, number in numbers.items():
        names.setdefault(label if number is None else number, label)
    found = list(names.values())
    if not 2 <= len(found) <= MAX_LABELS:
        raise DataError(
            f"{rows.key}: '{rows.name}' has {len(found)} different labels; a classification has 2 to {MAX_LABELS}: "
            "name their column by benchmark.label_column, or the labels by benchmark.labels=[a,b]"
        )
    sizes = {label: number for label in found if (number := numbers[label]) is not None}
    return tuple(sorted(found, key=sizes.__getitem__) if len(sizes) == len(found) else sorted(found))


def with_known_labels(rows: Rows, task: Task) -> Rows:
    """The rows without their labels where these only mark missing ones: all are blank or -1, and -1 is no label."""
    labels = {label.strip() for label in rows.labels or ()}
    if rows.sets is not None and not all(rows.sets):
        return rows  # an empty set is no missing one
    if labels <= set(UNLABELLED) and not match_labels(sorted(labels), task.labels):
        return replace(rows, labels=None, sets=None)
    return rows


def label_names(rows: Rows, task: Task) -> dict[str, str]:
    """Find which label of a classification each spelling in a part stands for.

    A label is written as a name, as an alias, in another spelling of a name (`match_labels`), or, where the order of
    the labels is known and no name is a number, as its number in that order.

    Raises:
        DataError: a label is none of the task's; the message says where.
    """
    written = [label.strip() for label in rows.labels or ()]
    aliases = {spelling: name for spelling, name in task.aliases.items() if name in task.labels}
    names = match_labels(sorted(set(written) - set(aliases)), task.labels)
    names |= {label: aliases[label] for label in set(written) & set(aliases) - set(names)}
    numbered = {Decimal(number): name for number, name in enumerate(task.labels)}
    if any(number_of(name) is not None for name in task.labels):
        numbered = {}
    if task.ordered:
        names |= {
            label: numbered[number]
            for label in set(written) - set(names)
            if (number := number_of(label)) is not None and number in numbered
        }
    at = next((i for i, label in enumerate(written) if label not in names), None)
    if at is None:
        return names
    what = f"{task.name} has {', '.join(task.labels)}"
    if not task.ordered and (unnamed(task.labels) or number_of(written[at]) in numbered):
        what += "; give the label of each number, in order, by benchmark.labels=[a,b]"
    raise DataError(
        f"{rows.key}: '{rows.name}' {rows.places[at]}: label '{(rows.labels or ())[at]}' is unknown; {what}"
    )


def other_spellings(rows: Rows, task: Task) -> str:
    """Labels that are written as neither names nor aliases, such as `0 = no, 1 = yes`; empty where there are none."""
    if rows.sets is not None:
        return other_spellings(_one_by_one(rows, rows.sets)[1], replace(task, kind=CLASSIFICATION))
    names = label_names(rows, task) if task.kind == CLASSIFICATION else {}
    others = {label: name for label, name in names.items() if label != name and label not in task.aliases}
    order = sorted(others, key=lambda label: task.labels.index(others[label]))
    return ", ".join(f"{label} = {others[label]}" for label in order)


def encode_labels(rows: Rows, task: Task) -> NDArray[np.int64] | NDArray[np.float32] | None:
    """Labels as numbers: `(rows,)` int64 of a classification, float32 of a regression; None where there are none.

    Of a task with sets of labels `(rows, labels)` int64: 1 of the labels that a row has, 0 of the others.

    Raises:
        DataError: a label is none of the task's (`label_names`), or no finite number; the message says where.
    """
    if rows.labels is None:
        return None
    if rows.sets is not None:
        row_of, flat = _one_by_one(rows, rows.sets)
        numbers_N = encode_labels(flat, replace(task, kind=CLASSIFICATION))
        found = np.zeros((len(rows), len(task.labels)), dtype=np.int64)
        found[row_of, numbers_N] = 1
        return found
    if task.kind == REGRESSION:
        return np.array([_score(rows, i, text) for i, text in enumerate(rows.labels)], dtype=np.float32)
    numbers = {label: task.labels.index(name) for label, name in label_names(rows, task).items()}
    return np.array([numbers[label.strip()] for label in rows.labels], dtype=np.int64)


def _one_by_one(rows: Rows, sets: Sequence[tuple[str, ...]]) -> tuple[list[int], Rows]:
    """The labels of all rows as rows of a single label each, and the numbers of the rows that they are of."""
    row_of = [number for number, own in enumerate(sets) for _ in own]
    labels, places = [label for own in sets for label in own], [rows.places[number] for number in row_of]
    return row_of, replace(rows, labels=labels, places=places, sets=None)


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
