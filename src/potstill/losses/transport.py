"""Many-to-many layer matching by the earth mover's distance: each student layer learns from those that suit it.

The layers of each model have equal weights that add up to 1. The cheapest plan to move the student's weights to the
teacher's, where the cost between two layers is their loss, gives the weight of each pair of layers.

POT's exact solver (extra `emd`) finds the plan on the CPU in float64, without a gradient. That is exact: where the best
plan is unique, the gradient of the distance is that of the costs under it.

Source: Li et al. 2020 (BERT-EMD, arXiv:2010.06133), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from potstill.runtime.packages import require_packages


def layer_costs(
    student_layers: Sequence[Tensor], teacher_layers: Sequence[Tensor], loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The loss of every student layer against every teacher layer.

    Args:
        student_layers: one tensor per layer: hidden states, attention scores, or another input of the loss.
        teacher_layers: one tensor per layer.
        loss: scalar loss of (student, teacher), such as `hidden_mse` with its mask and denominator bound.

    Returns:
        (student layers, teacher layers), with gradient.
    """
    return torch.stack([torch.stack([loss(s, t) for t in teacher_layers]) for s in student_layers])


def transport_plan(costs_ST: Tensor) -> Tensor:
    """The weight that goes from each student layer to each teacher layer at the least total cost.

    Args:
        costs_ST: (student layers, teacher layers), on any device, with which this synchronizes.

    Returns:
        (student layers, teacher layers) in the dtype and on the device of the costs, without gradient. Rows are equal
        in sum, columns too, and everything adds up to 1. If a cost is not finite, all entries are equal: then the
        distance is not finite either, which the run detects.

    Raises:
        PackageError: POT is not installed.
        RuntimeError: the solver found no optimum.
    """
    require_packages("loss=emd", "emd", "ot")
    from ot import emd  # takes a second or more to import

    costs = costs_ST.detach().double().cpu().numpy()
    student, teacher = (np.full(layers, 1 / layers) for layers in costs.shape)
    if np.isfinite(costs).all():
        plan, log = emd(student, teacher, np.ascontiguousarray(costs), log=True)
        if log["warning"]:
            raise RuntimeError(f"optimal transport of {costs.shape} layers: {log['warning']}")
    else:
        plan = np.outer(student, teacher)
    return torch.as_tensor(plan).to(costs_ST)


def earth_movers_distance(costs_ST: Tensor, plan_ST: Tensor) -> Tensor:
    """Total cost of a plan, a scalar with the gradient of the costs.

    There is no mean over positions: the costs already have their denominator. The plan of a micro-batch is that of its
    own costs, so another split of a step may choose other plans unless all micro-batches share one.

    Args:
        costs_ST: (student layers, teacher layers), with gradient.
        plan_ST: (student layers, teacher layers) of `transport_plan`.
    """
    return (plan_ST.detach() * costs_ST).sum()
