"""The sets that are known: what is the input, the label and the choices of a record."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from potstill.data.rationales.parsing import NLI_LABELS

GENERATED = "arithmetic"  # the set whose rows are made, see `arithmetic.py`
TEXT, EQUATION = "text", "equation"  # how labels are compared: letter by letter, or by their values

Record = Mapping[str, Any]

_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(/[0-9]+)?")


class Example(NamedTuple):
    """A record as the student sees it.

    Attributes:
        input: without the task's prefix.
        label: as it is to be written.
        choices: what the label can be, in the record's order; None where it can be anything.
    """

    input: str
    label: str
    choices: tuple[str, ...] | None


class RecordError(ValueError):
    """A record that cannot be used; says what is wrong with it, not where it stands."""


@dataclass(frozen=True)
class RationaleSet:
    """A set of step-by-step distillation.

    Attributes:
        name: of its folder and the front of its files' names.
        compared: `TEXT` or `EQUATION`.
        example: makes an example of a record, given the text between a premise and its hypothesis; None for a record
            that is no use; raises `RecordError` for one that should have been.
        splits: the parts that are published; where `valid` is none of them, a part of `train` takes its place.
    """

    name: str
    compared: str
    example: Callable[[Record, str], Example | None]
    splits: tuple[str, ...]


def field_of(record: Record, field: str, kind: type | tuple[type, ...] = str) -> Any:
    """A field of a record.

    Raises:
        RecordError: it is missing, or of another kind.
    """
    value = record.get(field)
    if not isinstance(value, kind):
        found = (
            f"is {value!r}" if field in record else f"is missing (there are {', '.join(map(str, record))})"
        )
        raise RecordError(f"'{field}' {found}")
    return value


def _cqa(record: Record, _: str) -> Example:
    choices = field_of(record, "choices", list)
    if not choices or not all(isinstance(choice, str) for choice in choices):
        raise RecordError(f"'choices' is no list of texts ({choices!r})")
    lines = [f"({chr(ord('a') + n)}) {choice}" for n, choice in enumerate(choices)]
    text = "\n".join([field_of(record, "question"), "Answer Choices:", *lines])
    return Example(text, field_of(record, "answer"), tuple(choices))


def _nli(record: Record, separator: str) -> Example | None:
    """A pair on whose label its annotators did not agree (SNLI's `-`) is no use."""
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
    """The label is the answer's number; a record with another answer (a name, a time of day) has no value."""
    answer = field_of(record, "Answer").split(" ")[0]
    if not _NUMBER.fullmatch(answer):
        return None
    return Example(f"{field_of(record, 'Body')}\n{field_of(record, 'Question')}", answer, None)


def own(record: Record, _: str) -> Example:
    """A record of the user's own data: `input`, `label`, and perhaps `choices`."""
    choices = record.get("choices")
    if choices is not None and not (
        isinstance(choices, list) and choices and all(isinstance(c, str) for c in choices)
    ):
        raise RecordError(f"'choices' is no list of texts ({choices!r})")
    label = field_of(record, "label")
    if choices is not None and label not in choices:
        raise RecordError(f"'label' is {label!r}, none of 'choices' ({', '.join(choices)})")
    return Example(field_of(record, "input"), label, None if choices is None else tuple(choices))


SETS = {
    known.name: known
    for known in (
        RationaleSet("cqa", TEXT, _cqa, ("train", "test")),
        RationaleSet("svamp", EQUATION, _svamp, ("train", "test")),
        RationaleSet("asdiv", EQUATION, _asdiv, ("train",)),
        RationaleSet("esnli", TEXT, _nli, ("train", "valid", "test")),
        RationaleSet("anli1", TEXT, _nli, ("train", "valid", "test")),
        RationaleSet(GENERATED, EQUATION, own, ("train", "valid", "test")),
    )
}


def allowed_labels(choices: tuple[str, ...] | None) -> list[str] | None:
    """The strings that class-restricted decoding may give for a row: its choices, each once; None for any string.

    Args:
        choices: of the row, as in `RationaleRows.choices`: five answers (cqa), three labels (NLI), None (equations).
    """
    return None if choices is None else list(dict.fromkeys(choices))
