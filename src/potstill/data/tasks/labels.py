"""Tasks of benchmarks, and their labels: as written in a file or a data set, and as numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from potstill.data.tasks.entities import are_plain
from potstill.errors import ConfigError, LabelError
from potstill.models.heads import Head, Problem, match_labels, number_of, unnamed

if TYPE_CHECKING:
    from potstill.data.tasks.readers import Rows

CLASSIFICATION, REGRESSION = "classification", "regression"
MULTI_LABEL = "multi_label"  # classification with benchmark.multi_label: any number of labels per row
TOKENS, SPANS = "tokens", "spans"  # token classification; extractive question answering
# Metrics by kind of task, computed in evaluation/evaluators.py.
METRICS = {
    CLASSIFICATION: ("accuracy", "f1", "f1_macro", "matthews"),
    MULTI_LABEL: ("f1_micro", "f1_macro", "accuracy"),
    REGRESSION: ("pearson", "spearman", "mse"),
    TOKENS: ("f1", "precision", "recall", "accuracy"),
    SPANS: ("em", "f1"),
}
MAX_LABELS = 1000  # more indicate a column that is not of labels
UNLABELLED = ("", "-1")  # values of missing labels


@dataclass(frozen=True)
class Task:
    """Task of a benchmark.

    Attributes:
        name: Name of the benchmark.
        kind: `classification`, `multi_label`, `regression`, `tokens` or `spans`.
        labels: Names by number; empty for a regression and for unknown labels. Tags for `tokens`, the ends of an answer
            for `spans`.
        metrics: Names from `METRICS`.
        monitor: Metric for model selection.
        mode: `min` or `max`.
        aliases: Labels by other spellings in files.
        ordered: Whether the order of the labels is published or configured, so that files may use label numbers.
        separator: Separator of the labels of a row in text.
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
        """Type of the model's head."""
        heads: dict[str, Head] = {TOKENS: "tokens", SPANS: "spans"}
        return heads.get(self.kind, "sequence")

    @property
    def problem(self) -> Problem | None:
        """`problem_type` of transformers; None for `spans`."""
        problems: dict[str, Problem] = {REGRESSION: "regression", MULTI_LABEL: "multi_label_classification"}
        return None if self.kind == SPANS else problems.get(self.kind, "single_label_classification")

    @property
    def outputs(self) -> int:
        """Width of the head."""
        return 1 if self.kind == REGRESSION else len(self.labels)

    @property
    def plain(self) -> bool:
        """Whether the labels are plain tags, such as parts of speech."""
        return self.kind == TOKENS and are_plain(self.labels)

    def with_labels(self, labels: tuple[str, ...]) -> Task:
        """The task with these labels; for plain tags the only metric is accuracy.

        Raises:
            ConfigError: `f1` for more than two labels.
        """
        if self.kind == CLASSIFICATION and "f1" in self.metrics and len(labels) != 2:
            raise ConfigError(
                f"benchmark.metrics=[{', '.join(self.metrics)}]: f1 needs two labels, {self.name} has "
                f"{len(labels)}; use f1_macro"
            )
        task = replace(self, labels=labels)
        return replace(task, metrics=("accuracy",), monitor="accuracy", mode="max") if task.plain else task


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
        LabelError: An invalid label or set of labels.
    """
    if separator is None:
        hint = "; set benchmark.multi_label=true for rows with several labels"
        pairs = zip(values, where, strict=True)
        labels = ["" if value is None else _name(value, place, hint) for value, place in pairs]
        return (labels if labelled or any(labels) else None), None
    if not labelled and all(value is None or value == "" for value in values):
        return None, None
    sets = [_label_set(value, separator, place) for value, place in zip(values, where, strict=True)]
    return [separator.join(own) for own in sets], sets


def labels_of(rows: Rows) -> tuple[str, ...]:
    """The distinct labels, sorted: numbers by size, others alphabetically.

    Spellings of one number (`1`, `1.0`) are one label, named by the shortest.

    Raises:
        LabelError: A blank label, fewer than two labels, or more than `MAX_LABELS`.
    """
    if rows.sets is not None:
        return labels_of(_one_by_one(rows, rows.sets)[1])
    written = [label.strip() for label in rows.labels or ()]
    if "" in written:
        raise LabelError(
            f"{rows.key}: '{rows.name}' {rows.places[written.index('')]}: label '' is blank; add it, or remove the row"
        )
    numbers = {label: number_of(label) for label in sorted(set(written), key=lambda own: (len(own), own))}
    names: dict[Any, str] = {}
    for label, number in numbers.items():
        names.setdefault(label if number is None else number, label)
    found = list(names.values())
    if not 2 <= len(found) <= MAX_LABELS:
        raise LabelError(
            f"{rows.key}: '{rows.name}' has {len(found)} different labels, expected 2 to {MAX_LABELS}; "
            "set benchmark.label_column, or benchmark.labels=[a,b]"
        )
    sizes = {label: number for label in found if (number := numbers[label]) is not None}
    return tuple(sorted(found, key=sizes.__getitem__) if len(sizes) == len(found) else sorted(found))


def with_known_labels(rows: Rows, task: Task) -> Rows:
    """The rows, without labels if all are blank or -1 and -1 is not a label of the task."""
    labels = {label.strip() for label in rows.labels or ()}
    if rows.sets is not None and not all(rows.sets):
        return rows  # an empty set is a valid label
    if labels <= set(UNLABELLED) and not match_labels(sorted(labels), task.labels):
        return replace(rows, labels=None, sets=None)
    return rows


def label_names(rows: Rows, task: Task) -> dict[str, str]:
    """Labels of a classification by their spellings in a part.

    A label may be written as a name, an alias, another spelling of a name (`match_labels`), or, for ordered labels
    without numbers as names, as its number.

    Raises:
        LabelError: An unknown label; the message names the place.
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
        what += "; set benchmark.labels=[a,b] to the label of each number, in order"
    raise LabelError(
        f"{rows.key}: '{rows.name}' {rows.places[at]}: label '{(rows.labels or ())[at]}' is unknown; {what}"
    )


def other_spellings(rows: Rows, task: Task) -> str:
    """Labels written as neither names nor aliases, such as `0 = no, 1 = yes`; "" without any."""
    if rows.sets is not None:
        return other_spellings(_one_by_one(rows, rows.sets)[1], replace(task, kind=CLASSIFICATION))
    names = label_names(rows, task) if task.kind == CLASSIFICATION else {}
    others = {label: name for label, name in names.items() if label != name and label not in task.aliases}
    order = sorted(others, key=lambda label: task.labels.index(others[label]))
    return ", ".join(f"{label} = {others[label]}" for label in order)


def encode_labels(rows: Rows, task: Task) -> NDArray[np.int64] | NDArray[np.float32] | None:
    """Labels as numbers: `(rows,)` int64 for a classification, float32 for a regression; None without labels.

    For a multi-label task, multi-hot `(rows, labels)` int64.

    Raises:
        LabelError: An unknown label (`label_names`), or a score that is not finite; the message names the place.
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
    """Rows of a single label each, one per label of every row, and the numbers of their original rows."""
    row_of = [number for number, own in enumerate(sets) for _ in own]
    labels, places = [label for own in sets for label in own], [rows.places[number] for number in row_of]
    return row_of, replace(rows, labels=labels, places=places, sets=None)


def _score(rows: Rows, at: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise LabelError(f"{rows.key}: '{rows.name}' {rows.places[at]}: score '{text}' is not a finite number")
    return value


def _label_set(value: Any, separator: str, where: str) -> tuple[str, ...]:
    """The set of labels of a row: of a list of names or numbers, or of text, whose blank parts are no labels."""
    if value is None:
        raise LabelError(f"{where} is null; use the empty list for a row without labels")
    if isinstance(value, list | tuple):
        names = [_name(entry, f"{where}, entry {number},").strip() for number, entry in enumerate(value, 1)]
    elif isinstance(value, str):
        names = [name for part in value.split(separator) if (name := part.strip())]
    else:
        names = [_name(value, where)]
    if "" in names or len(set(names)) < len(names):
        raise LabelError(f"{where} is {_shown(value)}: a label is blank or occurs twice; list each label once")
    return tuple(names)


def _name(value: Any, where: str, hint_for_list: str = "") -> str:
    """A label or a score as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    hint = hint_for_list if isinstance(value, list | tuple) else ""
    raise LabelError(f"{where} is {_shown(value)}; a label must be text or a number{hint}")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:60]}..."
