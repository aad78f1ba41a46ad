"""How a student of a task learns from its teachers' predictions: which loss, at which temperatures, of which mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
from potstill.objectives.schedules import cwsm_difficulty, flsw_difficulty, row_temperatures

_LOSSES = {
    "kl": kl_divergence,
    "cross_entropy": soft_cross_entropy,
    "mse": softened_logit_mse,
    "reverse_kl": reverse_kl_divergence,
}


@dataclass(frozen=True)
class SoftTargets:
    """The loss between a student's and a teacher's distributions over labels.

    Attributes:
        loss: `kl` or `reverse_kl`, times T^2; `cross_entropy` without T^2, as the toolkit's; `mse` of the logits / T,
            mean over labels; `jsd`, the generalised Jensen-Shannon divergence times T^2.
        beta: the teacher's share of the mixture of `jsd`.
        temperature_schedule: `constant`; `flsw` or `cwsm`, one temperature per row, lower for hard rows.
        strength: how far temperatures move from the base.
        gamma: of `flsw`.
        shift: let the teacher's highest logit and that of the label change places where the teacher is wrong.

    Source: Yang et al. 2020 (TextBrewer, arXiv:2002.12620), section 3; Wen et al. 2019 (arXiv:1911.07471) for the
    temperatures and the shift; Agarwal et al. 2024 (arXiv:2306.13649) for `reverse_kl` and `jsd`.
    """

    loss: str = "kl"
    beta: float = 0.5
    temperature_schedule: str = "constant"
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
        """Sum over rows by the denominator, a scalar.

        The mean difficulty that moves the temperatures is that of these rows, so it depends on the micro-batch.

        Args:
            student_NC: (rows, labels) logits.
            teacher_NC: (rows, labels) logits.
            temperature: T of a row of mean difficulty.
            labels_N: (rows,) numbers of the labels; None where `shift` has nothing to shift by.
            denominator: rows of the whole step.
        """
        if self.shift and labels_N is not None:
            teacher_NC = shift_probabilities(teacher_NC, labels_N.long())
        by_row = self._temperatures(student_NC, teacher_NC, temperature)
        if self.loss == "jsd":
            return generalized_js_divergence(
                student_NC, teacher_NC, by_row, beta=self.beta, denominator=denominator
            )
        return _LOSSES[self.loss](student_NC, teacher_NC, by_row, denominator=denominator)

    def _temperatures(self, student_NC: Tensor, teacher_NC: Tensor, base: float) -> Tensor | float:
        if self.temperature_schedule == "constant" or not len(student_NC):
            return base
        if self.temperature_schedule == "flsw":
            difficulty_N = flsw_difficulty(student_NC, teacher_NC, gamma=self.gamma)
        else:
            difficulty_N = cwsm_difficulty(student_NC)
        return row_temperatures(difficulty_N, base, beta=self.strength)


@dataclass(frozen=True)
class TeacherMean:
    """Combined prediction of several teachers of one task.

    Attributes:
        weights: a teacher each, of any positive sum; empty: equal ones.
        of: `logits`, or `probabilities` at the temperature of the soft targets.
    """

    weights: tuple[float, ...] = ()
    of: str = "logits"

    def __call__(self, logits: Sequence[Tensor], temperature: float) -> Tensor:
        """The logits of the mean, float32 at least.

        Args:
            logits: of each teacher, (rows, labels).
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
