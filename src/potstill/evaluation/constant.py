"""The metric of predicting the same of every example: what a model that has learnt something is above."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from potstill.data.tasks.entities import OUTSIDE
from potstill.data.tasks.labels import CLASSIFICATION, REGRESSION, TOKENS, Task
from potstill.evaluation.judges import Judge

log = logging.getLogger(__name__)

BETTER = "val/better_than_constant"


def compared_with_constant(
    task: Task,
    judge: Judge,
    predicted: tuple[Tensor, Tensor, Tensor],
    metrics: Mapping[str, float],
    end: str = "",
) -> dict[str, float | bool]:
    """The deciding metric of a prediction that is always the same, and whether a student is better; warns if it is not.

    Args:
        task: its monitor decides.
        judge: of the set.
        predicted: units, logits and labels of the whole set.
        metrics: of the student, as logged.
        end: of the names of metrics.

    Returns:
        `val/majority_<metric>` of the largest class, or of `O` where there are entities; `val/mean_<metric>` of the
        mean score; and `val/better_than_constant`. Empty where a constant cannot be compared: spans, several labels per
        example, labels that are all the same.
    """
    numbers, logits, labels = predicted
    key = f"val/{task.monitor}{end}"
    if key not in metrics or (constant := constant_logits(task, logits, labels)) is None:
        return {}
    name = f"val/{'mean' if task.kind == REGRESSION else 'majority'}_{task.monitor}{end}"
    value = judge.metrics(numbers, constant, labels)[task.monitor]
    better = metrics[key] < value if task.mode == "min" else metrics[key] > value
    if not better:
        log.warning(
            "%s=%.4g: no better than the same prediction for every example (%s=%.4g); the student has learnt nothing, "
            "try another optimizer.lr, or train longer",
            key, metrics[key], name, value,
        )  # fmt: skip
    return {name: value, f"{BETTER}{end}": better}


def constant_logits(task: Task, logits: Tensor, labels: Tensor) -> Tensor | None:
    """Logits of the same prediction for each unit; None where there is none to compare with."""
    known = labels[~labels.isnan() & (labels >= 0)] if task.kind != REGRESSION else labels[~labels.isnan()]
    if (
        task.kind not in (CLASSIFICATION, REGRESSION, TOKENS)
        or labels.ndim != 1
        or known.unique().numel() < 2
    ):
        return None
    if task.kind == REGRESSION:
        return known.mean().to(logits).expand_as(logits)
    number = int(known.long().bincount().argmax())
    if task.kind == TOKENS and OUTSIDE in task.labels:
        number = task.labels.index(OUTSIDE)
    constant = torch.zeros_like(logits)
    constant[:, number] = 1.0
    return constant
