"""Selection of a row's answer by a vote of labels (self-consistency), and comparison with the gold label."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

# (rationale, label) of an answer, or None.
Parse = Callable[[str], tuple[str, str] | None]
# Normalized label for comparison; None for an invalid label.
Canonical = Callable[[str], Hashable | None]


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
    """Select the first answer with the majority label of a row (self-consistency, Wang et al. 2023).

    The first label wins a tie. If no answer can be parsed, the first one is selected.

    Args:
        texts: Answers in the order of their samples.
        parse: Splits an answer into rationale and label; both must be non-blank for a vote.
        canonical: Normalizes a label for comparison.
        gold: Gold label, if known.
    """
    if not texts:
        return Choice("", "unanswered")
    votes: dict[Hashable, int] = {}
    first: dict[Hashable, str] = {}
    for text in texts:
        label = _label(text, parse, canonical)
        if label is not None:
            votes[label] = votes.get(label, 0) + 1
            first.setdefault(label, text)
    if not votes:
        return Choice(texts[0], "unparsed")
    winner = max(votes, key=lambda label: votes[label])  # the first of a tie
    truth = None if gold is None else canonical(gold)
    wrong = truth is not None and winner != truth
    return Choice(first[winner], "contradicting" if wrong else "good")


def _label(text: str, parse: Parse, canonical: Canonical) -> Hashable | None:
    parsed = parse(text)
    if parsed is None or not parsed[0].strip() or not parsed[1].strip():
        return None
    return canonical(parsed[1])
