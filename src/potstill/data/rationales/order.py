"""Whether rationales belong to their rows: they are matched by their order alone, so words have to tell."""

from __future__ import annotations

import re
from collections.abc import Sequence

PARTS = 4  # that are looked at by themselves: a row that is missing moves all that follow
FEWEST = 20  # rows that tell something, in a part
# Share of them whose rationale has more words of its own input: 0.99 in the published sets, a half of other rows.
LEAST = 0.75

_WORD = re.compile(r"[^\W_]+")


def of_other_rows(inputs: Sequence[str], rationales: Sequence[str | None]) -> range | None:
    """The first rows whose rationales share no more words with their own input than with that of a row far away.

    Args:
        inputs: one a row.
        rationales: one a row; None where there is none.

    Returns:
        The rows of a part, from 0; None where the rationales are of their rows, or nothing tells.
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
    """How many of a rationale's words are in its own input, and in that of the row half a set away."""
    said = set(_WORD.findall((rationale or "").lower()))
    return len(said & words[row]), len(said & words[(row + len(words) // 2) % len(words)])
