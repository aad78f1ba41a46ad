"""Which of a row's answers is kept: a vote of labels (self-consistency), and the label that it should have."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

# (rationale, label) of an answer; None where it has none.
Parse = Callable[[str], tuple[str, str] | None]
# What of a label counts where two are compared; None for a label that is none.
Canonical = Callable[[str], Hashable | None]


@dataclass(frozen=True)
class Choice:
    """The answer that stands for a row.

    Attributes:
        text: the whole answer, as the model wrote it; empty where there is none.
        state: `good`, `unanswered`, `unparsed` (no answer has both rationale and label) or `contradicting` (the
            label is not the gold one).
    """

    text: str
    state: Literal["good", "unanswered", "unparsed", "contradicting"]


def plain_label(label: str) -> str | None:
    """A label without case and outer or doubled blanks; None for an empty one."""
    return " ".join(label.casefold().split()) or None


def choose(texts: Sequence[str], parse: Parse, canonical: Canonical, gold: str | None = None) -> Choice:
    """Choose among the answers to one row by the majority of their labels.

    Self-consistency (Wang et al. 2023): every answer that parses has one vote; of labels with as many votes the one
    that came first wins, and the first answer with that label is kept. Where none parses it is the first answer.

    Args:
        texts: the answers, in the order of their samples.
        parse: splits an answer into rationale and label; None, or one of both blank, is no vote.
        canonical: what of a label is compared.
        gold: the row's true label, if it is known; one of which nothing counts contradicts no answer.
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
    winner = max(
        votes, key=lambda label: votes[label]
    )  # of equals the first, as dictionaries keep their order
    truth = None if gold is None else canonical(gold)
    wrong = truth is not None and winner != truth
    return Choice(first[winner], "contradicting" if wrong else "good")


def _label(text: str, parse: Parse, canonical: Canonical) -> Hashable | None:
    parsed = parse(text)
    if parsed is None or not parsed[0].strip() or not parsed[1].strip():
        return None
    return canonical(parsed[1])
