"""Positions at which two tokenizations of one text have read the same characters."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]


def aligned_ends(first: ArrayLike, second: ArrayLike) -> tuple[Ints, Ints]:
    """The tokens of two tokenizations that end at the same character of the same text.

    After such tokens both models have read the same text and predict what follows, so their distributions can be
    compared. Tokens without characters (special tokens, padding) never align. Of several tokens that end at one
    character, such as the bytes of one letter, the last is taken: only then is the letter read.

    Args:
        first: (tokens, 2) start and end of each token in characters, the end exclusive, as fast tokenizers give them
            (`return_offsets_mapping`), of one text.
        second: (tokens, 2) of the other tokenizer, of the very same text.

    Returns:
        Two arrays (aligned,): positions in the first and in the second tokenization, ascending.

    Raises:
        ValueError: offsets are not (tokens, 2), or ends go back, as they do where two texts are joined (align each
            text by itself).
    """
    first_tokens, first_ends = _last_tokens(first)
    second_tokens, second_ends = _last_tokens(second)
    _, in_first, in_second = np.intersect1d(first_ends, second_ends, assume_unique=True, return_indices=True)
    return first_tokens[in_first], second_tokens[in_second]


def _last_tokens(offsets: ArrayLike) -> tuple[Ints, Ints]:
    """The last token that ends at each character, and that character; both ascending."""
    spans = np.asarray(offsets, dtype=np.int64)
    if spans.size == 0:
        spans = spans.reshape(0, 2)
    if spans.ndim != 2 or spans.shape[1] != 2:
        raise ValueError(f"offsets have the shape {spans.shape}, not (tokens, 2)")
    tokens = np.flatnonzero(spans[:, 1] > spans[:, 0])
    ends = spans[tokens, 1]
    if (np.diff(ends) < 0).any():
        raise ValueError("offsets go back: they are not those of one text")
    last = np.append(np.diff(ends) > 0, True)[: len(ends)]
    return tokens[last], ends[last]
