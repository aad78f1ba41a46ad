"""Parsing rationale and label from raw outputs of an LLM.

An output is a rationale, a label after a marker, and then invented further examples, which are removed. The format
differs by set (Hsieh et al. 2023, arXiv:2305.02301, section 3.1, and the prompts of its appendix).
"""

from __future__ import annotations

import re
from collections.abc import Callable
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


class _Format(NamedTuple):
    """Format of the outputs of a set.

    Attributes:
        examples: Beginning of the first invented example.
        label: Parser of the text after a marker.
        markers: Text before the label; the first that occurs exactly once is used. PaLM's outputs have the first one.
    """

    examples: str
    label: Callable[[str], str | None]
    markers: tuple[str, ...]


def named(label: str) -> str | None:
    """The NLI label on the first line of a text, or None."""
    first = label.strip().split("\n")[0].strip().removesuffix(".").strip().lower()
    return first if first in NLI_LABELS else None


def _option(rest: str) -> str | None:
    """The text after a bracketed letter."""
    text = "".join(_OPTION.split(rest)[1:2]).strip()
    return text.removesuffix(".") if text else None


def _equation(rest: str) -> str | None:
    """The text from the first to the last bracket of the first line with both."""
    for line in rest.split("\n"):
        begin, end = line.find("("), line.rfind(")")
        if 0 <= begin < end:
            return line[begin : end + 1]
    return None


_FORMATS = {
    "cqa": _Format("Q:", _option, ("So the answer is",)),
    "svamp": _Format("Q:", _equation, ("The answer is",)),
    "asdiv": _Format("Q:", _equation, ("The answer is",)),
    "anli1": _Format("Premise:", named, ("So the answer is", "The answer is")),
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
    parse_label = named if name == _ESNLI else _FORMATS[name].label
    label = None if rest is None else parse_label(rest)
    stripped = None if rationale is None else rationale.rstrip()
    return Parsed(stripped or None, label or None)


def _halves(name: str, output: str, flavour: str) -> tuple[str | None, str | None]:
    """The text before the label's marker, and after it."""
    if name == _ESNLI:
        rationale = output.split("Answer:")[0]
        rest = output.split("Answer: ")
        return rationale.lstrip() if flavour == "gpt" else rationale, rest[1] if len(rest) > 1 else None
    form = _FORMATS[name]
    own = output.split(form.examples)[0].rstrip()
    own = own.lstrip() if flavour == "gpt" else own
    for marker in form.markers if flavour == "gpt" else form.markers[:1]:
        parts = own.split(marker)
        if len(parts) == 2:
            return parts[0], parts[1]
    return None, None
