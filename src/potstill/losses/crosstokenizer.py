"""Soft targets between models of different vocabularies."""

from torch import Tensor
from torch.nn import functional

from potstill.losses.soft_targets import at_least_float32, divide_counted


def universal_logit_distance(
    student_logits_NV: Tensor,
    teacher_logits_NW: Tensor,
    *,
    temperature: float = 1.0,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Wasserstein-1 distance of the sorted probabilities (ULD), float32 at least.

    With every token as far from every other, the distance of two distributions whose tokens are unknown to each other
    is the sum of absolute differences of their probabilities in descending order, the smaller vocabulary filled up with
    zeros. It is 0 where both are equally certain, whatever they predict, so it is combined with a hard-label
    loss. No T^2.

    Args:
        student_logits_NV: (rows, student vocab) at positions of the text that both models read to
            (`data.alignment`).
        teacher_logits_NW: (rows, teacher vocab), row by row the same positions.
        temperature: divides both logits.
        denominator: of the sum over rows; None: the number of rows. No rows give 0 with a zero gradient.

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
