"""Indices into sequences of different lengths that lie end to end in one array."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def flat_indices(starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> Ints:
    """Indices of all elements of sequences, one sequence after another.

    Args:
        starts: `(n,)` index of the first element of each sequence.
        lengths: `(n,)` number of elements of each.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)


def padded_indices(
    starts: NDArray[np.integer], lengths: NDArray[np.integer], width: int | None = None
) -> tuple[Ints, NDArray[np.bool_]]:
    """Indices of sequences padded to one width, 0 at padding, and a mask that is False at padding.

    Args:
        starts: `(n,)` index of the first element of each sequence.
        lengths: `(n,)` number of elements of each.
        width: Number of columns; None for the longest sequence.

    Returns:
        Two arrays `(n, width)`.
    """
    columns = np.arange(int(lengths.max(initial=0)) if width is None else width)
    mask = columns < lengths[:, None]
    return np.where(mask, starts[:, None] + columns, 0), mask


def starts_of(lengths: NDArray[np.integer]) -> Ints:
    """`(n,)` index of the first element of each sequence, of their `(n,)` lengths."""
    return np.cumsum(lengths, dtype=np.int64) - lengths
