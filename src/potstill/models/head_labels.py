"""The heads of task models, the labels that they tell apart, and those of a data set.

Like `specs`, it reads config.json alone and imports neither torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from potstill.models.specs import read_settings

Head = Literal["sequence", "tokens", "spans"]

# How transformers calls a model with a head: its class is the architecture's name and this.
SUFFIXES: dict[Head, str] = {
    "sequence": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "spans": "ForQuestionAnswering",
}
SPAN_LABELS = ("start", "end")  # what a head for spans tells of each token; no model names them


def head_of(name: str) -> Head | None:
    """The head of a model class of transformers; None where it is no task model's."""
    return next((head for head, suffix in SUFFIXES.items() if name.endswith(suffix)), None)


def read_labels(key: str, value: str, head: Head | None = None) -> tuple[str, ...] | None:
    """Read which labels a model tells apart, without loading it.

    Args:
        key: configuration key that names the model, for messages.
        value: folder, or hub id.
        head: the one that is asked for; None for any.

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
    names = settings.get("id2label") or {}
    if not names:  # what transformers assumes
        return tuple(f"LABEL_{number}" for number in range(settings.get("num_labels") or 2))
    return tuple(str(names[number]) for number in sorted(names, key=int))


def label_order(found: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Where a model keeps each label of a data set.

    Names are compared without regard to case, spaces, hyphens and underscores. A model that names its labels by
    number alone (`LABEL_0`, `0`) is taken to have the order of the data set.

    Args:
        found: names of the model's labels, by number.
        wanted: names of the data set's labels, by number; empty for a regression.

    Returns:
        For each wanted label its number in the model; None where the model has others, more or fewer, or names that
        do not say which is which.
    """
    if len(found) != max(len(wanted), 1):
        return None
    if not wanted or unnamed(found):
        return list(range(len(found)))
    plain_found, plain_wanted = (
        [re.sub(r"[\s_-]", "", name).lower() for name in names] for names in (found, wanted)
    )
    if len(set(plain_found)) < len(found) or set(plain_found) != set(plain_wanted):
        return None
    return [plain_found.index(name) for name in plain_wanted]


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
