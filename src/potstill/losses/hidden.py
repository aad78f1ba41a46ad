"""Losses between hidden states."""

from torch import Tensor
from torch.nn import functional

from potstill.losses.soft_targets import at_least_float32, divide_counted


def cosine_distance(
    student_ND: Tensor, teacher_ND: Tensor, *, denominator: Tensor | float | None = None
) -> Tensor:
    """1 - cosine of student and teacher vectors (0 where they point the same way), float32 at least.

    Args:
        student_ND: (rows, width).
        teacher_ND: (rows, width), the same width.
        denominator: of the sum over rows; None: the number of rows. No rows give 0 with a zero gradient.

    Source: Sanh et al. 2019 (arXiv:1910.01108), section 2, L_cos.
    """
    similarity_N = functional.cosine_similarity(
        at_least_float32(student_ND), at_least_float32(teacher_ND), dim=-1
    )
    return divide_counted((1 - similarity_N).sum(), student_ND.shape[0], denominator)
