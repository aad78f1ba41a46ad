"""Metrics of task models over a whole set, and the predictions that they are computed from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional import pearson_corrcoef
from torchmetrics.utilities.data import dim_zero_cat

from potstill.data.tasks.labels import MULTI_LABEL, REGRESSION, Task
from potstill.evaluation.bootstrap import Metric as RowsMetric


class Predictions(Metric):
    """Indices, logits and labels of the units (rows, words or windows) of a set, gathered over all ranks and sorted."""

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
            rows: `(batch,)` indices.
            logits: `(batch, ...)`.
            labels: `(batch, ...)`, or None.
        """
        self.rows.append(rows)
        self.logits.append(logits.float())
        # One type for labels and scores, also on a rank without a batch.
        none = torch.full_like(rows, torch.nan, dtype=torch.float64)
        self.labels.append(none if labels is None else labels.double())

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sorted indices `(units,)`, float32 logits `(units, ...)` and float64 labels `(units, ...)`, or NaN."""
        rows, logits, labels = (dim_zero_cat(state) for state in (self.rows, self.logits, self.labels))
        order = rows.argsort()
        return rows[order], logits[order], labels[order]

    def gathered(self) -> tuple[Tensor, Tensor, Tensor]:
        """As `compute`, with the dimensions that torchmetrics drops from tensors of one element."""
        rows, logits, labels = self.compute()
        one_by_one = logits.reshape(1, 1) if logits.ndim == 0 else logits
        return rows.reshape(-1), one_by_one, labels.reshape(-1) if labels.ndim == 0 else labels


def task_metrics(task: Task, logits_NC: Tensor, labels_N: Tensor) -> dict[str, float]:
    """The metrics of a task by name.

    Args:
        task: with its metrics and number of labels.
        logits_NC: `(rows, labels)`, or `(rows, 1)` scores.
        labels_N: `(rows,)` label indices or scores; `(rows, labels)` multi-hot for sets of labels.
    """
    rows = np.arange(len(labels_N))
    return {name: metric_of(task, name, logits_NC, labels_N)(rows) for name in task.metrics}


def metric_of(task: Task, name: str, logits_NC: Tensor, labels_N: Tensor) -> RowsMetric:
    """One metric as a function of row indices, which may repeat, for the bootstrap; arguments as `task_metrics`."""
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
    """Predicted sets of labels, `(rows, labels)` bool: sigmoid above one half."""
    return logits_NC > 0


def exact_match(predicted_NC: Tensor, gold_NC: Tensor) -> float:
    """Share of the rows whose whole set of labels is predicted."""
    return float((predicted_NC == gold_NC).all(dim=1).double().mean())


def set_f1_micro(predicted_NC: Tensor, gold_NC: Tensor) -> float:
    """F1 over all labels of all rows; 0 without gold and predicted labels."""
    hits, both = (predicted_NC & gold_NC).sum(), predicted_NC.sum() + gold_NC.sum()
    return _share(2 * hits.double(), both)


def set_f1_macro(predicted_NC: Tensor, gold_NC: Tensor) -> float:
    """Mean F1 over all labels; 0 for one without gold and predicted rows, as in scikit-learn."""
    hits, both = (predicted_NC & gold_NC).sum(0), predicted_NC.sum(0) + gold_NC.sum(0)
    return float((2 * hits.double() / both.clamp(min=1)).mean())


def accuracy(confusion: Tensor) -> float:
    """Share of correct rows, from a `(labels, labels)` confusion matrix of gold by predicted."""
    return _share(confusion.trace(), confusion.sum())


def f1(confusion: Tensor) -> float:
    """F1 of the second of two labels, as in GLUE."""
    return float(_f1_each(confusion)[1])


def f1_macro(confusion: Tensor) -> float:
    """Mean F1 over the labels that occur in the data or among the predictions."""
    occurs = (confusion.sum(0) + confusion.sum(1)) > 0
    return float(_f1_each(confusion)[occurs].mean())


def matthews(confusion: Tensor) -> float:
    """Matthews' correlation (Gorodkin 2004 for more than two labels); 0 if only one label occurs."""
    gold, predicted, total = confusion.sum(1), confusion.sum(0), confusion.sum()
    covariance = confusion.trace() * total - gold @ predicted
    spread = (total**2 - predicted @ predicted) * (total**2 - gold @ gold)
    return _share(covariance, spread.sqrt())


def pearson(scores: Tensor, gold: Tensor) -> float:
    """Pearson's correlation; 0 if the scores are all equal."""
    if len(gold) < 2 or scores.std() == 0 or gold.std() == 0:
        return 0.0
    return float(pearson_corrcoef(scores, gold))


def spearman(scores: Tensor, gold: Tensor) -> float:
    """Spearman's correlation: Pearson's of the ranks, with mean ranks for ties."""
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
REGRESSIONS: dict[str, Callable[[Tensor, Tensor], float]] = {"pearson": pearson, "spearman": spearman, "mse": mse}


def _f1_each(confusion: Tensor) -> Tensor:
    hits, both = confusion.diagonal(), confusion.sum(0) + confusion.sum(1)
    return torch.where(both > 0, 2 * hits / both.clamp(min=1), 0.0)


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if float(whole) else 0.0


def _ranks(values: Tensor) -> Tensor:
    _, place, count = values.unique(sorted=True, return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count - 1) / 2)[place]
