"""How sure a language model was of its label: probabilities of a row's choices, from those of its answer's tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from potstill.rationale_generation.answers import Answer

_BLANKS = str.maketrans({"▁": " ", "Ġ": " ", "Ċ": "\n"})  # how tokenizers spell blanks
_BEFORE = " \n\t(\"'*"  # what a token may have before a label


def label_probabilities(
    answer: Answer, label: str, choices: Sequence[str], *, lettered: bool
) -> dict[str, float] | None:
    """The probability of each choice, at the token of the answer where its label begins.

    The choices share what stands before, so the model decides there: at the letter of a lettered choice, else at the
    first token of the label. Alternatives that begin one choice count for it; what begins none or several is left out,
    and what is left is scaled to 1. A choice that is among no alternatives has 0.

    Args:
        answer: with the log-probabilities (nats) of its tokens and of their likeliest alternatives.
        label: that was cut from it.
        choices: what the label can be.
        lettered: answers name a choice by its letter, `(b) lake`.

    Returns:
        By choice, in their order; None where the answer has no such log-probabilities, the label is not in it, or the
        token where it begins tells the choices not apart.
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
    """Where the last mention of a label begins; of a lettered one its letter."""
    pattern = re.escape(label.strip())
    if lettered:
        pattern = rf"(?<=\()[a-z](?=\)\s*{pattern})"
    places = [match.start() for match in re.finditer(pattern, text, re.IGNORECASE)]
    return places[-1] if places and label.strip() else None


def _fitting(start: str, choices: Sequence[str], lettered: bool) -> list[str]:
    """The choices that a token may be the start of."""
    start = start.rstrip().casefold()
    if not start:
        return []
    if lettered:
        number = ord(start[0]) - ord("a")
        named = len(start) == 1 or start[1] == ")"
        return [choices[number]] if named and 0 <= number < len(choices) else []
    return [choice for choice in choices if choice.casefold().startswith(start)]
