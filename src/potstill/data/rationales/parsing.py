"""Parsing rationale and label from raw outputs of an LLM.

An output is a rationale, a label after a marker, and then invented further examples, which are removed. The format
differs by set (Hsieh et al. 2023, arXiv:2305.02301, section 3.1, and the prompts of its appendix).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from potstill.data.rationales.thoughts import final_answer

NLI_LABELS = ("entailment", "neutral", "contradiction")  # in the order of their numbers in the files
NLI_SETS = ("esnli", "anli1")
FLAVOURS = ("palm", "gpt")

_OPTION = re.compile(r"\(.\)")


class Parsed(NamedTuple):
    """Rationale and label of an output, or None.

    Attributes:
        rationale: Without blanks at its end, never blank.
        label: Label of the LLM; for an NLI set one of the three.
    """

    rationale: str | None
    label: str | None

    @property
    def whole(self) -> bool:
        """Whether both were found; otherwise the output counts as unparsed."""
        return self.rationale is not None and self.label is not None


@dataclass(frozen=True)
class _Format:
    """Format of the outputs of a set.

    Attributes:
        examples: Beginning of the first invented example.
        markers: Text before the label, by flavour; the first that occurs exactly once is used.
        label: `option` (after a bracketed letter), `equation` (from the first to the last bracket), or `nli`.
        missing: Result of the published parser without marker.
    """

    examples: str
    markers: dict[str, tuple[str, ...]]
    label: str
    missing: str


def _both(*markers: str) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(FLAVOURS, markers)


_EQUATIONS = _Format("Q:", _both("The answer is"), "equation", " ")
_FORMATS = {
    "cqa": _Format("Q:", _both("So the answer is"), "option", " "),
    "svamp": _EQUATIONS,
    "asdiv": _EQUATIONS,
    "anli1": _Format(
        "Premise:",
        {"palm": ("So the answer is",), "gpt": ("So the answer is", "The answer is")},
        "nli",
        "",
    ),
}
# e-SNLI's outputs have the label on a separate line, and a rationale even without that line.
_ESNLI = "esnli"
PARSED_SETS = (*_FORMATS, _ESNLI)


def parse(name: str, output: str, flavour: str = "palm") -> Parsed:
    """The rationale and the label of a raw output.

    Args:
        name: Name of the set, one of `PARSED_SETS`.
        output: Raw output.
        flavour: Source of the output, one of `FLAVOURS`.

    Returns:
        Rationale and label without the thoughts of a reasoning model; nothing for an output that ends within a thought.
        Another label than the three of NLI is None. A label of `cqa` may differ from all choices: "either (a) pond or
        (e) lake" gives "pond or", as published.
    """
    answer = final_answer(output, stop=() if name == _ESNLI else (_FORMATS[name].examples,))
    rationale, rest = (None, None) if answer is None else _halves(name, answer, flavour)
    kind = "nli" if name == _ESNLI else _FORMATS[name].label
    label = None if rest is None else _LABELS[kind](rest)
    stripped = None if rationale is None else rationale.rstrip()
    return Parsed(stripped or None, label or None)


def as_published(name: str, output: str, flavour: str = "palm") -> tuple[str, str]:
    """The results of the published parser with its peculiarities, for comparison only.

    Missing parts are `" "` or `""`; ANLI's labels lose their last character; the label of e-SNLI extends to the next
    premise.

    Raises:
        ValueError: The published parser fails for this output.
    """
    rationale, rest = _halves(name, output, flavour)
    if name == _ESNLI:
        return (rationale or "").rstrip(), " " if rest is None else rest.split("Premise")[0].rstrip()
    form = _FORMATS[name]
    if rationale is None or rest is None:
        if name == "cqa" and flavour == "palm":
            raise ValueError(f"'{form.markers[flavour][0]}' does not occur exactly once")
        return form.missing, form.missing
    label = rest.lstrip()[:-1] if form.label == "nli" else _LABELS[form.label](rest)
    return rationale.rstrip(), " " if label is None else label


def named(label: str) -> str | None:
    """The NLI label on the first line of a text, or None."""
    first = label.strip().split("\n")[0].strip().removesuffix(".").strip().lower()
    return first if first in NLI_LABELS else None


def _halves(name: str, output: str, flavour: str) -> tuple[str | None, str | None]:
    """The text before the label's marker, and after it."""
    if name == _ESNLI:
        rationale = output.split("Answer:")[0]
        rest = output.split("Answer: ")
        return rationale.lstrip() if flavour == "gpt" else rationale, rest[1] if len(rest) > 1 else None
    form = _FORMATS[name]
    own = output.split(form.examples)[0].rstrip()
    own = own.lstrip() if flavour == "gpt" else own
    for marker in form.markers[flavour]:
        parts = own.split(marker)
        if len(parts) == 2:
            return parts[0], parts[1]
    return None, None


def _option(rest: str) -> str | None:
    text = "".join(_OPTION.split(rest)[1:2]).strip()
    return text.removesuffix(".") if text else None


def _equation(rest: str) -> str | None:
    for line in rest.split("\n"):
        begin, end = line.find("("), line.rfind(")")
        if 0 <= begin < end:
            return line[begin : end + 1]
    return None


_LABELS = {"option": _option, "equation": _equation, "nli": named}
