"""The known data sets: input, label and choices of their records."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from potstill.config.data import ArithmeticDataConfig, RationaleDataConfig, SetDataConfig
from potstill.data.common.records import Record, RecordError, field_of
from potstill.data.rationales.parsing import NLI_LABELS

GENERATED = "arithmetic"  # name of the generated set, see `arithmetic.py`
TEXT, EQUATION = "text", "equation"  # labels are compared as text, or by their values

_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(/[0-9]+)?")


class Example(NamedTuple):
    """Input and label of a record.

    Attributes:
        input: Input without task prefix.
        label: Gold label.
        choices: Possible labels in the record's order; None for free labels.
    """

    input: str
    label: str
    choices: tuple[str, ...] | None


@dataclass(frozen=True)
class RationaleSet:
    """A data set of step-by-step distillation.

    Attributes:
        name: Name of its folder and prefix of its files.
        compared: `TEXT` or `EQUATION`.
        example: Converts a record, given the separator of premise and hypothesis; returns None for an unusable record,
            and raises `RecordError` for an invalid one.
        splits: Published parts; without `valid`, a part of `train` is held out.
    """

    name: str
    compared: str
    example: Callable[[Record, str], Example | None]
    splits: tuple[str, ...]


def _cqa(record: Record, _: str) -> Example:
    choices = field_of(record, "choices", list)
    if not choices or not all(isinstance(choice, str) for choice in choices):
        raise RecordError(f"'choices' is not a list of texts ({choices!r})")
    lines = [f"({chr(ord('a') + n)}) {choice}" for n, choice in enumerate(choices)]
    text = "\n".join([field_of(record, "question"), "Answer Choices:", *lines])
    return Example(text, field_of(record, "answer"), tuple(choices))


def _nli(record: Record, separator: str) -> Example | None:
    """A pair without agreement of its annotators (SNLI's `-`) is unusable."""
    label = field_of(record, "label", (int, str))
    if label == "-":
        return None
    if isinstance(label, int) and 0 <= label < len(NLI_LABELS):
        label = NLI_LABELS[label]
    if label not in NLI_LABELS:
        raise RecordError(f"'label' is {label!r}, not one of 0, 1, 2 or {', '.join(NLI_LABELS)}")
    text = separator.join([field_of(record, "premise"), field_of(record, "hypothesis")])
    return Example(text, label, NLI_LABELS)


def _svamp(record: Record, _: str) -> Example:
    if "Body" in record:  # the original file
        text = f"{field_of(record, 'Body')}\n{field_of(record, 'Question')}"
        return Example(text, field_of(record, "Equation"), None)
    return Example(field_of(record, "input"), field_of(record, "label"), None)


def _asdiv(record: Record, _: str) -> Example | None:
    """The label is the answer's number; a record with another answer (a name, a time of day) is unusable."""
    answer = field_of(record, "Answer").split(" ")[0]
    if not _NUMBER.fullmatch(answer):
        return None
    return Example(f"{field_of(record, 'Body')}\n{field_of(record, 'Question')}", answer, None)


def own_example(record: Record, _: str) -> Example:
    """A record of a user's own data: `input`, `label`, and optionally `choices`."""
    choices = record.get("choices")
    if choices is not None and not (isinstance(choices, list) and choices and all(isinstance(c, str) for c in choices)):
        raise RecordError(f"'choices' is not a list of texts ({choices!r})")
    label = field_of(record, "label")
    if choices is not None and label not in choices:
        raise RecordError(f"'label' is {label!r}, not one of 'choices' ({', '.join(choices)})")
    return Example(field_of(record, "input"), label, None if choices is None else tuple(choices))


SETS = {
    known.name: known
    for known in (
        RationaleSet("cqa", TEXT, _cqa, ("train", "test")),
        RationaleSet("svamp", EQUATION, _svamp, ("train", "test")),
        RationaleSet("asdiv", EQUATION, _asdiv, ("train",)),
        RationaleSet("esnli", TEXT, _nli, ("train", "valid", "test")),
        RationaleSet("anli1", TEXT, _nli, ("train", "valid", "test")),
    )
}


def set_of(data: RationaleDataConfig) -> str:
    """The set by whose rules labels are compared; empty if as texts."""
    if isinstance(data, ArithmeticDataConfig):
        return GENERATED
    return data.set or "" if isinstance(data, SetDataConfig) else ""


def by_value(name: str) -> bool:
    """Whether the labels of a set are free, and compared by their values."""
    return name == GENERATED or (name in SETS and SETS[name].compared == EQUATION)


def allowed_labels(choices: tuple[str, ...] | None) -> list[str] | None:
    """The distinct choices of a row, for class-restricted decoding; None for free labels."""
    return None if choices is None else list(dict.fromkeys(choices))
