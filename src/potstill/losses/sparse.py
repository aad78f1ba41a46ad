"""Soft targets with a few tokens per row, fused with the output projection (`losses.fused`).

A teacher's distribution over a whole vocabulary is too large to be kept for every token. Two forms need a few tokens
only, and lose different things:

- `TopRows`: the k likeliest tokens, and the probability of all others as one further class (a ghost). Its divergence
  is the exact one of these k + 1 classes, so never above that of the whole vocabulary. The distribution within the
  teacher's tail is lost: the student's tail is moved as a whole.
- `SampledRows`: tokens drawn from the teacher, weighted such that the target is an unbiased estimate of it. Loss and
  gradient are right on average, whatever the student, and vary with the draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from potstill.losses.fused import (
    Coefficients,
    Task,
    VocabularyLosses,
    coefficients_of,
    exponentiate,
    fused_losses,
    hard_part,
)
from potstill.losses.soft_targets import at_least_float32
from potstill.losses.tied import TiedGradient

# Below any mass of a tail that a loss can tell from 0, and whose inverse float32 holds.
_LEAST_MASS = 1e-30


class TopRows(NamedTuple):
    """The likeliest tokens of each row; `softened` makes them of what is stored.

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

    def of_rows(self, rows: slice) -> "TopRows":
        """Some of the rows."""
        tail = None if self.log_tail is None else self.log_tail[rows]
        return self._replace(ids=self.ids[rows], log_probs=self.log_probs[rows], log_tail=tail)

    def to(self, device: torch.device) -> "TopRows":
        """The rows on a device."""
        tail = None if self.log_tail is None else self.log_tail.to(device)
        return self._replace(ids=self.ids.to(device), log_probs=self.log_probs.to(device), log_tail=tail)


class SampledRows(NamedTuple):
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

    def of_rows(self, rows: slice) -> "SampledRows":
        """Some of the rows."""
        return self._replace(ids=self.ids[rows], weights=self.weights[rows], entropy=self.entropy[rows])

    def to(self, device: torch.device) -> "SampledRows":
        """The rows on a device."""
        return self._replace(
            ids=self.ids.to(device), weights=self.weights.to(device), entropy=self.entropy.to(device)
        )


def softened(
    ids_NK: Tensor,
    log_probs_NK: Tensor,
    log_tail_N: Tensor | None,
    *,
    temperature: float,
    vocabulary_size: int,
) -> TopRows:
    """Rows at a temperature, of log-probabilities at temperature 1.

    Exact if `log_tail_N` is. A tail's mass at T does not follow from its mass at 1, so it has to be recorded for the
    temperature that is wanted. Without it the k tokens are normalised among themselves: then the loss still is 0 for
    a student that equals the teacher, but says nothing about how much of the student's mass is outside the k tokens.

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


def sparse_vocabulary_losses(
    student_ND: Tensor,
    student_weight_VD: Tensor,
    student_bias_V: Tensor | None,
    targets: TopRows | SampledRows,
    *,
    labels_N: Tensor | None = None,
    weights: Mapping[str, Tensor | float],
    denominators: Mapping[str, Tensor | float],
    tied: TiedGradient | None = None,
    chunk_rows: int | None = None,
) -> VocabularyLosses:
    """Weighted sum of soft losses against sparse targets and of hard-label losses, without (rows, vocab) logits.

    As `losses.vocabulary.vocabulary_losses`, with stored rows in the teacher's place. Each term is a sum over rows:

    - `ce`: T^2 * KL(teacher || student) at the targets' temperature T, all rows, nats. Of `TopRows` over the k tokens
      and the tail as one class (without a tail: over the k tokens); of `SampledRows` its estimate
      -entropy - sum of weight * log p_student, which can be below 0 and whose expectation is the divergence.
    - `nll`: negative log-likelihood of the label at temperature 1, rows whose label is not -100, nats.

    Args:
        student_ND: (rows, width), what goes into the student's output projection.
        student_weight_VD: (vocab, width), of at least the targets' vocabulary.
        student_bias_V: (vocab,) or None.
        targets: the teacher's rows, on the student's device.
        labels_N: (rows,) of token ids, -100 for rows without; needed by `nll`.
        weights: by term; a term that is absent or 0 is not computed. For `ce` also (rows,), one weight per row.
        denominators: by term, the rows of the global batch that count; or (rows,).
        tied: takes the gradient of the student's weight, where embeddings that read it hand that on (`losses.tied`).
        chunk_rows: rows whose logits exist at a time; None: as many as fit.

    Raises:
        ValueError: an unknown term, a term without its inputs or its denominator, no term at all; targets of another
            number of rows, or of a vocabulary that the student's does not hold.

    Source: Anshumann et al. 2025 (Sparse Logit Sampling, arXiv:2503.16870), for the tail as a class and for random
    sampling; T^2 as in Hinton et al. 2015 (arXiv:1503.02531), section 2.
    """
    if len(targets.ids) != len(student_ND) or targets.vocabulary_size > len(student_weight_VD):
        raise ValueError(
            f"targets of {len(targets.ids)} rows and a vocabulary of {targets.vocabulary_size} for a student of "
            f"{len(student_ND)} rows and a vocabulary of {len(student_weight_VD)}"
        )
    missing = {"ce": None, "nll": "labels_N" if labels_N is None else None}
    coefficients = coefficients_of(weights, denominators, missing)
    losses = _Losses(targets, labels_N if "nll" in coefficients else None)
    task = Task(losses, coefficients, chunk_rows=chunk_rows)
    return fused_losses(student_ND, student_weight_VD, student_bias_V, task, tied)


@dataclass(frozen=True)
class _Losses:
    """The losses of a block of the student's logits."""

    targets: TopRows | SampledRows
    labels_N: Tensor | None

    def __call__(
        self,
        student_RV: Tensor,
        others: Sequence[Tensor],
        rows: slice,
        coefficients: Coefficients,
        wants_gradient: bool,
    ) -> dict[str, Tensor]:
        """Each term's loss by row; the student's logits become their gradient."""
        losses: dict[str, Tensor] = {}
        if self.labels_N is not None:
            losses["nll"], rows_H, hard_HV = hard_part(student_RV, self.labels_N[rows], coefficients["nll"])
        if "ce" in coefficients:
            targets, width = self.targets.of_rows(rows), self.targets.vocabulary_size
            if isinstance(targets, SampledRows):
                losses["ce"] = _sampled_part(student_RV[:, :width], targets, coefficients["ce"])
            else:
                losses["ce"] = _top_part(student_RV[:, :width], targets, coefficients["ce"])
            student_RV[:, width:].zero_()
        else:
            student_RV.zero_()
        if self.labels_N is not None and wants_gradient:
            student_RV.index_add_(0, rows_H, hard_HV)
        return losses


def _top_part(student_RV: Tensor, targets: TopRows, coefficient: Tensor | float) -> Tensor:
    """`ce` by row; the student's logits become its gradient.

    With p over the k tokens and the tail t, and q the student's, the gradient in a logit is T * (q - p) at one of the
    k, and T * (q - p_t * q / q_t) elsewhere.
    """
    ids_RK, temperature = targets.ids, targets.temperature
    log_p_RK = targets.log_probs.to(student_RV.dtype)
    logits_RK = student_RV.gather(1, ids_RK) / temperature
    scale = temperature * coefficient
    if targets.log_tail is None:
        log_q_RK = logits_RK.log_softmax(dim=1)
        student_RV.zero_().scatter_(1, ids_RK, (log_q_RK.exp() - log_p_RK.exp()) * scale)
        return temperature**2 * _divergence(log_p_RK, log_q_RK).sum(dim=1)
    log_p_tail_R1 = targets.log_tail.to(student_RV.dtype).unsqueeze(1)
    log_sum_R1, sum_R1 = exponentiate(student_RV, temperature)
    log_q_RK = logits_RK - log_sum_R1
    # Sum over the columns other than the k: one minus their sum would lose a small tail to rounding.
    tail_R1 = student_RV.scatter_(1, ids_RK, 0.0).sum(dim=1, keepdim=True).clamp_min(_LEAST_MASS)
    log_q_tail_R1 = (tail_R1 / sum_R1).log()
    student_RV.mul_((1 / sum_R1 - log_p_tail_R1.exp() / tail_R1) * scale)
    student_RV.scatter_(1, ids_RK, (log_q_RK.exp() - log_p_RK.exp()) * scale)
    tail_R = _divergence(log_p_tail_R1, log_q_tail_R1).squeeze(1)
    return temperature**2 * (_divergence(log_p_RK, log_q_RK).sum(dim=1) + tail_R)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """The terms of KL(p || q), 0 where p is 0."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0)


def _sampled_part(student_RV: Tensor, targets: SampledRows, coefficient: Tensor | float) -> Tensor:
    """`ce` by row; the student's logits become its gradient.

    With weights w and the student's q, the gradient in a logit is T * (q * sum of w - w). The weights of a row need
    not sum to 1; making them do so would make the estimate biased.
    """
    temperature = targets.temperature
    weights_RS = targets.weights.to(student_RV.dtype)
    mass_R1 = weights_RS.sum(dim=1, keepdim=True)
    logits_RS = student_RV.gather(1, targets.ids) / temperature
    log_sum_R1, sum_R1 = exponentiate(student_RV, temperature)
    cross_entropy_R = (weights_RS * (log_sum_R1 - logits_RS)).sum(dim=1)
    scale = temperature * coefficient
    student_RV.mul_(scale * mass_R1 / sum_R1).scatter_add_(1, targets.ids, -scale * weights_RS)
    return temperature**2 * (cross_entropy_R - targets.entropy.to(student_RV.dtype))
