"""Stores of a teacher's outputs: an item is a row of a task or a token of a corpus."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.data.common.store import SHARD_BYTES, Field, Gathered, ShardWriter, Store, build_once
from potstill.teacher_cache.identity import differences


class OutputWriter(ShardWriter):
    """Writes a store of outputs into an empty folder.

    Args:
        folder: Empty folder.
        fields: Arrays of the store.
        items: Number of items that the store must have.
        shard_bytes: Size of a shard.
    """

    def __init__(
        self, folder: Path, fields: Sequence[Field], items: int, shard_bytes: int = SHARD_BYTES
    ) -> None:
        super().__init__(folder, fields, shard_bytes)
        self.items = items

    def add(self, outputs: Gathered) -> None:
        """Append the outputs of the next items.

        Raises:
            ValueError: Arrays of other fields or shapes, or too many items.
        """
        count = self._check(outputs)
        if self.written + count > self.items:
            raise ValueError(f"outputs of {self.written + count} items or more of {self.items}")
        self.append(outputs)

    def close(self, identity: Mapping[str, Any]) -> None:
        """Close the shards and write the index, which makes the folder a store.

        Raises:
            ValueError: Items are missing.
        """
        if self.written != self.items:
            raise ValueError(f"outputs of {self.written} items of {self.items}")
        self.finish({"identity": dict(identity)})


class OutputStore(Store):
    """A teacher's outputs, memory-mapped; `index["identity"]` describes their origin.

    Example:
        >>> import numpy as np, pathlib, tempfile, torch
        >>> from potstill.teacher_cache import OutputStore, TopForm, build_outputs
        >>> folder, form = pathlib.Path(tempfile.mkdtemp()) / "store", TopForm(k=4, vocabulary_size=100)
        >>> outputs = form.encode(torch.randn(10, 100), np.arange(10))
        >>> _ = build_outputs(folder, {"seed": 0}, form.fields, 10, lambda writer: writer.add(outputs))
        >>> OutputStore.open(folder).check_identity({"seed": 1})
        Traceback (most recent call last):
        potstill.errors.DataError: ...
    """

    kind = "store of teacher outputs"

    def check_identity(self, identity: Mapping[str, Any]) -> None:
        """Compare the origin of the outputs with the expected one.

        Raises:
            DataError: They differ; the message names each difference.
        """
        if found := differences(self.index["identity"], identity):
            raise self._unusable(self.folder, f"it is of another run: {'; '.join(found)}")


def build_outputs(
    folder: Path,
    identity: Mapping[str, Any],
    fields: Sequence[Field],
    items: int,
    write: Callable[[OutputWriter], None],
) -> OutputStore:
    """The store in `folder`, built by `write` if it does not exist, by one of several processes.

    Args:
        folder: Folder of the store.
        identity: Origin of the outputs.
        fields: Arrays of the store.
        items: Number of items.
        write: Adds the outputs of all items to a writer.

    Raises:
        DataError: An existing store cannot be used, or the folder cannot be written.

    Example:
        >>> import numpy as np, pathlib, tempfile, torch
        >>> from potstill.teacher_cache import TopForm, build_outputs
        >>> folder, form = pathlib.Path(tempfile.mkdtemp()) / "store", TopForm(k=4, vocabulary_size=100)
        >>> outputs = form.encode(torch.randn(10, 100), np.arange(10))
        >>> store = build_outputs(folder, {"seed": 0}, form.fields, 10, lambda writer: writer.add(outputs))
        >>> form.decode(store.gather(np.array([7, 2])), temperature=1.0).ids.shape
        torch.Size([2, 4])
    """

    def build(temporary: Path) -> None:
        writer = OutputWriter(temporary, fields, items)
        write(writer)
        writer.close(identity)

    build_once(folder, build)
    store = OutputStore.open(folder)
    store.check_identity(identity)
    return store
