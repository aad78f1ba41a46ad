"""Many-to-many layer matching by the earth mover's distance: each student layer learns from those that suit it.

Layers have weights that add up to 1 on either side. The cheapest way to move the student's weights to the teacher's,
where moving between two layers costs their loss, says how much each pair of layers counts.

The plan is found by POT's exact solver (extra `emd`), on the CPU in float64; nothing flows through it. That is no
approximation: where the best plan is unique, the gradient of the distance is that of the costs under it.

Source: Li et al. 2020 (BERT-EMD, arXiv:2010.06133), section 3.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from potstill.errors import ConfigError


def layer_costs(
    student_layers: Sequence[Tensor],
    teacher_layers: Sequence[Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
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


def transport_plan(
    costs_ST: Tensor, student_weights_S: Tensor | None = None, teacher_weights_T: Tensor | None = None
) -> Tensor:
    """How much weight goes from each student layer to each teacher layer at the least total cost.

    Args:
        costs_ST: (student layers, teacher layers), of any device; it waits for the costs.
        student_weights_S: (student layers,), not negative, of any positive sum; None: equal weights.
        teacher_weights_T: (teacher layers,), as `student_weights_S`.

    Returns:
        (student layers, teacher layers) in the dtype and on the device of the costs, without gradient. Rows add up to
        the student's weights, columns to the teacher's, everything to 1. Costs that are NaN get the plan of
        weights that are independent: then the distance is NaN too, which the run detects.

    Raises:
        ConfigError: POT is not installed.
        RuntimeError: the solver found no optimum.
    """
    require_pot()
    from ot import emd  # takes a second or more to import

    costs = costs_ST.detach().double().cpu().numpy()
    student = _shares(student_weights_S, costs.shape[0])
    teacher = _shares(teacher_weights_T, costs.shape[1])
    if np.isfinite(costs).all():
        plan, log = emd(student, teacher, np.ascontiguousarray(costs), log=True)
        if log["warning"]:
            raise RuntimeError(f"optimal transport of {costs.shape} layers: {log['warning']}")
    else:
        plan = np.outer(student, teacher)
    return torch.as_tensor(plan).to(costs_ST)


def earth_movers_distance(costs_ST: Tensor, plan_ST: Tensor) -> Tensor:
    """Total cost of a plan, a scalar with the gradient of the costs.

    No mean over positions: the costs are what is divided by a denominator. The plan of a micro-batch is that of its own
    costs, so a step that is cut otherwise may choose other plans unless it is given one for all.

    Args:
        costs_ST: (student layers, teacher layers), with gradient.
        plan_ST: (student layers, teacher layers) of `transport_plan`.
    """
    return (plan_ST.detach() * costs_ST).sum()


def require_pot() -> None:
    """Say what to install where POT is missing.

    Raises:
        ConfigError: POT is not installed.
    """
    if importlib.util.find_spec("ot") is None:
        raise ConfigError("earth mover's distance: POT is not installed; pip install 'potstill[emd]'")


def _shares(weights: Tensor | None, layers: int) -> np.ndarray:
    if weights is None:
        return np.full(layers, 1 / layers)
    shares = weights.detach().double().cpu().numpy()
    return shares / shares.sum()
