"""Probabilities of a row's choices from the log-probabilities of an answer's tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from potstill.rationale_generation.answers import Answer

_BLANKS = str.maketrans({"▁": " ", "Ġ": " ", "Ċ": "\n"})  # blanks in tokens
_BEFORE = " \n\t(\"'*"  # characters of a token before a label


def label_probabilities(
    answer: Answer, label: str, choices: Sequence[str], *, lettered: bool
) -> dict[str, float] | None:
    """The probability of each choice at the token of the answer where the label begins.

    This is the letter of a lettered choice, or the first token of the label. Alternative tokens that begin exactly one
    choice count for it; their probabilities are scaled to a sum of 1. Other choices have 0.

    Args:
        answer: Answer with log-probabilities of its tokens and of their most likely alternatives.
        label: Label of the answer.
        choices: Possible labels.
        lettered: Whether answers name a choice by its letter, `(b) lake`.

    Returns:
        By choice, in their order; None without log-probabilities, if the label is not in the answer, or if its first
        token fits several choices.
    """
    if not answer.logprobs or not answer.top or len(answer.top) != len(answer.logprobs):
        return None
    tokens = [token.translate(_BLANKS) for token, _ in answer.logprobs]
    place = _begins("".join(tokens), label, lettered)
    if place is None:
        return None
    number, end = 0, len(tokens[0])
    while end <= place:
        number += 1
        end += len(tokens[number])
    said = dict(answer.top[number])
    said.setdefault(*answer.logprobs[number])
    found = dict.fromkeys(choices, 0.0)
    for token, value in said.items():
        fits = _fitting(token.translate(_BLANKS).lstrip(_BEFORE), choices, lettered)
        if len(fits) == 1:
            found[fits[0]] += math.exp(value)
    chosen = _fitting(tokens[number].lstrip(_BEFORE), choices, lettered)
    total = sum(found.values())
    if len(chosen) != 1 or total <= 0:
        return None
    return {choice: value / total for choice, value in found.items()}


def _begins(text: str, label: str, lettered: bool) -> int | None:
    """Start of the last mention of a label, or of its letter."""
    pattern = re.escape(label.strip())
    if lettered:
        pattern = rf"(?<=\()[a-z](?=\)\s*{pattern})"
    places = [match.start() for match in re.finditer(pattern, text, re.IGNORECASE)]
    return places[-1] if places and label.strip() else None


def _fitting(start: str, choices: Sequence[str], lettered: bool) -> list[str]:
    """The choices that begin with a token."""
    start = start.rstrip().casefold()
    if not start:
        return []
    if lettered:
        number = ord(start[0]) - ord("a")
        named = len(start) == 1 or start[1] == ")"
        return [choices[number]] if named and 0 <= number < len(choices) else []
    return [choice for choice in choices if choice.casefold().startswith(start)]
