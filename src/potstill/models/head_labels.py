"""The labels that a model's head for sequence classification tells apart, and those of a data set.

Like `specs`, it reads config.json alone and imports neither torch nor transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.models.specs import read_settings

# How transformers calls a model with a head for sequence classification, by architecture.
CLASSIFIER_SUFFIX = "ForSequenceClassification"


def read_labels(key: str, value: str) -> tuple[str, ...] | None:
    """Read which labels a model tells apart, without loading it.

    Args:
        key: configuration key that names the model, for messages.
        value: folder, or hub id.

    Returns:
        Names by number; None where the model has no head for sequence classification.

    Raises:
        ModelError: as `specs.read_settings`.
    """
    return labels_from_settings(read_settings(key, value))


def labels_from_settings(settings: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The labels that the content of a config.json names; `LABEL_0`, `LABEL_1`, ... where it names none."""
    if not any(str(name).endswith(CLASSIFIER_SUFFIX) for name in settings.get("architectures") or ()):
        return None
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


def head_fault(found: Sequence[str] | None, labels: Sequence[str] | None) -> str:
    """Why a model's head is not one of a data set's labels (None: not known), and what to do."""
    if found is None or labels is None:
        return "has no trained classification head; train one with objective=finetune"
    wanted = ", ".join(labels) or "one score"
    return (
        f"its labels are {', '.join(found)}, the data set's {wanted}: they cannot be matched by name; "
        "use a model of the same labels"
        + (", or name them in the model's order by benchmark.labels" if len(found) == len(labels) else "")
    )


def unnamed(labels: Sequence[str]) -> bool:
    """Whether labels are numbers alone, `LABEL_0` or `0`."""
    return all(name in (f"LABEL_{number}", str(number)) for number, name in enumerate(labels))
