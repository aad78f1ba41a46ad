"""Alignment of two tokenizations of one text."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]


def aligned_ends(first: ArrayLike, second: ArrayLike) -> tuple[Ints, Ints]:
    """The tokens of two tokenizations that end at the same character.

    After such tokens both models have read the same text, so their predictions can be compared. Tokens without
    characters (special tokens, padding) never align. For several tokens that end at one character, such as the bytes of
    one letter, the last one counts.

    Args:
        first: `(tokens, 2)` start and end characters of one text, as of `return_offsets_mapping`.
        second: `(tokens, 2)` of another tokenizer for the same text.

    Returns:
        Two arrays `(aligned,)`: positions in the first and in the second tokenization, ascending.

    Raises:
        ValueError: Offsets are not `(tokens, 2)`, or their ends decrease.
    """
    first_tokens, first_ends = _last_tokens(first)
    second_tokens, second_ends = _last_tokens(second)
    _, in_first, in_second = np.intersect1d(first_ends, second_ends, assume_unique=True, return_indices=True)
    return first_tokens[in_first], second_tokens[in_second]


def _last_tokens(offsets: ArrayLike) -> tuple[Ints, Ints]:
    """The last token that ends at each character, and the character; both ascending."""
    spans = np.asarray(offsets, dtype=np.int64)
    if spans.size == 0:
        spans = spans.reshape(0, 2)
    if spans.ndim != 2 or spans.shape[1] != 2:
        raise ValueError(f"offsets have the shape {spans.shape}, not (tokens, 2)")
    tokens = np.flatnonzero(spans[:, 1] > spans[:, 0])
    ends = spans[tokens, 1]
    if (np.diff(ends) < 0).any():
        raise ValueError("ends of offsets decrease: they are not of one text")
    last = np.append(np.diff(ends) > 0, True)[: len(ends)]
    return tokens[last], ends[last]
