"""Stores of a teacher's outputs, one item per row of a task or token of a corpus, and their origin."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.data.common.store import Field, ShardWriter, Store, build_once, canonical

_SHOWN = 12  # digits of a digest in messages


class OutputStore(Store):
    """A teacher's outputs, memory-mapped; `index["identity"]` describes their origin.

    Example:
        >>> import numpy as np, pathlib, tempfile, torch
        >>> from potstill.teacher_cache import OutputStore, TopFormat, build_outputs
        >>> folder, form = pathlib.Path(tempfile.mkdtemp()) / "store", TopFormat(k=4, vocabulary_size=100)
        >>> outputs = form.encode(torch.randn(10, 100), np.arange(10))
        >>> _ = build_outputs(folder, {"seed": 0}, form.fields, 10, lambda writer: writer.append(outputs))
        >>> OutputStore.open(folder).check_identity({"seed": 1})
        Traceback (most recent call last):
        potstill.errors.CacheError: ...
    """

    kind = "store of teacher outputs"

    def check_identity(self, identity: Mapping[str, Any]) -> None:
        """Compare the origin of the outputs with the expected one.

        Raises:
            CacheError: They differ; the message names each difference.
        """
        if found := differences(self.index["identity"], identity):
            raise self.unusable(f"it is of another run: {'; '.join(found)}")


def build_outputs(
    folder: Path,
    identity: Mapping[str, Any],
    fields: Sequence[Field],
    items: int | None,
    write: Callable[[ShardWriter], None],
) -> OutputStore:
    """The store in `folder`, built by `write` if it does not exist, by one of several processes.

    Args:
        folder: Folder of the store.
        identity: Origin of the outputs.
        fields: Arrays of the store.
        items: Number of items; None if it is not known.
        write: Appends the outputs of all items to a writer.

    Raises:
        CacheError: An existing store cannot be used.
        WriteError: The folder cannot be written.
        ValueError: `write` appends another number of items.

    Example:
        >>> import numpy as np, pathlib, tempfile, torch
        >>> from potstill.teacher_cache import TopFormat, build_outputs
        >>> folder, form = pathlib.Path(tempfile.mkdtemp()) / "store", TopFormat(k=4, vocabulary_size=100)
        >>> outputs = form.encode(torch.randn(10, 100), np.arange(10))
        >>> store = build_outputs(folder, {"seed": 0}, form.fields, 10, lambda writer: writer.append(outputs))
        >>> form.decode(store.gather(np.array([7, 2])), temperature=1.0).ids.shape
        torch.Size([2, 4])
    """

    def build(temporary: Path) -> None:
        writer = ShardWriter(temporary, fields)
        write(writer)
        if items is not None and writer.written != items:
            raise ValueError(f"outputs of {writer.written} items instead of {items}")
        writer.finish({"identity": dict(identity)})

    build_once(folder, build)
    store = OutputStore.open(folder)
    store.check_identity(identity)
    return store


def store_identity(
    *,
    teacher: Mapping[str, Any],
    tokenizer: str | None,
    data: str,
    form: Mapping[str, Any],
    masks: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Dependencies of the outputs of a store, as JSON values.

    Args:
        teacher: `teacher_digests`, and further dependencies such as the precision.
        tokenizer: `Vocabulary.digest`; None if it is not known.
        data: `corpus_digest`, `arrays_digest` or another digest.
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
    there, here = _flat(stored), _flat(json.loads(canonical(wanted)))
    names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    return [f"{name} is {_shown(there.get(name))} in the store and {_shown(here.get(name))} here" for name in names]


def _flat(identity: Mapping[str, Any]) -> dict[str, str]:
    """JSON of the values of an identity by dotted name."""
    flat: dict[str, str] = {}
    for name, value in identity.items():
        inner = value if isinstance(value, Mapping) else {"": value}
        flat |= {f"{name}.{key}".rstrip("."): json.dumps(each) for key, each in inner.items()}
    return flat


def _shown(text: str | None) -> str:
    if text is None:
        return "absent"
    return f"{text[1 : 1 + _SHOWN]}..." if len(text) == 66 else text  # a sha256 with its quotes
