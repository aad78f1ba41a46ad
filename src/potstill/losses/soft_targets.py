"""Losses between full rows of logits: the definitions that the fused `vocabulary` losses are tested against.

Each function sums over rows, in float32 at least, and divides by `denominator`. None divides by the number of counted
rows; a number (or a scalar tensor) gives a row the same weight however a global batch is split over micro-batches and
devices. A batch in which no row counts gives 0 with a zero gradient, whatever the denominator.

Rows may have any number of dimensions before that of the vocabulary, for example (batch, length, labels). A
temperature is a number or a tensor with one temperature per row.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

IGNORED_LABEL = -100


def at_least_float32(values: Tensor) -> Tensor:
    """Half-precision values as float32; float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def full_product(one: Tensor, other: Tensor) -> Tensor:
    """The matrix product in float32 at least, also where autocast computes products in less."""
    with torch.autocast(one.device.type, enabled=False):
        return at_least_float32(one) @ at_least_float32(other)


def divide_counted(total: Tensor, counted: Tensor | int, denominator: Tensor | float | None) -> Tensor:
    """Divide a sum over rows by its denominator; 0 counts as 1, so that an empty sum stays 0.

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
    temperature: Tensor | float,
    *,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """T^2 * KL(teacher || student) of the softened distributions, in nats.

    T^2 keeps the size of the gradient independent of the temperature. A teacher that requires a gradient gets one;
    pass detached logits.

    Args:
        student_logits_NV: (rows, vocab).
        teacher_logits_NV: (rows, vocab), the same width.
        temperature: divides both logits; (rows,) for one per row.
        denominator: of the sum over rows; None: the number of rows.

    Source: Hinton et al. 2015 (arXiv:1503.02531), section 2; Sanh et al. 2019 (arXiv:1910.01108), section 2,
    L_ce.

    Example:
        >>> import torch
        >>> from potstill.losses import kl_divergence
        >>> student = torch.zeros(2, 4, requires_grad=True)
        >>> teacher = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]])
        >>> kl_divergence(student, teacher, temperature=2.0).backward()
        >>> student.grad.sum(dim=1).abs().max() < 1e-6, student.grad[0].any()
        (tensor(True), tensor(False))
    """
    student_log_NV = _log_softened(student_logits_NV, temperature)
    teacher_log_NV = _log_softened(teacher_logits_NV, temperature)
    return _scaled_mean(_kl_rows(teacher_log_NV, student_log_NV), temperature, denominator)


def reverse_kl_divergence(
    student_logits_NV: Tensor,
    teacher_logits_NV: Tensor,
    temperature: Tensor | float,
    *,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """T^2 * KL(student || teacher) of the softened distributions, in nats: seeks modes instead of covering them.

    Arguments as for `kl_divergence`.

    Source: Agarwal et al. 2024 (GKD, arXiv:2306.13649), section 2; Gu et al. 2024 (MiniLLM, arXiv:2306.08543).
    """
    return kl_divergence(teacher_logits_NV, student_logits_NV, temperature, denominator=denominator)


def generalized_js_divergence(
    student_logits_NV: Tensor,
    teacher_logits_NV: Tensor,
    temperature: Tensor | float,
    *,
    beta: float,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """T^2 * JSD(beta) of the softened distributions, in nats.

    JSD(beta) = beta KL(teacher || m) + (1 - beta) KL(student || m), with m = beta teacher + (1 - beta) student. Divided
    by beta it tends to KL(teacher || student) as beta goes to 0; divided by 1 - beta, to the reverse as beta goes to 1.

    Args:
        student_logits_NV: (rows, vocab).
        teacher_logits_NV: (rows, vocab), the same width.
        temperature: divides both logits; (rows,) for one per row.
        beta: the teacher's share of the mixture, above 0 and below 1.
        denominator: of the sum over rows; None: the number of rows.

    Raises:
        ValueError: beta is not between 0 and 1: at the ends the divergence is 0 for any student.

    Source: Agarwal et al. 2024 (GKD, arXiv:2306.13649), section 2.
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta={beta}: above 0 and below 1")
    student_log_NV = _log_softened(student_logits_NV, temperature)
    teacher_log_NV = _log_softened(teacher_logits_NV, temperature)
    mixture_log_NV = torch.logaddexp(teacher_log_NV + math.log(beta), student_log_NV + math.log1p(-beta))
    rows_N = beta * _kl_rows(teacher_log_NV, mixture_log_NV) + (1 - beta) * _kl_rows(student_log_NV, mixture_log_NV)
    return _scaled_mean(rows_N, temperature, denominator)


def soft_cross_entropy(
    student_logits_NV: Tensor,
    teacher_logits_NV: Tensor,
    temperature: Tensor | float,
    *,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Cross-entropy of the softened distributions, without T^2, in nats.

    The gradient is that of KL(teacher || student) at the same temperature; the value is higher by the teacher's
    entropy, so it is not 0 where student and teacher are equal. Arguments as for `kl_divergence`.

    Source: Yang et al. 2020 (TextBrewer, arXiv:2002.12620), section 3, kd_ce.
    """
    student_log_NV = _log_softened(student_logits_NV, temperature)
    teacher_log_NV = _log_softened(teacher_logits_NV, temperature)
    rows_N = -(teacher_log_NV.exp() * student_log_NV).sum(dim=-1)
    return divide_counted(rows_N.sum(), rows_N.numel(), denominator)


def softened_logit_mse(
    student_logits_NV: Tensor,
    teacher_logits_NV: Tensor,
    temperature: Tensor | float,
    *,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Squared distance of logits / T: mean over the vocabulary (`logit_mse` sums), without T^2.

    Arguments as for `kl_divergence`.

    Source: Yang et al. 2020 (TextBrewer, arXiv:2002.12620), section 3, kd_mse.
    """
    gap_NV = at_least_float32(student_logits_NV) - at_least_float32(teacher_logits_NV)
    rows_N = (gap_NV / _by_row(temperature)).square().mean(dim=-1)
    return divide_counted(rows_N.sum(), rows_N.numel(), denominator)


def shift_probabilities(teacher_logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Correct a teacher's logits: the highest and that of the label change places, row by row.

    Args:
        teacher_logits_NV: (rows, vocab).
        labels_N: (rows,) of labels; a row labelled -100 stays as it is.

    Returns:
        New logits of the same shape and dtype. If several logits are the highest, one of them is moved.

    Source: Wen et al. 2019 (Preparing Lessons, arXiv:1911.07471), probability shift.
    """
    highest_N1 = teacher_logits_NV.argmax(dim=-1, keepdim=True)
    label_N1 = torch.where(labels_N.unsqueeze(-1) == IGNORED_LABEL, highest_N1, labels_N.unsqueeze(-1))
    shifted_NV = teacher_logits_NV.scatter(-1, highest_N1, teacher_logits_NV.gather(-1, label_N1))
    return shifted_NV.scatter(-1, label_N1, teacher_logits_NV.gather(-1, highest_N1))


def logit_mse(
    student_logits_NV: Tensor, teacher_logits_NV: Tensor, *, denominator: Tensor | float | None = None
) -> Tensor:
    """Squared distance of the logits: summed over the vocabulary, no temperature.

    Args:
        student_logits_NV: (rows, vocab).
        teacher_logits_NV: (rows, vocab), the same width.
        denominator: of the sum over rows; None: the number of rows (the distiller's `batchmean`).

    Source: the published code of Sanh et al. 2019, `distiller.py`, alpha_mse.
    """
    total = (at_least_float32(student_logits_NV) - at_least_float32(teacher_logits_NV)).square().sum()
    return divide_counted(total, student_logits_NV.shape[0], denominator)


def universal_logit_distance(
    student_logits_NV: Tensor,
    teacher_logits_NW: Tensor,
    *,
    temperature: float = 1.0,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Wasserstein-1 distance of sorted probabilities (ULD), for models of different vocabularies.

    With the same distance between any two tokens, the distance of two distributions over different vocabularies is the
    sum of absolute differences of their probabilities in descending order, the smaller vocabulary padded with zeros. It
    is 0 where both are equally certain, whatever they predict, so combine it with a hard-label loss. No T^2.

    Args:
        student_logits_NV: (rows, student vocab) at positions of the text that both models read to
            (`data.alignment`).
        teacher_logits_NW: (rows, teacher vocab), the same positions.
        temperature: divides both logits.
        denominator: of the sum over rows; None: the number of rows.

    Raises:
        ValueError: the numbers of rows differ.

    Source: Boizard et al. 2024 (Universal Logit Distillation, arXiv:2402.12030), section 3.
    """
    if student_logits_NV.shape[:-1] != teacher_logits_NW.shape[:-1]:
        raise ValueError(
            f"rows of student {tuple(student_logits_NV.shape)} and teacher {tuple(teacher_logits_NW.shape)} differ"
        )
    student_NV, teacher_NW = (
        (at_least_float32(logits) / temperature).softmax(dim=-1).sort(dim=-1, descending=True).values
        for logits in (student_logits_NV, teacher_logits_NW)
    )
    widest = max(student_NV.shape[-1], teacher_NW.shape[-1])
    student_NX, teacher_NX = (
        functional.pad(probabilities, (0, widest - probabilities.shape[-1]))
        for probabilities in (student_NV, teacher_NW)
    )
    rows_N = (student_NX - teacher_NX).abs().sum(dim=-1)
    return divide_counted(rows_N.sum(), rows_N.numel(), denominator)


def cross_entropy(logits_NV: Tensor, labels_N: Tensor, *, denominator: Tensor | float | None = None) -> Tensor:
    """Negative log-likelihood of hard labels, in nats.

    Args:
        logits_NV: (rows, vocab).
        labels_N: (rows,) of token ids; a row labelled -100 does not count.
        denominator: of the sum over rows; None: the number of labelled rows.
    """
    total = functional.cross_entropy(at_least_float32(logits_NV), labels_N, reduction="sum", ignore_index=IGNORED_LABEL)
    return divide_counted(total, (labels_N != IGNORED_LABEL).sum(), denominator)


def _by_row(temperature: Tensor | float) -> Tensor | float:
    """Temperatures by row as a column that broadcasts over the vocabulary."""
    by_row = isinstance(temperature, Tensor) and temperature.dim() > 0
    return temperature.unsqueeze(-1) if by_row else temperature  # type: ignore[union-attr]


def _log_softened(logits_NV: Tensor, temperature: Tensor | float) -> Tensor:
    return functional.log_softmax(at_least_float32(logits_NV) / _by_row(temperature), dim=-1)


def _kl_rows(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """KL(p || q) by row."""
    return functional.kl_div(log_q_NV, log_p_NV, reduction="none", log_target=True).sum(dim=-1)


def _scaled_mean(rows_N: Tensor, temperature: Tensor | float, denominator: Tensor | float | None) -> Tensor:
    """Sum over rows of T^2 * loss by its denominator."""
    return divide_counted((rows_N * temperature**2).sum(), rows_N.numel(), denominator)
