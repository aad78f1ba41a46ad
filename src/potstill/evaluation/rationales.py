"""Accuracy of an LLM's labels, and consistency of labels with rationales."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from potstill.data.rationales.parsing import NLI_LABELS, named
from potstill.data.rationales.rows import RationaleRows
from potstill.data.rationales.sets import by_value
from potstill.errors import LabelError
from potstill.evaluation.equations import NUMBER, equation_accuracy, same_value, text_accuracy, value_of

# A number or a fraction after an equality sign, without the full stop of the sentence.
_RESULT = re.compile(rf"=\s*\$?\s*([-\u2212]?\s?{NUMBER}(?:\s*/\s*{NUMBER})?)")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")

# Phrases by which English NLI rationales state their conclusion.
_CUES = {
    "entailment": r"entail\w*|impl(?:y|ies|ied)|follows? from|means? that|(?:is|are) (?:a|another) (?:type|kind|form|"
    r"way|word|rephrasing) (?:of|for|to)|synonym\w*|(?:is|are|was|were) the same as|same thing",
    "neutral": r"neutral|(?:not|n't) necessarily|may or may not|not all|(?:does|do|did) ?(?:not|n't) (?:mean|imply|"
    r"entail|mention|say|state|specify|indicate)|no (?:indication|information|mention|evidence)|not (?:clear|known|"
    r"stated|mentioned|specified|enough|related)|unclear|(?:could|might|may) (?:be|have|also|not)",
    "contradiction": r"contradict\w*|cannot|can(?: not|'t)|at the same time|simultaneously|(?:is|are|was|were) not"
    r"(?! (?:necessarily|all|clear|known|stated|mentioned|specified|enough|related|the only))"
    r"|(?:is|are)n't(?! necessarily)|different from|opposite|instead of|rather than|either",
}
_NLI = {label: re.compile(rf"\b(?:{cues})(?!\w)", re.IGNORECASE) for label, cues in _CUES.items()}


class Consistency(NamedTuple):
    """Share of consistent rows among the decided ones (NaN if there are none), and share of decided rows."""

    share: float
    decided: float


def llm_accuracy(name: str, rows: RationaleRows) -> float:
    """Accuracy of the LLM's labels, by value (SVAMP, ASDiv) or by text; an output that could not be parsed is wrong.

    Args:
        name: of the set.
        rows: of a part, including unparsed ones.

    Raises:
        LabelError: the part has no labels of an LLM.
    """
    if not any(label is not None for label in rows.llm_labels):
        raise LabelError(f"data.rationales: '{rows.name}' has no labels of an LLM; give outputs with labels")
    accuracy = equation_accuracy if by_value(name) else text_accuracy
    return accuracy([label or "" for label in rows.llm_labels], rows.labels)


def conclusion(name: str, rationale: str, choices: Sequence[str] | None = None) -> str | None:
    """The label that a rationale concludes with; None if it is not recognized.

    - Equations (SVAMP, ASDiv): the number after the last equality sign.
    - NLI: the label whose cues ("not necessarily", "cannot", "implies", ...) are in the last sentence that has any.
      Neutral takes precedence, since it hedges the others ("does not imply"); None for cues of the other two. These are
      heuristics for English: half of PaLM's rationales of e-SNLI's validation part are decided, and 19 of 20 of these
      agree with PaLM's label.
    - Sets with choices: the choice that is named, in singular or plural, in the last sentence that names one; None for
      several. A choice within a longer one ("station" in "train station") does not count.

    Args:
        name: of the set; rows of other sets with choices are treated like `cqa`.
        rationale: one text.
        choices: of the row.
    """
    if by_value(name):
        results = _RESULT.findall(rationale)
        return results[-1].replace(",", "").rstrip(".") if results else None
    nli = choices is not None and set(choices) == set(NLI_LABELS)
    for sentence in reversed(_SENTENCE_END.split(rationale)):
        found = _cued(sentence) if nli else _mentioned(sentence, choices or ())
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def consistency(
    name: str, labels: Sequence[str], rationales: Sequence[str], choices: Sequence[Sequence[str] | None]
) -> Consistency:
    """Agreement of each label with the conclusion of its rationale; both may be predictions.

    Args:
        name: of the set.
        labels: one per row; equations are compared by value.
        rationales: one per row.
        choices: one per row, as in `RationaleRows.choices`.

    Raises:
        ValueError: no rows, or lists of different lengths.
    """
    concluded = [conclusion(name, text, own) for text, own in zip(rationales, choices, strict=True)]
    agreed = [_same(name, label, found) for label, found in zip(labels, concluded, strict=True) if found is not None]
    if not labels:
        raise ValueError("no rows")
    share = sum(agreed) / len(agreed) if agreed else float("nan")
    return Consistency(share, len(agreed) / len(labels))


def _same(name: str, label: str, found: str) -> bool:
    if by_value(name):
        return same_value(value_of(label), value_of(found))
    return label.strip().lower() == found.lower() or named(label) == found


def _cued(sentence: str) -> set[str]:
    found = {label for label, pattern in _NLI.items() if pattern.search(sentence)}
    return found & {"neutral"} or found  # "does not imply": neutral hedges the other cue


def _mentioned(sentence: str, choices: Sequence[str]) -> set[str]:
    """The choices that a sentence names; parts of longer choices are not counted."""
    rest, found = sentence.lower(), set()
    for choice in sorted({c.strip() for c in choices if c.strip()}, key=len, reverse=True):
        pattern = re.compile(rf"(?<!\w){re.escape(choice.lower())}(?:e?s)?(?!\w)")
        if pattern.search(rest):
            found.add(choice)
            rest = pattern.sub(" ", rest)
    return found
