"""Losses between attention scores: products of queries and keys before the softmax.

The scores are (batch, heads, length, length), queries before keys. The input mask is nonzero where a token is; None
counts all positions. Losses are means over kept pairs of positions (`mse`) or kept query positions (`ce`), after a mean
or sum over heads, so that a caller's `denominator` counts pairs or positions, whatever the number of heads. No kept
position gives 0 with a zero gradient.

`published=True` is exactly the arithmetic of the toolkit. It expects scores that hold an additive mask (large negative
numbers at padded keys): under an input mask the softmax of `ce` includes padded keys, and without one every score at or
below -1e-3 counts as masked out, which is wrong for any other scores. By default padding has no influence, and without
a mask nothing is masked.

Source: Yang et al. 2020 (TextBrewer, arXiv:2002.12620), section 3, intermediate losses.
"""

import torch
from torch import Tensor

from potstill.losses.masking import kept_positions, log_softmax_kept, pairs_of, require_same_shape
from potstill.losses.soft_targets import at_least_float32, divide_counted

MASKED_SCORE = -1e-3  # the published threshold


def attention_mse(
    student_BHLL: Tensor,
    teacher_BHLL: Tensor,
    mask_BL: Tensor | None = None,
    *,
    published: bool = False,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Squared distance of the scores, mean over heads and kept pairs of positions, float32 at least.

    Args:
        student_BHLL: (batch, heads, length, length).
        teacher_BHLL: the same shape.
        mask_BL: (batch, length), nonzero where a token is.
        published: the toolkit's arithmetic; without a mask, scores at or below -1e-3 count as 0.
        denominator: of the sum over pairs; None: their number, the sum of squared lengths.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape(student_BHLL, teacher_BHLL)
    student_BHLL, teacher_BHLL = at_least_float32(student_BHLL), at_least_float32(teacher_BHLL)
    if published and mask_BL is None:
        student_BHLL, teacher_BHLL = _drop_masked(student_BHLL), _drop_masked(teacher_BHLL)
    pairs_BLL = pairs_of(kept_positions(student_BHLL[:, 0], mask_BL))
    gap_BHLL = (student_BHLL - teacher_BHLL).masked_fill(~pairs_BLL.unsqueeze(1), 0)
    total = gap_BHLL.square().sum() / student_BHLL.shape[1]
    return divide_counted(total, pairs_BLL.sum(), denominator)


def attention_mse_sum(
    student_BHLL: Tensor,
    teacher_BHLL: Tensor,
    mask_BL: Tensor | None = None,
    *,
    published: bool = False,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Squared distance of the scores' sums over heads, mean over kept pairs of positions, float32 at least.

    As `attention_mse` of one head whose scores are the sums; student and teacher may have different numbers of heads.
    """
    student, teacher = (at_least_float32(scores).sum(dim=1, keepdim=True) for scores in (student_BHLL, teacher_BHLL))
    return attention_mse(student, teacher, mask_BL, published=published, denominator=denominator)


def attention_ce(
    student_BHLL: Tensor,
    teacher_BHLL: Tensor,
    mask_BL: Tensor | None = None,
    *,
    published: bool = False,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Cross-entropy of the attention distributions, mean over heads and kept queries, in nats, float32 at least.

    It is the teacher's entropy where student and teacher are equal, not 0. Scores must be finite at kept pairs.

    Args:
        student_BHLL: (batch, heads, length, length).
        teacher_BHLL: the same shape.
        mask_BL: (batch, length), nonzero where a token is.
        published: the toolkit's arithmetic. With a mask the softmax includes padded keys, and the sum omits them;
            without one the sum omits the teacher's probabilities where its score is at or below -1e-3.
        denominator: of the sum over query positions; None: their number.

    Raises:
        ValueError: the shapes differ.
    """
    require_same_shape(student_BHLL, teacher_BHLL)
    kept_BL = kept_positions(student_BHLL[:, 0], mask_BL)
    pairs_B1LL = pairs_of(kept_BL).unsqueeze(1)
    among_B1LL = torch.ones_like(pairs_B1LL) if published else pairs_B1LL
    student_log_BHLL = log_softmax_kept(student_BHLL, among_B1LL)
    teacher_prob_BHLL = log_softmax_kept(teacher_BHLL, among_B1LL).exp()
    if published and mask_BL is None:
        teacher_prob_BHLL = teacher_prob_BHLL.masked_fill(teacher_BHLL <= MASKED_SCORE, 0)
    shares_BHLL = (teacher_prob_BHLL * student_log_BHLL).masked_fill(~pairs_B1LL, 0)
    return divide_counted(-shares_BHLL.sum() / student_BHLL.shape[1], kept_BL.sum(), denominator)


def attention_ce_mean(
    student_BHLL: Tensor,
    teacher_BHLL: Tensor,
    mask_BL: Tensor | None = None,
    *,
    published: bool = False,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Cross-entropy of the distributions of the scores' means over heads, mean over kept queries, in nats.

    As `attention_ce` of one head whose scores are the means; student and teacher may have different numbers of heads.
    """
    student, teacher = (at_least_float32(scores).mean(dim=1, keepdim=True) for scores in (student_BHLL, teacher_BHLL))
    return attention_ce(student, teacher, mask_BL, published=published, denominator=denominator)


def _drop_masked(scores_BHLL: Tensor) -> Tensor:
    return scores_BHLL.masked_fill(scores_BHLL <= MASKED_SCORE, 0)
