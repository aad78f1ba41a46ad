"""Rationale and label, cut from what an LLM wrote.

An output is a rationale, a label behind a marker, and then made-up further examples, which are cut off. Where each
stands differs by set; GPT's outputs are besides stripped at the front (Hsieh et al. 2023, arXiv:2305.02301, section
3.1, and the prompts of its appendix).
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
    """What was found in an output; None for what was not.

    Attributes:
        rationale: stripped of blanks at its end, never blank.
        label: as the LLM gave it; of an NLI set always one of the three.
    """

    rationale: str | None
    label: str | None

    @property
    def whole(self) -> bool:
        """Whether both were found; an output that lacks one counts as unparsed."""
        return self.rationale is not None and self.label is not None


@dataclass(frozen=True)
class _Form:
    """How the outputs of a set are laid out.

    Attributes:
        examples: what the first made-up example begins with.
        markers: what stands before the label, by flavour; the first that occurs exactly once is taken.
        label: `option` (behind a bracketed letter), `equation` (from the first to the last bracket), or `nli`.
        missing: what the published parser gives where it finds no marker.
    """

    examples: str
    markers: dict[str, tuple[str, ...]]
    label: str
    missing: str


def _both(*markers: str) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(FLAVOURS, markers)


_EQUATIONS = _Form("Q:", _both("The answer is"), "equation", " ")
_FORMS = {
    "cqa": _Form("Q:", _both("So the answer is"), "option", " "),
    "svamp": _EQUATIONS,
    "asdiv": _EQUATIONS,
    "anli1": _Form(
        "Premise:",
        {"palm": ("So the answer is",), "gpt": ("So the answer is", "The answer is")},
        "nli",
        "",
    ),
}
# e-SNLI's outputs have the label on a line of its own, and a rationale even where that line is missing.
_ESNLI = "esnli"
PARSED_SETS = (*_FORMS, _ESNLI)


def parse(name: str, output: str, flavour: str = "palm") -> Parsed:
    """The rationale and the label of a raw output.

    Args:
        name: of the set, one of `PARSED_SETS`.
        output: as the LLM wrote it.
        flavour: whose output it is, one of `FLAVOURS`.

    Returns:
        What was found, thoughts of a reasoning model left out; nothing where the output ends within a thought. A label
        of an NLI set that is none of the three (an output that breaks off) is None. A label of
        `cqa` need not be one of the choices: "either (a) pond or (e) lake" gives "pond or", as published.
    """
    answer = final_answer(output, stop=() if name == _ESNLI else (_FORMS[name].examples,))
    rationale, rest = (None, None) if answer is None else _halves(name, answer, flavour)
    kind = "nli" if name == _ESNLI else _FORMS[name].label
    label = None if rest is None else _LABELS[kind](rest)
    stripped = None if rationale is None else rationale.rstrip()
    return Parsed(stripped or None, label or None)


def as_published(name: str, output: str, flavour: str = "palm") -> tuple[str, str]:
    """The same as the published parser has it, oddities counted; for comparison only.

    What is not found is a blank (`" "`) or nothing (`""`); ANLI's labels lose their last character, whatever it is;
    the label of e-SNLI is all that stands before the next premise.

    Raises:
        ValueError: the published parser fails at this output.
    """
    rationale, rest = _halves(name, output, flavour)
    if name == _ESNLI:
        return (rationale or "").rstrip(), " " if rest is None else rest.split("Premise")[0].rstrip()
    form = _FORMS[name]
    if rationale is None or rest is None:
        if name == "cqa" and flavour == "palm":
            raise ValueError(f"'{form.markers[flavour][0]}' does not stand there exactly once")
        return form.missing, form.missing
    label = rest.lstrip()[:-1] if form.label == "nli" else _LABELS[form.label](rest)
    return rationale.rstrip(), " " if label is None else label


def named(label: str) -> str | None:
    """The one of the three NLI labels that a text begins with on its first line, or None."""
    first = label.strip().split("\n")[0].strip().removesuffix(".").strip().lower()
    return first if first in NLI_LABELS else None


def _halves(name: str, output: str, flavour: str) -> tuple[str | None, str | None]:
    """What stands before the label's marker and behind it."""
    if name == _ESNLI:
        rationale = output.split("Answer:")[0]
        rest = output.split("Answer: ")
        return rationale.lstrip() if flavour == "gpt" else rationale, rest[1] if len(rest) > 1 else None
    form = _FORMS[name]
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
