"""Vocabulary losses from hidden states, fused with the output projection.

Full logits are the largest tensors of a distillation step: (rows, vocab) for teacher and student, each copied
several times by softmax and autograd. Here they exist for a chunk of rows at a time (`losses.fused`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
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
    given,
    head_of,
    rows_of,
)
from potstill.losses.soft_targets import IGNORED_LABEL
from potstill.losses.sparse import SampledRows, TopRows
from potstill.losses.tied import TiedGradient

FORWARD, REVERSE, JSD = "forward_kl", "reverse_kl", "jsd"
DIVERGENCES = (FORWARD, REVERSE, JSD)

Compare = Callable[["_Pair", Tensor | float | None], Tensor]


def vocabulary_losses(
    student_ND: Tensor,
    student_weight_VD: Tensor,
    student_bias_V: Tensor | None,
    *,
    labels_N: Tensor | None = None,
    teacher_NE: Tensor | None = None,
    teacher_weight_VE: Tensor | None = None,
    teacher_bias_V: Tensor | None = None,
    targets: TopRows | SampledRows | None = None,
    temperature: float = 1.0,
    divergence: str = FORWARD,
    beta: float = 0.5,
    weights: Mapping[str, Tensor | float],
    denominators: Mapping[str, Tensor | float],
    tied: TiedGradient | None = None,
    chunk_rows: int | None = None,
) -> VocabularyLosses:
    """Weighted sum of soft-target, logit and hard-label losses without (rows, vocab) logits.

    Each term is a sum over rows in float32 (float64 for float64 inputs), equal to a function of `soft_targets`:

    - `ce`: T^2 times the divergence at temperature T, all rows, nats: `forward_kl`, KL(teacher || student);
      `reverse_kl`, KL(student || teacher); or `jsd`, beta KL(teacher || m) + (1 - beta) KL(student || m) with
      m = beta teacher + (1 - beta) student. For `TopRows` as targets it is over the k
      tokens and the tail as one class (without a tail: over the k tokens); for `SampledRows` it is the estimate
      -entropy - sum of weight * log p_student, which can be below 0 and whose expectation is the divergence.
    - `mse`: squared distance of the logits, summed over the vocabulary, no temperature, all rows.
    - `nll`: negative log-likelihood of the label at temperature 1, rows whose label is not -100, nats.

    Products run in autocast's dtype if autocast is enabled, else in the dtype of each model's weight. Gradients are
    computed here if an input of the student requires one; the teacher gets none. A denominator of 0 counts as 1. If
    heads are padded to different widths, `ce` and `mse` compare the columns that both have, and `nll` uses all of the
    student's.

    Args:
        student_ND: (rows, width), input of the student's output projection.
        student_weight_VD: (vocab, width).
        student_bias_V: (vocab,) or None.
        labels_N: (rows,) of token ids, -100 for rows without; needed by `nll`.
        teacher_NE: (rows, teacher width); needed by `mse`, and by `ce` without targets, as is the weight.
        teacher_weight_VE: (teacher vocab, teacher width).
        teacher_bias_V: (teacher vocab,) or None.
        targets: stored rows of a teacher, which replace it and have a temperature of their own; on the student's
            device.
        temperature: T of `ce`.
        divergence: one of `DIVERGENCES`; stored rows have the forward one.
        beta: the teacher's share of the mixture of `jsd`, above 0 and below 1.
        weights: by term; a term that is absent or 0 is not computed. Also (rows,), one weight per row.
        denominators: by term, the rows of the global batch that count; or (rows,).
        tied: receives the gradient of the student's weight if the embeddings share it (`losses.tied`).
        chunk_rows: rows whose logits exist at a time; None: as many as fit `CHUNK_BYTES` for each model.

    Raises:
        ValueError: an unknown term, a term without its inputs or its denominator, or no term at all; targets of
            another number of rows, or of a vocabulary that is larger than the student's; an unknown divergence, or one
            that stored rows do not have; a beta out of range.

    Source: Hinton et al. 2015 (arXiv:1503.02531), section 2; Sanh et al. 2019 (arXiv:1910.01108), section 2; Agarwal et
    al. 2024 (GKD, arXiv:2306.13649), section 2, for the divergences. For
    the gradient in the forward pass: Hsu et al. 2024 (Liger Kernel, arXiv:2410.10989).

    Example:
        >>> import torch
        >>> from potstill.losses import vocabulary_losses
        >>> hidden, weight = torch.randn(6, 8, requires_grad=True), torch.randn(50, 8)
        >>> labels = torch.tensor([3, -100, -100, 7, -100, 1])
        >>> losses = vocabulary_losses(
        ...     hidden, weight, None, labels_N=labels, teacher_NE=torch.randn(6, 16),
        ...     teacher_weight_VE=torch.randn(50, 16), temperature=2.0,
        ...     weights={"ce": 0.5, "nll": 0.5}, denominators={"ce": 6, "nll": 3},
        ... )
        >>> losses.total.backward()
        >>> sorted(losses.sums), hidden.grad.shape
        (['ce', 'nll'], torch.Size([6, 8]))
    """
    if divergence not in DIVERGENCES or (divergence == JSD and not 0 < beta < 1):
        raise ValueError(f"divergence={divergence} with beta={beta}: one of {DIVERGENCES}, beta above 0 and below 1")
    if targets is not None and divergence != FORWARD:
        raise ValueError(f"divergence={divergence}: stored rows lack what it weighs, the teacher's unlikely tokens")
    teacher = None
    if targets is not None:
        _check_targets(targets, student_ND, student_weight_VD)
    elif teacher_NE is not None and teacher_weight_VE is not None and any(given(weights.get(t)) for t in ("ce", "mse")):
        teacher = head_of(teacher_NE, teacher_weight_VE, teacher_bias_V)
    no_teacher = "teacher_NE or teacher_weight_VE" if teacher is None else None
    missing = {
        "ce": no_teacher if targets is None else None,
        "mse": no_teacher,
        "nll": "labels_N" if labels_N is None else None,
    }
    coefficients = coefficients_of(weights, denominators, missing)
    if teacher is None and targets is None and labels_N is not None and student_ND.device.type == "cpu":
        # Reading the mask would synchronize an accelerator; on the CPU it is free.
        counted_N = labels_N != IGNORED_LABEL
        student_ND, labels_N = student_ND[counted_N], labels_N[counted_N]
        coefficients = {term: rows_of(c, counted_N) for term, c in coefficients.items()}
    labels_N = labels_N if "nll" in coefficients else None
    task = Task(coefficients, labels_N, chunk_rows=chunk_rows)
    if teacher is not None:
        width = min(len(student_weight_VD), len(teacher.weight))
        comparisons: dict[str, Compare] = {FORWARD: _forward, REVERSE: _reverse, JSD: partial(_jsd, beta=beta)}
        soft = partial(_soft_terms, temperature=temperature, compare=comparisons[divergence])
        task = replace(task, soft=soft, soft_width=width, teacher=teacher)
    elif targets is not None and "ce" in coefficients:
        task = replace(task, soft=partial(_target_terms, targets=targets), soft_width=targets.vocabulary_size)
    return fused_losses(student_ND, student_weight_VD, student_bias_V, task, tied)


def _check_targets(targets: TopRows | SampledRows, student_ND: Tensor, weight_VD: Tensor) -> None:
    if len(targets.ids) != len(student_ND) or targets.vocabulary_size > len(weight_VD):
        raise ValueError(
            f"targets of {len(targets.ids)} rows and a vocabulary of {targets.vocabulary_size} for a student of "
            f"{len(student_ND)} rows and a vocabulary of {len(weight_VD)}"
        )


def _target_terms(
    logits: Sequence[Tensor], rows: slice, coefficients: Coefficients, _: bool, *, targets: TopRows | SampledRows
) -> dict[str, Tensor]:
    """`ce` by row; the student's logits become its gradient."""
    return {"ce": targets.of_rows(rows).divergence(logits[0], coefficients["ce"])}


class _Pair(NamedTuple):
    """Softened distributions of a block of rows; with z the logits, e = exp((z - max z) / T).

    Attributes:
        student_RV: e of the student, overwritten by the gradient.
        teacher_RV: e of the teacher, overwritten.
        gap_RV: z of the student less z of the teacher.
        student_sum_R1: sum of e.
        teacher_sum_R1: sum of e.
        log_ratio_R1: log sum exp(z / T) of the student less that of the teacher.
        temperature: T.
    """

    student_RV: Tensor
    teacher_RV: Tensor
    gap_RV: Tensor
    student_sum_R1: Tensor
    teacher_sum_R1: Tensor
    log_ratio_R1: Tensor
    temperature: float


def _soft_terms(
    logits: Sequence[Tensor],
    _rows: slice,
    coefficients: Coefficients,
    wants_gradient: bool,
    *,
    temperature: float,
    compare: Compare,
) -> dict[str, Tensor]:
    """`ce` and `mse` by row; the student's logits become their gradient, the teacher's are overwritten.

    The gradient of `mse` in the student's logits is twice the gap of the logits.
    """
    (student_RV, teacher_RV), losses = logits, {}
    gap_RV = student_RV - teacher_RV
    if "mse" in coefficients:
        losses["mse"] = gap_RV.square().sum(dim=1)
    if "ce" in coefficients:
        student_log_R1, student_sum_R1 = exponentiate(student_RV, temperature)
        teacher_log_R1, teacher_sum_R1 = exponentiate(teacher_RV, temperature)
        sums = student_sum_R1, teacher_sum_R1, student_log_R1 - teacher_log_R1
        pair = _Pair(student_RV, teacher_RV, gap_RV, *sums, temperature)
        losses["ce"] = temperature**2 * compare(pair, coefficients["ce"] if wants_gradient else None).squeeze(1)
    if "mse" in coefficients and wants_gradient:
        join = student_RV.add_ if "ce" in coefficients else student_RV.copy_
        join(gap_RV.mul_(2 * coefficients["mse"]))
    return losses


# Each returns its divergence by row, (rows, 1). With a coefficient the student's part becomes the gradient of
# coefficient * T^2 * divergence in the student's logits. q is the student's distribution, p the teacher's.


def _forward(pair: _Pair, coefficient: Tensor | float | None) -> Tensor:
    """KL(p || q); its gradient is T * (q - p)."""
    mean_gap_R1 = (pair.teacher_RV * pair.gap_RV).sum(dim=1, keepdim=True) / pair.teacher_sum_R1 / pair.temperature
    if coefficient is not None:
        # Normalising and weighting are one factor per row.
        scale = pair.temperature * coefficient
        pair.student_RV.mul_(scale / pair.student_sum_R1).sub_(pair.teacher_RV.mul_(scale / pair.teacher_sum_R1))
    return pair.log_ratio_R1 - mean_gap_R1


def _reverse(pair: _Pair, coefficient: Tensor | float | None) -> Tensor:
    """KL(q || p); its gradient is q * (gap - mean of the gap under q)."""
    weighted_RV = torch.mul(pair.student_RV, pair.gap_RV, out=pair.teacher_RV)
    mean_gap_R1 = weighted_RV.sum(dim=1, keepdim=True) / pair.student_sum_R1
    if coefficient is not None:
        pair.student_RV.mul_(-mean_gap_R1).add_(weighted_RV).mul_(coefficient / pair.student_sum_R1)
    return mean_gap_R1 / pair.temperature - pair.log_ratio_R1


def _jsd(pair: _Pair, coefficient: Tensor | float | None, *, beta: float) -> Tensor:
    """Beta KL(p || m) + (1 - beta) KL(q || m); its gradient is T * (1 - beta) * q * (mean of L under q - L).

    L = log(m / q) = softplus(x) + log(1 - beta) and log(m / p) = softplus(-x) + log(beta), with
    x = log(p / q) + log(beta / (1 - beta)). Both from one log(1 + exp(-|x|)), so that nothing large cancels.
    """
    log_beta, log_rest = math.log(beta), math.log1p(-beta)
    x_RV = torch.div(pair.gap_RV, -pair.temperature).add_(pair.log_ratio_R1 + (log_beta - log_rest))
    small_RV = x_RV.abs().neg_().exp_().log1p_()
    over_p_RV = x_RV.neg().clamp_min_(0).add_(small_RV).add_(log_beta)
    over_q_RV = x_RV.clamp_min_(0).add_(small_RV).add_(log_rest)
    mean_p_R1 = pair.teacher_RV.mul_(over_p_RV).sum(dim=1, keepdim=True) / pair.teacher_sum_R1
    weighted_RV = torch.mul(pair.student_RV, over_q_RV, out=over_p_RV)
    mean_q_R1 = weighted_RV.sum(dim=1, keepdim=True) / pair.student_sum_R1
    if coefficient is not None:
        scale = pair.temperature * (1 - beta) * coefficient
        pair.student_RV.mul_(over_q_RV.neg_().add_(mean_q_R1)).mul_(scale / pair.student_sum_R1)
    return -beta * mean_p_R1 - (1 - beta) * mean_q_R1
