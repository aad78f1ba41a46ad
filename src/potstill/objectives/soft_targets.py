"""Soft targets of task students: the loss, its temperatures, and the mean of several teachers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.losses.soft_targets import (
    at_least_float32,
    generalized_js_divergence,
    kl_divergence,
    reverse_kl_divergence,
    shift_probabilities,
    soft_cross_entropy,
    softened_logit_mse,
)

_LOSSES = {
    "kl": kl_divergence,
    "cross_entropy": soft_cross_entropy,
    "mse": softened_logit_mse,
    "reverse_kl": reverse_kl_divergence,
}
# The published code adds these to a norm and to a probability before dividing by them.
_NORM_FLOOR, _PROBABILITY_FLOOR = 1e-4, 1e-3


@dataclass(frozen=True)
class SoftTargets:
    """The loss between a student's and a teacher's distributions over labels.

    Attributes:
        loss: `kl` or `reverse_kl`, times T^2; `cross_entropy` without T^2, as the toolkit's; `mse` of the logits / T,
            mean over labels; `jsd`, the generalised Jensen-Shannon divergence times T^2; or a function of student
            logits, teacher logits (rows, labels) and temperature that returns a mean over rows.
        beta: the teacher's share of the mixture of `jsd`.
        temperature_schedule: `constant`; `flsw` or `cwsm`, one temperature per row, lower for hard rows; or a function
            of the same arguments that returns one temperature per row, or one.
        strength: factor of the changes of temperatures.
        gamma: exponent of `flsw`.
        shift: swap the teacher's highest logit with that of the label if the teacher is wrong.

    Source: Yang et al. 2020 (TextBrewer, arXiv:2002.12620), section 3; Wen et al. 2019 (arXiv:1911.07471) for the
    temperatures and the shift; Agarwal et al. 2024 (arXiv:2306.13649) for `reverse_kl` and `jsd`.
    """

    loss: str | Callable[..., Tensor] = "kl"
    beta: float = 0.5
    temperature_schedule: str | Callable[..., Any] = "constant"
    strength: float = 1.0
    gamma: float = 1.0
    shift: bool = False

    def __call__(
        self,
        student_NC: Tensor,
        teacher_NC: Tensor,
        temperature: float,
        *,
        labels_N: Tensor | None = None,
        denominator: float,
    ) -> Tensor:
        """Sum over rows divided by the denominator, a scalar.

        Temperatures depend on the mean difficulty of these rows, that is, of the micro-batch.

        Args:
            student_NC: (rows, labels) logits.
            teacher_NC: (rows, labels) logits.
            temperature: T of a row of mean difficulty.
            labels_N: (rows,) indices of the labels; None for no shift.
            denominator: number of rows of the whole step.
        """
        if self.shift and labels_N is not None:
            teacher_NC = shift_probabilities(teacher_NC, labels_N.long())
        by_row = self._temperatures(student_NC, teacher_NC, temperature)
        if callable(self.loss):
            rows = len(student_NC)  # the mean of none is not a number
            return (self.loss(student_NC, teacher_NC, by_row) if rows else student_NC.sum()) * (rows / denominator)
        if self.loss == "jsd":
            return generalized_js_divergence(student_NC, teacher_NC, by_row, beta=self.beta, denominator=denominator)
        return _LOSSES[self.loss](student_NC, teacher_NC, by_row, denominator=denominator)

    def _temperatures(self, student_NC: Tensor, teacher_NC: Tensor, base: float) -> Tensor | float:
        if self.temperature_schedule == "constant" or not len(student_NC):
            return base
        if callable(self.temperature_schedule):
            with torch.no_grad():
                return self.temperature_schedule(student_NC, teacher_NC, base)
        if self.temperature_schedule == "flsw":
            difficulty_N = flsw_difficulty(student_NC, teacher_NC, gamma=self.gamma)
        else:
            difficulty_N = cwsm_difficulty(student_NC)
        return row_temperatures(difficulty_N, base, beta=self.strength)


@dataclass(frozen=True)
class TeacherMean:
    """Combined prediction of several teachers of one task.

    Attributes:
        weights: one weight per teacher; empty for equal weights.
        of: `logits`, or `probabilities` at the temperature of the soft targets.
    """

    weights: tuple[float, ...] = ()
    of: str = "logits"

    def __call__(self, logits: Sequence[Tensor], temperature: float) -> Tensor:
        """The logits of the mean, float32 at least.

        Args:
            logits: (rows, labels) of each teacher.
            temperature: T; the softmax of the result / T is the mean of the teachers' softmax at T.
        """
        if len(logits) == 1:
            return logits[0]
        weights = self.weights or (1.0,) * len(logits)
        shares = [weight / sum(weights) for weight in weights]
        if self.of == "logits":
            return sum(
                (share * at_least_float32(one) for share, one in zip(shares, logits, strict=True)),
                torch.zeros((), device=logits[0].device),
            )
        spread = torch.stack([(at_least_float32(one) / temperature).log_softmax(-1) for one in logits])
        log_shares = spread.new_tensor(shares).log()[:, None, None]
        return temperature * (spread + log_shares).logsumexp(0)


@torch.no_grad()
def flsw_difficulty(student_logits_NV: Tensor, teacher_logits_NV: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Difficulty of rows by the angle between student and teacher logits: (1 - cosine)^gamma, as in the focal loss.

    Args:
        student_logits_NV: (rows, labels).
        teacher_logits_NV: (rows, labels).
        gamma: higher values separate hard rows from easy ones.

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
    """Difficulty of rows by the confidence of the student: 1 / its highest probability at temperature 1.

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
    difficulty_N: Tensor, base: float, *, beta: float = 1.0, mean: Tensor | float | None = None, lowest: float = 0.1
) -> Tensor:
    """Temperatures by row: lower ones, with sharper targets, for hard rows.

    T = base + beta * (mean difficulty - difficulty).

    Args:
        difficulty_N: (rows,) of `flsw_difficulty` or `cwsm_difficulty`.
        base: temperature of a row of mean difficulty.
        beta: strength.
        mean: mean difficulty; None: that of these rows. With that of the step, temperatures do not depend on the cut
            into micro-batches.
        lowest: lowest temperature. It is not in the paper: difficulties of cwsm are as high as the number of labels,
            and a temperature below 0 would invert the targets.

    Returns:
        (rows,).

    Source: Wen et al. 2019 (Preparing Lessons, arXiv:1911.07471), dynamic temperature distillation.
    """
    mean = difficulty_N.mean() if mean is None else mean
    return (base + beta * (mean - difficulty_N)).clamp_min(lowest)
