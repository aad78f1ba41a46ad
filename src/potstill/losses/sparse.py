"""Soft targets with a few tokens per row, for `losses.vocabulary.vocabulary_losses`.

A teacher's distribution over a whole vocabulary is too large to be stored for every token. Two forms need a few tokens
only, and lose different things:

- `TopRows`: the k most likely tokens, and the probability of all others as one further class. Its divergence is the
  exact one of these k + 1 classes, so never above that of the whole vocabulary. The distribution within the
  teacher's tail is lost: the student's tail is moved as a whole.
- `SampledRows`: tokens drawn from the teacher, weighted such that the target is an unbiased estimate of it. Loss and
  gradient are right on average, whatever the student, and vary with the draws.

Source: Anshumann et al. 2025 (Sparse Logit Sampling, arXiv:2503.16870), for the tail as a class and for sampling.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from potstill.losses.fused import exponentiate
from potstill.losses.soft_targets import at_least_float32

# Below any mass of a tail that a loss can tell from 0, and whose inverse float32 holds.
_LEAST_MASS = 1e-30


@dataclass(frozen=True)
class _Rows:
    """Tensors whose first dimension is rows, and settings."""

    def of_rows(self, rows: slice) -> Self:
        """Some of the rows."""
        return self._map(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> Self:
        """The rows on a device."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return replace(self, **{name: change(value) for name, value in values if isinstance(value, Tensor)})


@dataclass(frozen=True)
class TopRows(_Rows):
    """The most likely tokens of each row; `softened` makes them from what is stored.

    Attributes:
        ids: (rows, k) int64, distinct within a row.
        log_probs: (rows, k) the teacher's log-probabilities at `temperature`.
        log_tail: (rows,) log of the probability of all other tokens at `temperature`, -inf where there is none. None:
            the tail is left out, and teacher and student are compared given that the token is one of the k.
        temperature: divides the logits of both.
        vocabulary_size: columns that the teacher has; a student's columns beyond them do not count.
    """

    ids: Tensor
    log_probs: Tensor
    log_tail: Tensor | None
    temperature: float
    vocabulary_size: int

    def divergence(self, student_RV: Tensor, coefficient: Tensor | float) -> Tensor:
        """`ce` by row; the student's logits become its gradient.

        With p over the k tokens and the tail t, and q the student's, the gradient in a logit is T * (q - p) at one of
        the k, and T * (q - p_t * q / q_t) elsewhere.
        """
        log_p_RK = self.log_probs.to(student_RV.dtype)
        logits_RK = student_RV.gather(1, self.ids) / self.temperature
        scale = self.temperature * coefficient
        if self.log_tail is None:
            log_q_RK = logits_RK.log_softmax(dim=1)
            student_RV.zero_().scatter_(1, self.ids, (log_q_RK.exp() - log_p_RK.exp()) * scale)
            return self.temperature**2 * _divergence(log_p_RK, log_q_RK).sum(dim=1)
        log_p_tail_R1 = self.log_tail.to(student_RV.dtype).unsqueeze(1)
        log_sum_R1, sum_R1 = exponentiate(student_RV, self.temperature)
        log_q_RK = logits_RK - log_sum_R1
        # Sum over the columns other than the k: one minus their sum would lose a small tail to rounding.
        tail_R1 = student_RV.scatter_(1, self.ids, 0.0).sum(dim=1, keepdim=True).clamp_min(_LEAST_MASS)
        log_q_tail_R1 = (tail_R1 / sum_R1).log()
        student_RV.mul_((1 / sum_R1 - log_p_tail_R1.exp() / tail_R1) * scale)
        student_RV.scatter_(1, self.ids, (log_q_RK.exp() - log_p_RK.exp()) * scale)
        tail_R = _divergence(log_p_tail_R1, log_q_tail_R1).squeeze(1)
        return self.temperature**2 * (_divergence(log_p_RK, log_q_RK).sum(dim=1) + tail_R)


@dataclass(frozen=True)
class SampledRows(_Rows):
    """Tokens drawn from each row's distribution.

    Attributes:
        ids: (rows, n) int64; padding of a row with fewer tokens has weight 0.
        weights: (rows, n) whose expectation, summed by token, is the teacher's probability at `temperature`.
        entropy: (rows,) of the teacher at `temperature`, nats; it turns the cross entropy into a divergence.
        temperature: divides the student's logits.
        vocabulary_size: columns that the teacher has; a student's columns beyond them do not count.
    """

    ids: Tensor
    weights: Tensor
    entropy: Tensor
    temperature: float
    vocabulary_size: int

    def divergence(self, student_RV: Tensor, coefficient: Tensor | float) -> Tensor:
        """`ce` by row; the student's logits become its gradient.

        With weights w and the student's q, the gradient in a logit is T * (q * sum of w - w). The weights of a row
        need not sum to 1; normalising them would bias the estimate.
        """
        weights_RS = self.weights.to(student_RV.dtype)
        mass_R1 = weights_RS.sum(dim=1, keepdim=True)
        logits_RS = student_RV.gather(1, self.ids) / self.temperature
        log_sum_R1, sum_R1 = exponentiate(student_RV, self.temperature)
        cross_entropy_R = (weights_RS * (log_sum_R1 - logits_RS)).sum(dim=1)
        scale = self.temperature * coefficient
        student_RV.mul_(scale * mass_R1 / sum_R1).scatter_add_(1, self.ids, -scale * weights_RS)
        return self.temperature**2 * (cross_entropy_R - self.entropy.to(student_RV.dtype))


def softened(
    ids_NK: Tensor, log_probs_NK: Tensor, log_tail_N: Tensor | None, *, temperature: float, vocabulary_size: int
) -> TopRows:
    """Rows at a temperature, from log-probabilities at temperature 1.

    Exact if `log_tail_N` is. A tail's mass at T does not follow from its mass at 1, so it has to be recorded for each
    temperature. Without it the k tokens are normalised among themselves: the loss is still 0 for a student that equals
    the teacher, but does not depend on the student's mass outside the k tokens.

    Args:
        ids_NK: (rows, k) token ids.
        log_probs_NK: (rows, k) at temperature 1. Rounding makes their sum inexact; they are normalised again.
        log_tail_N: (rows,) log of the sum over all other tokens of p ** (1 / T), or None.
        temperature: T.
        vocabulary_size: columns that the teacher has.
    """
    kept_NK = at_least_float32(log_probs_NK) / temperature
    if log_tail_N is None:
        return TopRows(ids_NK, kept_NK.log_softmax(dim=1), None, temperature, vocabulary_size)
    both = torch.cat([kept_NK, log_tail_N.unsqueeze(1)], dim=1).log_softmax(dim=1)
    return TopRows(ids_NK, both[:, :-1], both[:, -1], temperature, vocabulary_size)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The terms of KL(p || q), 0 where p is 0."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0)
