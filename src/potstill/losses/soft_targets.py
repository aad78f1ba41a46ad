"""Losses between full rows of logits: the definitions that the fused `vocabulary` losses are tested against.

Each function sums over rows and divides by `denominator`. None divides by the number of counted rows; a number
(or a scalar tensor) lets a row weigh the same however a global batch is split over micro-batches and devices. A
batch in which no row counts gives 0 with a zero gradient, whatever the denominator.
"""

import torch
from torch import Tensor
from torch.nn import functional

IGNORED_LABEL = -100


def at_least_float32(values: Tensor) -> Tensor:
    """Half-precision values as float32; float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def divide_counted(total: Tensor, counted: Tensor | int, denominator: Tensor | float | None) -> Tensor:
    """A sum over rows over its denominator; 0 stands for 1, so that an empty sum stays 0.

    Args:
        total: scalar, the sum over rows.
        counted: number of rows in the sum; read where `denominator` is None.
        denominator: number of rows of the global batch, or None.
    """
    return total / nonzero(counted if denominator is None else denominator)


def nonzero(denominator: Tensor | float) -> Tensor | float:
    """The denominator, or 1 where it is 0 (without waiting for the device)."""
    if isinstance(denominator, Tensor):
        return denominator.masked_fill(denominator == 0, 1)
    return denominator or 1.0


def kl_divergence(
    student_logits_NV: Tensor,
    teacher_logits_NV: Tensor,
    temperature: float,
    *,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """T^2 * KL(teacher || student) of the softened distributions, in nats.

    Computed in float32 at least. T^2 keeps the size of the gradient independent of the temperature. A teacher
    that requires a gradient gets one; hand over a detached one.

    Args:
        student_logits_NV: (rows, vocab).
        teacher_logits_NV: (rows, vocab), the same width.
        temperature: divides both logits.
        denominator: of the sum over rows; None: the number of rows.

    Source: Hinton et al. 2015 (arXiv:1503.02531), section 2; Sanh et al. 2019 (arXiv:1910.01108), section 2,
    L_ce.
    """
    student_log_NV = functional.log_softmax(at_least_float32(student_logits_NV) / temperature, dim=-1)
    teacher_log_NV = functional.log_softmax(at_least_float32(teacher_logits_NV) / temperature, dim=-1)
    total = (
        functional.kl_div(student_log_NV, teacher_log_NV, reduction="sum", log_target=True) * temperature**2
    )
    return divide_counted(total, student_logits_NV.shape[0], denominator)


def logit_mse(
    student_logits_NV: Tensor, teacher_logits_NV: Tensor, *, denominator: Tensor | float | None = None
) -> Tensor:
    """Squared distance of the logits: summed over the vocabulary, no temperature, float32 at least.

    Args:
        student_logits_NV: (rows, vocab).
        teacher_logits_NV: (rows, vocab), the same width.
        denominator: of the sum over rows; None: the number of rows (the distiller's `batchmean`).

    Source: the published code of Sanh et al. 2019, `distiller.py`, alpha_mse.
    """
    total = (at_least_float32(student_logits_NV) - at_least_float32(teacher_logits_NV)).square().sum()
    return divide_counted(total, student_logits_NV.shape[0], denominator)


def cross_entropy(
    logits_NV: Tensor, labels_N: Tensor, *, denominator: Tensor | float | None = None
) -> Tensor:
    """Negative log-likelihood of hard labels, in nats, float32 at least.

    Args:
        logits_NV: (rows, vocab).
        labels_N: (rows,) of token ids; a row labelled -100 does not count.
        denominator: of the sum over rows; None: the number of labelled rows.
    """
    total = functional.cross_entropy(
        at_least_float32(logits_NV), labels_N, reduction="sum", ignore_index=IGNORED_LABEL
    )
    return divide_counted(total, (labels_N != IGNORED_LABEL).sum(), denominator)
