"""Losses between the vectors of texts, one row per text."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from potstill.losses.soft_targets import at_least_float32, divide_counted


def vector_mse(student_ND: Tensor, teacher_ND: Tensor, *, denominator: Tensor | float | None = None) -> Tensor:
    """Squared distance of vectors, summed over their width, mean over rows, float32 at least.

    Args:
        student_ND: (rows, width).
        teacher_ND: the same shape.
        denominator: of the sum over rows; None: the number of rows. No rows give 0 with a zero gradient.

    Raises:
        ValueError: the shapes differ.

    Source: Reimers & Gurevych 2020 (arXiv:2004.09813), equation 1, where it is a mean over the width, too.

    Example:
        >>> import torch
        >>> from potstill.losses import vector_mse
        >>> float(vector_mse(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])))
        2.0
    """
    if student_ND.shape != teacher_ND.shape:
        raise ValueError(f"vectors of shapes {tuple(student_ND.shape)} and {tuple(teacher_ND.shape)}")
    distance = (at_least_float32(student_ND) - at_least_float32(teacher_ND)).square().sum()
    return divide_counted(distance, len(student_ND), denominator)


def similarity_distance(student_ND: Tensor, teacher_NE: Tensor) -> Tensor:
    """Squared difference of the cosine similarities of all pairs of rows, mean over pairs, float32 at least.

    Args:
        student_ND: (rows, width).
        teacher_NE: (rows, any width).

    Source: Tung & Mori 2019 (arXiv:1907.09682), section 3, with cosines instead of products normalised by row.

    Example:
        >>> import torch
        >>> from potstill.losses import similarity_distance
        >>> rows = torch.randn(4, 8)
        >>> float(similarity_distance(3 * rows, rows)) < 1e-12
        True
    """
    ours, theirs = (normalize(at_least_float32(side), dim=-1) for side in (student_ND, teacher_NE))
    return (ours @ ours.T - theirs @ theirs.T).square().mean()
