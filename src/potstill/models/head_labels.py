"""The heads of task models, the labels that they tell apart, and those of a data set.

Like `specs`, it reads config.json alone and imports neither torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

from potstill.models.specs import read_settings

Head = Literal["sequence", "tokens", "spans"]

# How transformers calls a model with a head: its class is the architecture's name and this.
SUFFIXES: dict[Head, str] = {
    "sequence": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "spans": "ForQuestionAnswering",
}
# Exponents are left out: 1e5 is as likely a code.
_NUMBER = re.compile(r"(?:LABEL_)?([+-]?(?:\d+\.?\d*|\.\d+))")
SPAN_LABELS = ("start", "end")  # what a head for spans tells of each token; no model names them


def head_of(name: str) -> Head | None:
    """The head of a model class of transformers; None if it is not a task model's."""
    return next((head for head, suffix in SUFFIXES.items() if name.endswith(suffix)), None)


def read_labels(key: str, value: str, head: Head | None = None) -> tuple[str, ...] | None:
    """Read which labels a model tells apart, without loading it.

    Args:
        key: configuration key that names the model, for messages.
        value: folder, or hub id.
        head: the required one; None for any.

    Returns:
        Names by number; None where the model has no such head.

    Raises:
        ModelError: as `specs.read_settings`.
    """
    return labels_from_settings(read_settings(key, value), head)


def head_from_settings(settings: Mapping[str, Any]) -> Head | None:
    """The head that the content of a config.json names."""
    return next((head for name in settings.get("architectures") or () if (head := head_of(str(name)))), None)


def labels_from_settings(settings: Mapping[str, Any], head: Head | None = None) -> tuple[str, ...] | None:
    """The labels that the content of a config.json names; `LABEL_0`, `LABEL_1`, ... where it names none."""
    own = head_from_settings(settings)
    if own is None or head not in (None, own):
        return None
    if own == "spans":
        return SPAN_LABELS
    names, numbers = settings.get("id2label") or {}, settings.get("label2id") or {}
    count = len(names) or settings.get("num_labels") or len(numbers) or 2  # 2 is what transformers assumes
    known = [str(names[number]) for number in sorted(names, key=int)] or [f"LABEL_{n}" for n in range(count)]
    if unnamed(known) and sorted(numbers.values()) == list(range(count)):
        known = sorted(map(str, numbers), key=lambda name: numbers[name])
    return tuple(known)


def label_order(found: Sequence[str], wanted: Sequence[str], ordered: bool = True) -> list[int] | None:
    """Where a model keeps each label of a data set.

    Labels are matched by name (`named_order`). A model that names its labels by number alone (`LABEL_0`, `0`) is
    taken to have the order of the data set where that order is a known one.

    Args:
        found: names of the model's labels, by number.
        wanted: names of the data set's labels, by number; empty for a regression.
        ordered: whether the order of `wanted` is a published or a configured one, not the order of sorting.

    Returns:
        For each wanted label its number in the model; None where the model has others, more or fewer, or names that
        do not say which is which.
    """
    if len(found) != max(len(wanted), 1):
        return None
    if not wanted or tuple(found) == tuple(wanted):
        return list(range(len(found)))
    numbered = all(name == f"LABEL_{number}" for number, name in enumerate(found))
    if ordered and (numbered or (unnamed(found) and not any(map(match_labels(wanted, found).get, wanted)))):
        return list(range(len(found)))
    return named_order(found, wanted)


def named_order(found: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Where a model keeps each label of a data set, by name alone; None where names do not say so."""
    matched = match_labels(wanted, found)
    order = [found.index(matched[name]) for name in wanted if name in matched]
    return order if len(order) == len(found) == len(set(order)) else None


def match_labels(written: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Find which name each label means.

    Equal spellings are matched first. The others are compared as numbers (`1`, `1.0`, `+1`, `01` and `LABEL_1` are
    one), or without regard to case, spaces, hyphens and underscores, where one label on either side is so spelled.

    Args:
        written: distinct labels, as a file or a model has them.
        names: distinct names of labels.

    Returns:
        A name for each label that means one.
    """
    spelled, called = _alike(written), _alike(names)
    matched = {
        label: called[plain][0]
        for plain, labels in spelled.items()
        for label in labels
        if len(called.get(plain, ())) == 1 and (len(labels) == 1 or isinstance(plain, Decimal))
    }
    return matched | {label: label for label in set(written) & set(names)}


def _alike(labels: Sequence[str]) -> dict[Decimal | str, list[str]]:
    groups: dict[Decimal | str, list[str]] = {}
    for label in labels:
        groups.setdefault(_plain(label), []).append(label)
    return groups


def number_of(label: str) -> Decimal | None:
    """The number that a label is (`-1`, `2.0`, `LABEL_3`); None of a name."""
    found = _NUMBER.fullmatch(label)
    return None if found is None else Decimal(found[1])


def _plain(label: str) -> Decimal | str:
    number = number_of(label)
    return re.sub(r"[\s_-]", "", label).lower() if number is None else number


def head_fault(found: Sequence[str] | None, labels: Sequence[str] | None, head: Head) -> str:
    """Why a model's head is not one of a data set's labels (None: not known), and what to do."""
    if found is None or labels is None:
        return f"has no trained head of its kind ({SUFFIXES[head]}); train one with objective=finetune"
    wanted = ", ".join(labels) or "one score"
    return (
        f"its labels are {', '.join(found)}, the data set's {wanted}: they cannot be matched by name; "
        "use a model of the same labels"
        + (", or name them in the model's order by benchmark.labels" if len(found) == len(labels) else "")
    )


def unnamed(labels: Sequence[str]) -> bool:
    """Whether labels are numbers alone, `LABEL_0` or `0`."""
    return all(name in (f"LABEL_{number}", str(number)) for number, name in enumerate(labels))
