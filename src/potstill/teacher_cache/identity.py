"""What a store of teacher outputs was made of, and how that differs from what a run needs.

An identity is a dictionary of JSON values; a store keeps it, so that a run that does not fit can be told why. The
digests in it are those of `teachers.digests`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from potstill.data.common.store import canonical

_SHOWN = 12  # digits of a digest in a message


def store_identity(
    *,
    teacher: Mapping[str, str],
    tokenizer: str,
    data: str,
    form: Mapping[str, Any],
    masks: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the outputs of a store depend on.

    Args:
        teacher: Digests of `teacher_of_folder` or `teacher_of_model`, and what else its outputs depend on, such as the
            precision that it runs in.
        tokenizer: `Vocabulary.digest`.
        data: `corpus_digest` or `arrays_digest`.
        form: How outputs are kept, `form.identity` of a form in `teachers.forms`.
        masks: `mask_settings` where the teacher reads masked tokens; None where what it reads is the data alone.
    """
    parts = {"teacher": teacher, "tokenizer": tokenizer, "data": data, "masks": masks, "form": form}
    # As it comes back from a store: tuples are lists there.
    return dict(json.loads(canonical(parts)))


def identity_key(identity: Mapping[str, Any]) -> str:
    """Name of the store of an identity: 32 hex digits."""
    return hashlib.sha256(canonical(identity)).hexdigest()[:32]


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between a store and a run, a part at a time; empty if nothing does.

    Returns:
        Such as "teacher.weights is 0123456789ab... in the store and ba9876543210... here".
    """
    there, here = dict(_flat(stored)), dict(_flat(json.loads(canonical(wanted))))
    names = sorted(there.keys() | here.keys())
    return [
        f"{name} is {_shown(name, there)} in the store and {_shown(name, here)} here"
        for name in names
        if name not in there or name not in here or there[name] != here[name]
    ]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted name; a dictionary without entries is a value."""
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
