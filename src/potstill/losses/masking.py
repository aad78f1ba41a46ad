"""Positions, and pairs of positions, that count under an input mask."""

import torch
from torch import Tensor

from potstill.losses.soft_targets import at_least_float32


def kept_positions(states_BLD: Tensor, mask_BL: Tensor | None) -> Tensor:
    """The mask as bool (batch, length); without one every position counts.

    Args:
        states_BLD: (batch, length, width), for the shape and the device.
        mask_BL: (batch, length), nonzero where a token is; or None.

    Raises:
        ValueError: the mask is of another batch or length.
    """
    if mask_BL is None:
        return torch.ones(states_BLD.shape[:2], dtype=torch.bool, device=states_BLD.device)
    _require_batch(states_BLD, mask_BL)
    return mask_BL.bool()


def pairs_of(kept_BL: Tensor) -> Tensor:
    """(batch, length, length): whether both positions of a pair count."""
    return kept_BL.unsqueeze(2) & kept_BL.unsqueeze(1)


def without_padding(states_BLD: Tensor, kept_BL: Tensor) -> Tensor:
    """States in float32 at least; other positions are 0, without a gradient.

    Raises:
        ValueError: the states are of another batch or length.
    """
    _require_batch(states_BLD, kept_BL)
    return at_least_float32(states_BLD).masked_fill(~kept_BL.unsqueeze(-1), 0)


def log_softmax_kept(scores: Tensor, kept: Tensor) -> Tensor:
    """Log-softmax over the last dimension, among the kept keys alone; float32 at least.

    Args:
        scores: (..., queries, keys).
        kept: bool, broadcast against the scores.

    Returns:
        The shape of the scores. Other keys get a finite number so low that its exponential is 0: unlike -inf, its
        product with a probability of 0 is not NaN.
    """
    scores = at_least_float32(scores)
    return scores.masked_fill(~kept, torch.finfo(scores.dtype).min).log_softmax(dim=-1)


def require_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Reject states that broadcasting would silently compare.

    Raises:
        ValueError: the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ; project the student's first"
        )


def _require_batch(states_BLD: Tensor, mask_BL: Tensor) -> None:
    if states_BLD.shape[:2] != mask_BL.shape:
        raise ValueError(f"states {tuple(states_BLD.shape)} and mask {tuple(mask_BL.shape)} differ in batch or length")
