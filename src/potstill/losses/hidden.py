"""Losses between hidden states.

If widths differ, project the student's states first; only `nst` and `cka` compare states of any widths. A mask is the
input mask, nonzero where a token is; None counts all positions. No kept position gives 0 with a zero gradient.
"""

from torch import Tensor
from torch.nn import functional

from potstill.losses.masking import kept_positions, pairs_of, require_same_shape, without_padding
from potstill.losses.soft_targets import at_least_float32, divide_counted, full_product, nonzero

Pair = tuple[Tensor, Tensor]
CKA_POSITIONS = 4  # fewer have no unbiased estimate


def cosine_distance(student_ND: Tensor, teacher_ND: Tensor, *, denominator: Tensor | float | None = None) -> Tensor:
    """1 - cosine of student and teacher vectors (0 where they point the same way), float32 at least.

    Args:
        student_ND: (rows, width).
        teacher_ND: (rows, width), the same width.
        denominator: of the sum over rows; None: the number of rows. No rows give 0 with a zero gradient.

    Source: Sanh et al. 2019 (arXiv:1910.01108), section 2, L_cos.

    Example:
        >>> import torch
        >>> from potstill.losses import cosine_distance
        >>> states = torch.randn(4, 8)
        >>> distances = [cosine_distance(states, scale * states) for scale in (3, -1)]
        >>> [round(float(distance), 3) + 0.0 for distance in distances]
        [0.0, 2.0]
    """
    similarity_N = functional.cosine_similarity(at_least_float32(student_ND), at_least_float32(teacher_ND), dim=-1)
    return divide_counted((1 - similarity_N).sum(), student_ND.shape[0], denominator)


def hidden_mse(
    student_BLD: Tensor,
    teacher_BLD: Tensor,
    mask_BL: Tensor | None = None,
    *,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """Squared distance of hidden states, mean over width and kept positions, float32 at least.

    Args:
        student_BLD: (batch, length, width).
        teacher_BLD: the same shape.
        mask_BL: (batch, length).
        denominator: of the sum over positions; None: the number of kept ones.

    Raises:
        ValueError: the shapes differ.

    Source: Yang et al. 2020 (TextBrewer, arXiv:2002.12620), section 3; Jiao et al. 2020 (TinyBERT,
    arXiv:1909.10351), equation 8.

    Example:
        >>> import torch
        >>> from potstill.losses import hidden_mse
        >>> student, teacher = torch.zeros(1, 3, 8), torch.ones(1, 3, 8)
        >>> teacher[0, 2] = 5.0  # padding
        >>> hidden_mse(student, teacher, torch.tensor([[1, 1, 0]]))
        tensor(1.)
    """
    require_same_shape(student_BLD, teacher_BLD)
    kept_BL = kept_positions(student_BLD, mask_BL)
    gap_BLD = without_padding(student_BLD, kept_BL) - without_padding(teacher_BLD, kept_BL)
    return divide_counted(gap_BLD.square().sum() / gap_BLD.shape[-1], kept_BL.sum(), denominator)


def hidden_cosine(
    student_BLD: Tensor,
    teacher_BLD: Tensor,
    mask_BL: Tensor | None = None,
    *,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """`cosine_distance` of the hidden states at kept positions, without selecting them from the batch.

    Args:
        student_BLD: (batch, length, width).
        teacher_BLD: the same shape.
        mask_BL: (batch, length).
        denominator: of the sum over positions; None: the number of kept ones.

    Raises:
        ValueError: the shapes differ.

    Source: Sanh et al. 2019 (arXiv:1910.01108), section 2, L_cos; Yang et al. 2020 (TextBrewer), section 3.
    """
    require_same_shape(student_BLD, teacher_BLD)
    kept_BL = kept_positions(student_BLD, mask_BL)
    similarity_BL = functional.cosine_similarity(
        without_padding(student_BLD, kept_BL), without_padding(teacher_BLD, kept_BL), dim=-1
    )
    return divide_counted((1 - similarity_BL).masked_fill(~kept_BL, 0).sum(), kept_BL.sum(), denominator)


def pkd(student_BLD: Tensor, teacher_BLD: Tensor, *, denominator: Tensor | float | None = None) -> Tensor:
    """Squared distance of the normalised states of the first position ([CLS]), float32 at least.

    Summed over the width, mean over sequences. It reads the first position whatever a mask says, so texts must be
    padded on the right.

    Args:
        student_BLD: (batch, length, width).
        teacher_BLD: the same shape.
        denominator: of the sum over sequences; None: their number.

    Raises:
        ValueError: the shapes differ.

    Source: Sun et al. 2019 (Patient KD, arXiv:1908.09355), equation 7, for one layer.
    """
    require_same_shape(student_BLD, teacher_BLD)
    student_BD, teacher_BD = (
        functional.normalize(at_least_float32(states_BLD[:, 0]), dim=-1) for states_BLD in (student_BLD, teacher_BLD)
    )
    return divide_counted((student_BD - teacher_BD).square().sum(), student_BD.shape[0], denominator)


def fsp(
    student: Pair, teacher: Pair, mask_BL: Tensor | None = None, *, denominator: Tensor | float | None = None
) -> Tensor:
    """Squared distance of the flow between two layers, mean over its entries and over sequences, float32 at least.

    The flow of a sequence is the product of the two layers' states, (first width, second width), averaged over its
    kept positions. A sequence without a kept position adds 0 and still counts as one, so the mean is over the batch.

    Args:
        student: states of two layers, (batch, length, width) each; the widths may differ between the two.
        teacher: the same shapes.
        mask_BL: (batch, length).
        denominator: of the sum over sequences; None: their number.

    Raises:
        ValueError: the shapes of student and teacher differ.

    Source: Yim et al. 2017 (A Gift from Knowledge Distillation), equations 1 and 2; Yang et al. 2020 (TextBrewer),
    section 3.
    """
    for student_BLD, teacher_BLD in zip(student, teacher, strict=True):
        require_same_shape(student_BLD, teacher_BLD)
    kept_BL = kept_positions(student[0], mask_BL)
    gap_BDE = _flow(student, kept_BL) - _flow(teacher, kept_BL)
    # In this order an empty batch gives 0.
    total = gap_BDE.square().sum() / (gap_BDE.shape[1] * gap_BDE.shape[2])
    return divide_counted(total, gap_BDE.shape[0], denominator)


def nst(
    student: Pair, teacher: Pair, mask_BL: Tensor | None = None, *, denominator: Tensor | float | None = None
) -> Tensor:
    """Squared distance of similarities of positions across two layers, mean over kept pairs, float32 at least.

    The similarity of a position of the first layer to one of the second is the product of their states, divided by the
    width. So student and teacher may have different widths.

    Args:
        student: states of two layers, (batch, length, width) each.
        teacher: two of (batch, length, teacher width).
        mask_BL: (batch, length).
        denominator: of the sum over pairs; None: their number, the sum of squared lengths.

    Raises:
        ValueError: batch or length of student and teacher differ.

    Source: Yang et al. 2020 (TextBrewer, arXiv:2002.12620), section 3, where it is called nst or mmd, after Huang and
    Wang 2017 (Like What You Like, arXiv:1707.01219).
    """
    kept_BL = kept_positions(student[0], mask_BL)
    student_BLL, teacher_BLL = _similarity(student, kept_BL), _similarity(teacher, kept_BL)
    require_same_shape(student_BLL, teacher_BLL)
    return divide_counted((student_BLL - teacher_BLL).square().sum(), pairs_of(kept_BL).sum(), denominator)


def cka(
    student_BLD: Tensor,
    teacher_BLE: Tensor,
    mask_BL: Tensor | None = None,
    *,
    denominator: Tensor | float | None = None,
) -> Tensor:
    """1 - debiased linear CKA of the positions of each sequence, mean over sequences, float32 at least.

    CKA compares the similarities between the positions of a sequence, so it ignores rotations and scales of the states,
    and needs no projection. Without its bias it is the cosine of the two matrices of similarities, without their
    diagonals and after U-centring. It is between 0 and 2. A sequence of fewer than 4 kept positions has no CKA: it
    adds 0, and still counts as one.

    Args:
        student_BLD: (batch, length, width).
        teacher_BLE: (batch, length, teacher width).
        mask_BL: (batch, length).
        denominator: of the sum over sequences; None: their number.

    Raises:
        ValueError: batch or length of student and teacher differ.

    Source: Kornblith et al. 2019 (arXiv:1905.00414), section 3, with the unbiased estimate of Song et al. 2012 (Feature
    Selection via Dependence Maximization), equation 5.

    Example:
        >>> import torch
        >>> from potstill.losses.hidden import cka
        >>> states = torch.randn(2, 6, 8)
        >>> rotation, _ = torch.linalg.qr(torch.randn(8, 8))
        >>> round(float(cka(3 * states @ rotation, states)), 4) + 0.0
        0.0
    """
    kept_BL = kept_positions(student_BLD, mask_BL)
    student_BLL, teacher_BLL = _centred(student_BLD, kept_BL), _centred(teacher_BLE, kept_BL)
    require_same_shape(student_BLL, teacher_BLL)
    distance_B = 1 - functional.cosine_similarity(student_BLL.flatten(1), teacher_BLL.flatten(1), dim=-1)
    long_B = kept_BL.sum(1) >= CKA_POSITIONS
    return divide_counted(distance_B.masked_fill(~long_B, 0).sum(), len(distance_B), denominator)


def _centred(states_BLD: Tensor, kept_BL: Tensor) -> Tensor:
    """U-centred similarities of the kept positions of each sequence; 0 on the diagonal and elsewhere."""
    scaled_BLD = _unit_norm(without_padding(states_BLD, kept_BL))
    pairs_BLL = pairs_of(kept_BL).triu(1) | pairs_of(kept_BL).tril(-1)
    similarity_BLL = full_product(scaled_BLD, scaled_BLD.transpose(1, 2)).masked_fill(~pairs_BLL, 0)
    kept_B = kept_BL.sum(1).clamp(min=CKA_POSITIONS)
    rows_BL = similarity_BLL.sum(-1) / (kept_B - 2)[:, None]
    total_B = similarity_BLL.sum((1, 2)) / ((kept_B - 1) * (kept_B - 2))
    centred_BLL = similarity_BLL - rows_BL[:, :, None] - rows_BL[:, None, :] + total_B[:, None, None]
    return centred_BLL.masked_fill(~pairs_BLL, 0)


def _unit_norm(states_BLD: Tensor) -> Tensor:
    """States whose mean square over a sequence is 1, so that products neither overflow nor vanish."""
    return states_BLD / nonzero(states_BLD.detach().square().mean((1, 2), keepdim=True).sqrt())


def _flow(layers: Pair, kept_BL: Tensor) -> Tensor:
    first_BLD, second_BLE = (without_padding(states, kept_BL) for states in layers)
    lengths_B11 = nonzero(kept_BL.sum(dim=1))[:, None, None]  # type: ignore[index]
    return full_product(first_BLD.transpose(1, 2), second_BLE) / lengths_B11


def _similarity(layers: Pair, kept_BL: Tensor) -> Tensor:
    first_BLD, second_BLD = (without_padding(states, kept_BL) for states in layers)
    return full_product(first_BLD, second_BLD.transpose(1, 2)) / first_BLD.shape[-1]
