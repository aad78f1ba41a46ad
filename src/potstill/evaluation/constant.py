"""The metric of a constant prediction, which a trained model should exceed."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from potstill.data.tasks.entities import OUTSIDE
from potstill.data.tasks.labels import CLASSIFICATION, MULTI_LABEL, REGRESSION, TOKENS, Task
from potstill.evaluation.evaluators import Evaluator

log = logging.getLogger(__name__)

BETTER = "val/better_than_constant"
_NAMES = {REGRESSION: "mean", MULTI_LABEL: "constant"}  # prefix of the metric; otherwise "majority"


def compared_with_constant(
    task: Task,
    evaluator: Evaluator,
    predicted: tuple[Tensor, Tensor, Tensor],
    metrics: Mapping[str, float],
    end: str = "",
) -> dict[str, float | bool]:
    """The monitored metric of a constant prediction, and whether the student is better; warns if it is not.

    Args:
        task: with the monitored metric.
        evaluator: evaluator of the set.
        predicted: units, logits and labels of the whole set.
        metrics: of the student, as logged.
        end: suffix of the metrics.

    Returns:
        `val/majority_<metric>` of the most frequent class, or of `O` for entities; `val/mean_<metric>` of the mean
        score; `val/constant_<metric>` of the best set of labels; and `val/better_than_constant`. Empty without a
        meaningful constant: spans, or labels that are all equal.
    """
    numbers, logits, labels = predicted
    key = f"val/{task.monitor}{end}"
    if key not in metrics or (constant := constant_logits(task, logits, labels)) is None:
        return {}
    name = f"val/{_NAMES.get(task.kind, 'majority')}_{task.monitor}{end}"
    value = evaluator.metrics(numbers, constant, labels)[task.monitor]
    better = metrics[key] < value if task.mode == "min" else metrics[key] > value
    if not better:
        log.warning(
            "%s=%.4g: not better than a constant prediction (%s=%.4g); try another optimizer.lr, or train longer",
            key, metrics[key], name, value,
        )  # fmt: skip
    return {name: value, f"{BETTER}{end}": better}


def constant_logits(task: Task, logits: Tensor, labels: Tensor) -> Tensor | None:
    """Logits of a constant prediction; None without a meaningful one."""
    if task.kind == MULTI_LABEL:
        return _constant_set(task, logits, labels)
    known = labels[~labels.isnan() & (labels >= 0)] if task.kind != REGRESSION else labels[~labels.isnan()]
    if task.kind not in (CLASSIFICATION, REGRESSION, TOKENS) or labels.ndim != 1 or known.unique().numel() < 2:
        return None
    if task.kind == REGRESSION:
        return known.mean().to(logits).expand_as(logits)
    number = int(known.long().bincount().argmax())
    if task.kind == TOKENS and OUTSIDE in task.labels:
        number = task.labels.index(OUTSIDE)
    constant = torch.zeros_like(logits)
    constant[:, number] = 1.0
    return constant


def _constant_set(task: Task, logits_NC: Tensor, labels_NC: Tensor) -> Tensor | None:
    """Logits of a constant set of labels; None without labels, or if all rows have the same set."""
    if labels_NC.ndim != 2 or labels_NC.isnan().any():
        return None
    gold_NC = labels_NC.bool()
    if bool((gold_NC == gold_NC[0]).all()):
        return None
    chosen_C = _best_set(task.monitor, gold_NC).to(logits_NC)
    return (2 * chosen_C - 1).expand_as(logits_NC)


def _best_set(metric: str, gold_NC: Tensor) -> Tensor:
    """The constant set of labels with the best metric, `(labels,)` bool."""
    if metric == "accuracy":  # exact match of sets
        sets, counts = gold_NC.unique(dim=0, return_counts=True)
        return sets[counts.argmax()]
    counts_C = gold_NC.sum(0)
    if metric == "f1_macro":  # the F1 of a label that is never predicted is 0
        return counts_C > 0
    # For each number of labels the most frequent ones have the largest F1.
    ordered_C, order_C = counts_C.sort(descending=True)
    predicted_C = len(gold_NC) * torch.arange(1, len(counts_C) + 1, device=counts_C.device)
    best = int((2 * ordered_C.cumsum(0) / (predicted_C + counts_C.sum())).argmax())
    return torch.zeros_like(counts_C, dtype=torch.bool).index_fill(0, order_C[: best + 1], True)
