"""A check by common words that rationales, which are matched to rows by their order, belong to their rows."""

from __future__ import annotations

import re
from collections.abc import Sequence

PARTS = 4  # checked separately: a missing row shifts all that follow
FEWEST = 20  # decisive rows that a part must have
# Share of these whose rationale has more words of its own input: 0.99 in the published sets, a half for other rows.
LEAST = 0.75

_WORD = re.compile(r"[^\W_]+")


def mismatched_rows(inputs: Sequence[str], rationales: Sequence[str | None]) -> range | None:
    """The first part of the rows whose rationales do not share more words with their own input than with a far one.

    Args:
        inputs: One per row.
        rationales: One per row, or None.

    Returns:
        Numbers of rows, from 0; None if the rationales fit, or too few rows are decisive.
    """
    words = [set(_WORD.findall(text.lower())) for text in inputs]
    size = -(-len(inputs) // PARTS) if inputs else 1
    for start in range(0, len(inputs), size):
        part = range(start, min(start + size, len(inputs)))
        shared = [_shared(row, words, rationales[row]) for row in part]
        more = sum(own > other for own, other in shared)
        decided = sum(own != other for own, other in shared)
        if decided >= FEWEST and more < LEAST * decided:
            return part
    return None


def _shared(row: int, words: Sequence[set[str]], rationale: str | None) -> tuple[int, int]:
    """Number of a rationale's words in its own input, and in that of the row half a set away."""
    own = set(_WORD.findall((rationale or "").lower()))
    return len(own & words[row]), len(own & words[(row + len(words) // 2) % len(words)])
