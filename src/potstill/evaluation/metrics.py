"""Metrics of task models, computed over a whole set at once, and the predictions that they are computed from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional import pearson_corrcoef
from torchmetrics.functional.classification import multiclass_confusion_matrix
from torchmetrics.utilities.data import dim_zero_cat

from potstill.data.tasks.labels import MULTI_LABEL, REGRESSION, Task
from potstill.evaluation.bootstrap import Metric as RowsMetric


class Predictions(Metric):
    """Logits, labels and numbers of the units of a set, gathered over all ranks and put into the order of the numbers.

    A unit is a row, a word or a window, whatever a judge judges.
    """

    full_state_update = False
    rows: list[Tensor]
    logits: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("rows", "logits", "labels"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, rows: Tensor, logits: Tensor, labels: Tensor | None) -> None:
        """Add a batch.

        Args:
            rows: `(batch,)` numbers.
            logits: `(batch, ...)`.
            labels: `(batch, ...)`; None where there are none.
        """
        self.rows.append(rows)
        self.logits.append(logits.float())
        # Labels and scores alike, so that a rank without a batch has the same kinds of tensors.
        none = torch.full_like(rows, torch.nan, dtype=torch.float64)
        self.labels.append(none if labels is None else labels.double())

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows in order, their logits and labels.

        Returns:
            `(units,)` numbers, `(units, ...)` float32 logits, and `(units, ...)` float64 labels, not a number where
            there is none.
        """
        rows, logits, labels = (dim_zero_cat(state) for state in (self.rows, self.logits, self.labels))
        order = rows.argsort()
        return rows[order], logits[order], labels[order]

    def gathered(self) -> tuple[Tensor, Tensor, Tensor]:
        """As `compute`, of a single unit, too: torchmetrics drops the dimensions of a tensor of one element."""
        rows, logits, labels = self.compute()
        one_by_one = logits.reshape(1, 1) if logits.ndim == 0 else logits
        return rows.reshape(-1), one_by_one, labels.reshape(-1) if labels.ndim == 0 else labels


def task_metrics(task: Task, logits_NC: Tensor, labels_N: Tensor) -> dict[str, float]:
    """The metrics of a task by name.

    Args:
        task: says which, and how many labels there are.
        logits_NC: `(rows, labels)`, or `(rows, 1)` scores.
        labels_N: `(rows,)` numbers of labels, or scores; `(rows, labels)` 0 and 1 of a task with sets of labels.
    """
    if task.kind == MULTI_LABEL:
        predicted_NC, gold_NC = present(logits_NC), labels_N.bool()
        return {name: LABEL_SETS[name](predicted_NC, gold_NC) for name in task.metrics}
    if task.kind == REGRESSION:
        scores, gold = logits_NC[:, 0].double(), labels_N.double()
        return {name: REGRESSIONS[name](scores, gold) for name in task.metrics}
    confusion = multiclass_confusion_matrix(logits_NC.argmax(-1), labels_N.long(), num_classes=task.outputs)
    return {name: CLASSIFICATIONS[name](confusion.double()) for name in task.metrics}


def metric_of(task: Task, name: str, logits_NC: Tensor, labels_N: Tensor) -> RowsMetric:
    """One metric as a function of the rows that count, which may come up several times: what a bootstrap draws.

    Args:
        task: has the metric.
        name: which.
        logits_NC: as `task_metrics`.
        labels_N: as `task_metrics`.
    """
    if task.kind == REGRESSION:
        scores, gold = logits_NC[:, 0].double(), labels_N.double()
        return lambda rows: REGRESSIONS[name](scores[rows], gold[rows])
    if task.kind == MULTI_LABEL:
        predicted_NC, gold_NC = present(logits_NC), labels_N.bool()
        return lambda rows: LABEL_SETS[name](predicted_NC[rows], gold_NC[rows])
    # A pair of labels is a cell of the confusion matrix.
    cells, n = labels_N.long() * task.outputs + logits_NC.argmax(-1), task.outputs
    return lambda rows: CLASSIFICATIONS[name](cells[rows].bincount(minlength=n * n).view(n, n).double())


def present(logits_NC: Tensor) -> Tensor:
    """Which labels a row has, `(rows, labels)` bool: those whose sigmoid is above one half."""
    return logits_NC > 0


def exact_match(predicted_NC: Tensor, gold_NC: Tensor) -> float:
    """Share of the rows whose set of labels is predicted, none missing and none added."""
    return float((predicted_NC == gold_NC).all(dim=1).double().mean())


def set_f1_micro(predicted_NC: Tensor, gold_NC: Tensor) -> float:
    """F1 over all labels of all rows; 0 where there is none and none is predicted."""
    hits, both = (predicted_NC & gold_NC).sum(), predicted_NC.sum() + gold_NC.sum()
    return _share(2 * hits.double(), both)


def set_f1_macro(predicted_NC: Tensor, gold_NC: Tensor) -> float:
    """Mean over all labels of their F1; 0 for one that no row has and that is never predicted, as scikit-learn's."""
    hits, both = (predicted_NC & gold_NC).sum(0), predicted_NC.sum(0) + gold_NC.sum(0)
    return float((2 * hits.double() / both.clamp(min=1)).mean())


def accuracy(confusion: Tensor) -> float:
    """Share of the rows whose label is predicted, of a `(labels, labels)` matrix of gold by predicted."""
    return _share(confusion.trace(), confusion.sum())


def f1(confusion: Tensor) -> float:
    """F1 of the second of two labels, as GLUE has it."""
    return float(_f1_each(confusion)[1])


def f1_macro(confusion: Tensor) -> float:
    """Mean F1 over the labels that occur, in the data or among the predictions."""
    occurs = (confusion.sum(0) + confusion.sum(1)) > 0
    return float(_f1_each(confusion)[occurs].mean())


def matthews(confusion: Tensor) -> float:
    """Matthews' correlation (Gorodkin 2004 for more than two labels); 0 where one label is all there is."""
    gold, predicted, total = confusion.sum(1), confusion.sum(0), confusion.sum()
    covariance = confusion.trace() * total - gold @ predicted
    spread = (total**2 - predicted @ predicted) * (total**2 - gold @ gold)
    return _share(covariance, spread.sqrt())


def pearson(scores: Tensor, gold: Tensor) -> float:
    """Pearson's correlation; 0 where the scores are all alike."""
    if len(gold) < 2 or scores.std() == 0 or gold.std() == 0:
        return 0.0
    return float(pearson_corrcoef(scores, gold))


def spearman(scores: Tensor, gold: Tensor) -> float:
    """Spearman's correlation: Pearson's of the ranks, ties sharing their mean."""
    return pearson(_ranks(scores), _ranks(gold))


def mse(scores: Tensor, gold: Tensor) -> float:
    """Mean squared error."""
    return float((scores - gold).square().mean())


CLASSIFICATIONS: dict[str, Callable[[Tensor], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "f1_macro": f1_macro,
    "matthews": matthews,
}
LABEL_SETS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "f1_micro": set_f1_micro,
    "f1_macro": set_f1_macro,
    "accuracy": exact_match,
}
REGRESSIONS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "pearson": pearson,
    "spearman": spearman,
    "mse": mse,
}


def _f1_each(confusion: Tensor) -> Tensor:
    hits, both = confusion.diagonal(), confusion.sum(0) + confusion.sum(1)
    return torch.where(both > 0, 2 * hits / both.clamp(min=1), 0.0)


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if float(whole) else 0.0


def _ranks(values: Tensor) -> Tensor:
    _, place, count = values.unique(sorted=True, return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count - 1) / 2)[place]
