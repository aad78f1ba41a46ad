"""Selection of a row's answer by a vote of labels, and probabilities of its choices from the tokens' log-probabilities.

Source of the vote: self-consistency (Wang et al. 2023).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from potstill.rationale_generation.answers import Answer

# (rationale, label) of an answer, or None.
Parse = Callable[[str], tuple[str, str] | None]
# Normalized label for comparison; None for an invalid label.
Canonical = Callable[[str], Hashable | None]

_BLANKS = str.maketrans({"▁": " ", "Ġ": " ", "Ċ": "\n"})  # blanks in tokens
_BEFORE = " \n\t(\"'*"  # characters of a token before a label


@dataclass(frozen=True)
class Choice:
    """The selected answer of a row.

    Attributes:
        text: The answer; empty if there is none.
        state: `good`, `unanswered`, `unparsed` (no answer has rationale and label) or `contradicting` (the label is not
            the gold label).
    """

    text: str
    state: Literal["good", "unanswered", "unparsed", "contradicting"]


def plain_label(label: str) -> str | None:
    """A label in lower case with single blanks; None for an empty one."""
    return " ".join(label.casefold().split()) or None


def choose(texts: Sequence[str], parse: Parse, canonical: Canonical, gold: str | None = None) -> Choice:
    """Select the first answer with the majority label of a row.

    The first label wins a tie. If no answer can be parsed, the first one is selected.

    Args:
        texts: Answers in the order of their samples.
        parse: Splits an answer into rationale and label; both must be non-blank for a vote.
        canonical: Normalizes a label for comparison.
        gold: Gold label, if known.
    """
    if not texts:
        return Choice("", "unanswered")
    labels = [_label(text, parse, canonical) for text in texts]
    votes = Counter(label for label in labels if label is not None)
    if not votes:
        return Choice(texts[0], "unparsed")
    winner = votes.most_common(1)[0][0]  # the first of a tie
    truth = None if gold is None else canonical(gold)
    wrong = truth is not None and winner != truth
    return Choice(texts[labels.index(winner)], "contradicting" if wrong else "good")


def _label(text: str, parse: Parse, canonical: Canonical) -> Hashable | None:
    parsed = parse(text)
    if parsed is None or not parsed[0].strip() or not parsed[1].strip():
        return None
    return canonical(parsed[1])


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
    likely = dict(answer.top[number])
    likely.setdefault(*answer.logprobs[number])
    found = dict.fromkeys(choices, 0.0)
    for token, value in likely.items():
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
