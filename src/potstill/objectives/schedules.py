"""Temperatures by row and weights by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import lr_scheduler

from potstill.errors import ConfigError
from potstill.losses.soft_targets import at_least_float32

# The published code adds these to a norm and to a probability before dividing by them.
_NORM_FLOOR, _PROBABILITY_FLOOR = 1e-4, 1e-3

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
}


@torch.no_grad()
def flsw_difficulty(student_logits_NV: Tensor, teacher_logits_NV: Tensor, *, gamma: float = 1.0) -> Tensor:
    """How far the student's logits point from the teacher's: (1 - cosine)^gamma, as in the focal loss.

    Args:
        student_logits_NV: (rows, labels).
        teacher_logits_NV: (rows, labels).
        gamma: higher sets hard rows apart from easy ones.

    Returns:
        (rows,), between 0 and 2^gamma, float32 at least, without gradient.

    Source: Wen et al. 2019 (Preparing Lessons, arXiv:1911.07471), dynamic temperature distillation with
    focal loss style weights.
    """
    student_NV, teacher_NV = at_least_float32(student_logits_NV), at_least_float32(teacher_logits_NV)
    lengths_N = (student_NV.norm(dim=-1) + _NORM_FLOOR) * (teacher_NV.norm(dim=-1) + _NORM_FLOOR)
    return (1 - (student_NV * teacher_NV).sum(dim=-1) / lengths_N).clamp_min(0) ** gamma


@torch.no_grad()
def cwsm_difficulty(student_logits_NV: Tensor) -> Tensor:
    """How unsure the student is: 1 / its highest probability at temperature 1.

    Args:
        student_logits_NV: (rows, labels).

    Returns:
        (rows,), from 1 to the number of labels, float32 at least, without gradient.

    Source: Wen et al. 2019 (Preparing Lessons, arXiv:1911.07471), dynamic temperature distillation with
    confidence weighted by student max.
    """
    highest_N = at_least_float32(student_logits_NV).softmax(dim=-1).amax(dim=-1)
    return 1 / (highest_N + _PROBABILITY_FLOOR)


def row_temperatures(
    difficulty_N: Tensor,
    base: float,
    *,
    beta: float = 1.0,
    mean: Tensor | float | None = None,
    lowest: float = 0.1,
) -> Tensor:
    """Temperatures by row: hard rows get sharper targets than the base, easy rows smoother ones.

    T = base + beta * (mean difficulty - difficulty).

    Args:
        difficulty_N: (rows,) of `flsw_difficulty` or `cwsm_difficulty`.
        base: temperature of a row of mean difficulty.
        beta: strength.
        mean: mean difficulty; None: that of these rows. Hand in the step's, so that temperatures do not depend on how
            a step is cut into micro-batches.
        lowest: no temperature is lower (ours: cwsm's difficulty goes up to the number of labels, and a temperature
            below 0 would turn the targets around).

    Returns:
        (rows,).

    Source: Wen et al. 2019 (Preparing Lessons, arXiv:1911.07471), dynamic temperature distillation.
    """
    mean = difficulty_N.mean() if mean is None else mean
    return (base + beta * (mean - difficulty_N)).clamp_min(lowest)


@dataclass(frozen=True)
class WeightSchedule:
    """A term's weight at each step: `start` at the first one, `end` from `steps` on.

    Attributes:
        kind: linear or cosine. Growth has start < end, decay start > end.
        start: weight at the beginning.
        end: weight at the end.
        steps: optimizer steps from start to end.

    Raises:
        ConfigError: an unknown kind, or no steps.

    Source: Yang et al. 2020 (TextBrewer, arXiv:2002.12620), weight schedulers.
    """

    kind: str
    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        if self.kind not in SHAPES:
            raise ConfigError(f"kind={self.kind}: {', '.join(SHAPES)}")
        if self.steps < 1:
            raise ConfigError(f"steps={self.steps}: kind={self.kind} needs 1 or more")

    @property
    def last(self) -> float:
        """The weight after all steps."""
        return self.end

    def __call__(self, step: int) -> float:
        """The weight at an optimizer step, counted from 0."""
        return self.start + (self.end - self.start) * SHAPES[self.kind](min(step / self.steps, 1.0))


class TorchSchedule:
    """A term's weight as one of torch's schedules of learning rates moves it, step by step from `start`.

    It is a function of the step: a resumed run replays the steps before, some microseconds each.

    Args:
        name: class of `torch.optim.lr_scheduler`.
        start: the weight that it moves.
        arguments: of the class, but for the optimizer.

    Raises:
        ConfigError: arguments that the class does not take.
    """

    def __init__(self, name: str, start: float, arguments: Mapping[str, Any]):
        self.start = start
        self._optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=start)
        try:
            self._schedule = getattr(lr_scheduler, name)(self._optimizer, **arguments)
        except (TypeError, ValueError) as fault:
            raise ConfigError(f"schedule_args={dict(arguments)}: not of schedule={name} ({fault})") from fault
        self._weights = [self._now()]

    @property
    def last(self) -> float:
        """The weight that it moves: where that ends depends on the number of steps."""
        return self.start

    def __call__(self, step: int) -> float:
        """The weight at an optimizer step, counted from 0."""
        while len(self._weights) <= step:
            self._optimizer.step()
            self._schedule.step()
            self._weights.append(self._now())
        return self._weights[step]

    def _now(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])


Schedule = WeightSchedule | TorchSchedule


def weight_schedule(
    kind: str, start: float, end: float | None, steps: int, arguments: Mapping[str, Any]
) -> Schedule:
    """The schedule of a term, from its keys; a constant one has none."""
    if kind in SHAPES:
        return WeightSchedule(kind, start, float(end or 0.0), steps)
    return TorchSchedule(kind, start, arguments)
