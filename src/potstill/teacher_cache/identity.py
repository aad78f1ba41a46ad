"""The origin of a store of teacher outputs, and its differences from the origin that a run expects."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from potstill.data.common.store import canonical

_SHOWN = 12  # digits of a digest in messages


def store_identity(
    *,
    teacher: Mapping[str, str],
    tokenizer: str,
    data: str,
    form: Mapping[str, Any],
    masks: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Dependencies of the outputs of a store, as JSON values.

    Args:
        teacher: Digests of `teacher_of_folder` or `teacher_of_model`, and further dependencies such as the precision.
        tokenizer: `Vocabulary.digest`.
        data: `corpus_digest` or `arrays_digest`.
        form: `identity` of a format.
        masks: `mask_settings` for a teacher that reads masked tokens, else None.
    """
    parts = {"teacher": teacher, "tokenizer": tokenizer, "data": data, "masks": masks, "form": form}
    # As read from a store, where tuples are lists.
    return dict(json.loads(canonical(parts)))


def identity_key(identity: Mapping[str, Any]) -> str:
    """Name of the folder for an identity: 32 hex digits."""
    return hashlib.sha256(canonical(identity)).hexdigest()[:32]


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Differences between a store and a run, such as "teacher.weights is 0123... in the store and ba98... here"."""
    there, here = dict(_flat(stored)), dict(_flat(json.loads(canonical(wanted))))
    names = sorted(there.keys() | here.keys())
    return [
        f"{name} is {_shown(name, there)} in the store and {_shown(name, here)} here"
        for name in names
        if name not in there or name not in here or there[name] != here[name]
    ]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted name; an empty dictionary is a value."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _shown(name: str, values: Mapping[str, Any]) -> str:
    if name not in values:
        return "absent"
    value = values[name]
    return f"{value[:_SHOWN]}..." if isinstance(value, str) and len(value) == 64 else json.dumps(value)
