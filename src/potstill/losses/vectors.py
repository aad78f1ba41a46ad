"""Losses between the vectors of texts, one row per text."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from potstill.losses.soft_targets import at_least_float32, divide_counted, full_product


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
    ours, theirs = (_cosines(side, side) for side in (student_ND, teacher_NE))
    return (ours - theirs).square().mean()


def contrastive(
    queries_ND: Tensor,
    documents_MD: Tensor,
    positives_N: Tensor,
    *,
    scale: float = 20.0,
    excluded_NM: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Cross entropy of each query's positive among all documents (InfoNCE), mean over queries, nats, float32 at least.

    Args:
        queries_ND: (queries, width).
        documents_MD: (documents, width), the positives and the negatives of all queries.
        positives_N: (queries,), the number of each query's positive among the documents.
        scale: the cosines are multiplied with it; 1 / temperature.
        excluded_NM: (queries, documents), True where a document is no negative of a query; never at its positive.
        denominator: of the sum over queries; None: the number of queries. No queries give 0 with a zero gradient.

    Source: van den Oord et al. 2018 (arXiv:1807.03748), equation 4, of cosines; sentence-transformers calls it
        MultipleNegativesRankingLoss.

    Example:
        >>> import torch
        >>> from potstill.losses import contrastive
        >>> vectors = torch.eye(4)
        >>> float(contrastive(vectors, vectors, torch.arange(4), scale=100)) < 1e-6
        True
    """
    scores_NM = scale * _cosines(queries_ND, documents_MD)
    if excluded_NM is not None:
        scores_NM = scores_NM.masked_fill(excluded_NM, -torch.inf)
    return divide_counted(cross_entropy(scores_NM, positives_N, reduction="sum"), len(queries_ND), denominator)


def margin_mse(
    student_margins_N: Tensor, teacher_margins_N: Tensor, *, denominator: Tensor | float | None = None
) -> Tensor:
    """Squared difference of margins, the score of the positive less that of a negative, mean, float32 at least.

    Args:
        student_margins_N: (margins,).
        teacher_margins_N: the same shape.
        denominator: of the sum over margins; None: their number. No margins give 0 with a zero gradient.

    Source: Hofstätter et al. 2020 (arXiv:2010.02666), section 3.2.

    Example:
        >>> import torch
        >>> from potstill.losses import margin_mse
        >>> float(margin_mse(torch.tensor([0.5, 1.0]), torch.tensor([0.0, 1.0])))
        0.125
    """
    gaps_N = at_least_float32(student_margins_N) - at_least_float32(teacher_margins_N)
    return divide_counted(gaps_N.square().sum(), len(gaps_N), denominator)


def _cosines(one_ND: Tensor, other_MD: Tensor) -> Tensor:
    """(rows, rows) cosines, float32 at least."""
    one_ND, other_MD = (normalize(at_least_float32(side), dim=-1) for side in (one_ND, other_MD))
    return full_product(one_ND, other_MD.T)
