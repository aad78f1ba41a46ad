"""How good an LLM's labels are, and whether labels and rationales say the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from potstill.data.rationales.parsing import NLI_LABELS, named
from potstill.data.rationales.rows import RationaleRows
from potstill.data.rationales.sets import EQUATION, SETS
from potstill.errors import DataError
from potstill.evaluation.equations import NUMBER, equation_accuracy, same_value, text_accuracy, value_of

# The last number behind an equality sign, or a fraction; a point that ends the sentence is no part of it.
_RESULT = re.compile(rf"=\s*\$?\s*([-\u2212]?\s?{NUMBER}(?:\s*/\s*{NUMBER})?)")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")

# How rationales of NLI put what they conclude, in English.
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


@dataclass(frozen=True)
class Consistency:
    """How often labels are what their rationales conclude.

    Attributes:
        share: of the decided rows, those whose label is the rationale's; not a number where none is decided.
        decided: share of the rows whose rationale has a conclusion that could be told.
    """

    share: float
    decided: float


def label_accuracy(name: str, predictions: Sequence[str], gold: Sequence[str]) -> float:
    """Accuracy as a set has it: by value (SVAMP, ASDiv), or by text.

    Raises:
        ValueError: there are none, or not as many of both.
    """
    by_value = name in SETS and SETS[name].compared == EQUATION
    return (equation_accuracy if by_value else text_accuracy)(predictions, gold)


def llm_accuracy(name: str, rows: RationaleRows) -> float:
    """The LLM's own accuracy: its labels against the gold ones; an output that was not understood is wrong.

    Args:
        name: of the set.
        rows: of a part, before unparsed ones are left out.

    Raises:
        DataError: the part has no labels of an LLM.
    """
    if not any(label is not None for label in rows.llm_labels):
        raise DataError(
            f"data.rationales: '{rows.name}' has no labels of an LLM; give outputs that have them"
        )
    return label_accuracy(name, [label or "" for label in rows.llm_labels], rows.labels)


def conclusion(name: str, rationale: str, choices: Sequence[str] | None = None) -> str | None:
    """What a rationale concludes, as a label; None where that cannot be told.

    - Equations (SVAMP, ASDiv): the number behind the last equality sign.
    - NLI: the label whose cues ("not necessarily", "cannot", "implies", ...) stand in the last sentence that has any.
      Neutral wins over the others, since it hedges them ("does not imply"); none where it is between the other two.
      These are rules of thumb for rationales in English: of PaLM's on e-SNLI's validation part, half are decided, and
      19 of 20 of these as PaLM's own label says.
    - Sets with choices: the choice that is named, in the plural or not, in the last sentence that names one; none where
      it names several. A choice within a longer one ("station" in "train station") does not count.

    Args:
        name: of the set; of any other one, rows with choices are treated like `cqa`.
        rationale: one text.
        choices: of the row.
    """
    if name in SETS and SETS[name].compared == EQUATION:
        results = _RESULT.findall(rationale)
        return results[-1].replace(",", "").rstrip(".") if results else None
    nli = choices is not None and set(choices) == set(NLI_LABELS)
    for sentence in reversed(_SENTENCE_END.split(rationale)):
        found = _cued(sentence) if nli else _mentioned(sentence, choices or ())
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def consistency(
    name: str,
    labels: Sequence[str],
    rationales: Sequence[str],
    choices: Sequence[Sequence[str] | None],
) -> Consistency:
    """Whether each label is what its rationale concludes; both may be predictions.

    Args:
        name: of the set.
        labels: one a row; equations are compared by value.
        rationales: one a row.
        choices: one a row, as in `RationaleRows.choices`.

    Raises:
        ValueError: there are no rows, or not as many of each.
    """
    concluded = [conclusion(name, text, own) for text, own in zip(rationales, choices, strict=True)]
    agreed = [
        _same(name, label, found) for label, found in zip(labels, concluded, strict=True) if found is not None
    ]
    if not labels:
        raise ValueError("there are no rows")
    share = sum(agreed) / len(agreed) if agreed else float("nan")
    return Consistency(share, len(agreed) / len(labels))


def _same(name: str, label: str, found: str) -> bool:
    if name in SETS and SETS[name].compared == EQUATION:
        return same_value(value_of(label), value_of(found))
    return label.strip().lower() == found.lower() or named(label) == found


def _cued(sentence: str) -> set[str]:
    found = {label for label, pattern in _NLI.items() if pattern.search(sentence)}
    return (
        found & {"neutral"} or found
    )  # "does not imply", "could not be": a hedge decides over what it hedges


def _mentioned(sentence: str, choices: Sequence[str]) -> set[str]:
    """The choices that a sentence names, longest first, so that a part of a longer one is not counted."""
    rest, found = sentence.lower(), set()
    for choice in sorted({c.strip() for c in choices if c.strip()}, key=len, reverse=True):
        pattern = re.compile(rf"(?<!\w){re.escape(choice.lower())}(?:e?s)?(?!\w)")
        if pattern.search(rest):
            found.add(choice)
            rest = pattern.sub(" ", rest)
    return found
