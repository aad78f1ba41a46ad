"""Relations between positions, as MiniLM and MiniLMv2 distil them.

A relation is the softmax over positions of scaled dot products of their vectors, so student and teacher may differ in
width and in their numbers of attention heads.
"""

import math

from torch import Tensor

from potstill.losses.masking import kept_positions, log_softmax_kept, pairs_of, require_same_shape, without_padding
from potstill.losses.soft_targets import divide_counted, full_product


def relation_kl(
    student_BLD: Tensor,
    teacher_BLE: Tensor,
    mask_BL: Tensor | None = None,
    *,
    heads: int,
    student_keys_BLD: Tensor | None = None,
    teacher_keys_BLE: Tensor | None = None,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """KL(teacher || student) of relations, mean over relation heads and kept positions, in nats, float32 at least.

    The vectors of all attention heads side by side are cut into `heads` parts of width / heads; a part's relation is
    softmax(a b' / sqrt(width / heads)) over kept positions. Without keys, b is a: the Q-Q, K-K or V-V relation (V-V
    is also MiniLM's value relation). With queries and keys it is the attention distribution.

    A mean over all kept positions of the batch; the papers average a sequence's positions, then sequences, which is
    the same where lengths are equal.

    Args:
        student_BLD: (batch, length, student width): queries, keys or values before they are split into heads.
        teacher_BLE: (batch, length, teacher width).
        mask_BL: (batch, length), nonzero where a token is; None counts all.
        heads: number of relation heads; divides both widths.
        student_keys_BLD: keys of the student; None: the vectors themselves.
        teacher_keys_BLE: keys of the teacher, or None.
        denominator: of the sum over positions; None: the number of kept ones.

    Raises:
        ValueError: heads do not divide a width, batch or length differ, or one model alone has keys.

    Source: Wang et al. 2020 (MiniLM, arXiv:2002.10957), attention and value-relation transfer; Wang et al. 2021
    (MiniLMv2, arXiv:2012.15828), multi-head self-attention relation distillation.
    """
    if (student_keys_BLD is None) != (teacher_keys_BLE is None):
        raise ValueError("keys of one model only: give those of both or of none")
    kept_BL = kept_positions(student_BLD, mask_BL)
    student_BALL = _relation_scores(student_BLD, student_keys_BLD, kept_BL, heads)
    teacher_BALL = _relation_scores(teacher_BLE, teacher_keys_BLE, kept_BL, heads)
    require_same_shape(student_BALL, teacher_BALL)
    pairs_B1LL = pairs_of(kept_BL).unsqueeze(1)
    student_log_BALL = log_softmax_kept(student_BALL, pairs_B1LL)
    teacher_log_BALL = log_softmax_kept(teacher_BALL, pairs_B1LL)
    shares_BALL = teacher_log_BALL.exp() * (teacher_log_BALL - student_log_BALL)
    total = shares_BALL.masked_fill(~pairs_B1LL, 0).sum() / heads
    return divide_counted(total, kept_BL.sum(), denominator)


def _relation_scores(vectors_BLD: Tensor, keys_BLD: Tensor | None, kept_BL: Tensor, heads: int) -> Tensor:
    """(batch, heads, length, length), scaled, before the softmax."""
    width = vectors_BLD.shape[-1]
    if heads < 1 or width % heads:
        raise ValueError(f"heads={heads} does not divide the width {width}")
    part_width = width // heads
    queries_BALd, keys_BALd = (
        without_padding(states, kept_BL).unflatten(-1, (heads, part_width)).transpose(1, 2)
        for states in (vectors_BLD, vectors_BLD if keys_BLD is None else keys_BLD)
    )
    return full_product(queries_BALd, keys_BALd.transpose(-1, -2)) / math.sqrt(part_width)
