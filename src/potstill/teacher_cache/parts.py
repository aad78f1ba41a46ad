"""Stores that are computed in parts, so that a run that ends early or is killed continues after the last part."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from filelock import FileLock, Timeout

from potstill.data.common.ragged import Ints
from potstill.data.common.store import Field, Gathered, ShardWriter
from potstill.errors import CacheError
from potstill.runtime.atomic import writing
from potstill.teacher_cache.store import OutputStore, build_outputs

T = TypeVar("T")


class Parts(Generic[T]):
    """Outputs of the first texts of a store, in stores of their own until all are there.

    Args:
        folder: of the parts.
        identity: origin of the outputs.
        fields: arrays of the store.
        counts: (texts,) items of each text.
        pack: makes the items of consecutive texts of their outputs.
        part_items: items of a part, at least.

    Attributes:
        done: number of texts that are stored.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        fields: Sequence[Field],
        counts: Ints,
        pack: Callable[[list[T]], Gathered],
        part_items: int,
    ) -> None:
        self._folder, self._identity, self._fields = folder, identity, fields
        self._pack, self._part_items = pack, part_items
        self._ends = np.append(0, np.cumsum(counts, dtype=np.int64))
        self._waiting: dict[int, T] = {}
        self._places: list[Path] = []
        self.done = self._ready = 0
        while (place := self._place()).is_dir():
            store = OutputStore.open(place)
            store.check_identity(self._identity_of(self.done))
            self._places.append(place)
            self.done = self._ready = int(np.searchsorted(self._ends, self.items + len(store)))

    @property
    def items(self) -> int:
        """Number of items that are stored."""
        return int(self._ends[self.done])

    def add(self, number: int, outputs: T) -> None:
        """Keep the outputs of a text; those of a whole part are written."""
        self._waiting[number] = outputs
        while self._ready in self._waiting:
            self._ready += 1
        if self._ends[self._ready] - self.items >= self._part_items:
            self.write()

    def write(self) -> None:
        """Write what follows on the last part without a gap."""
        if self._ready == self.done:
            return
        whole = self._pack([self._waiting.pop(number) for number in range(self.done, self._ready)])
        count, place = int(self._ends[self._ready]) - self.items, self._place()
        build_outputs(place, self._identity_of(self.done), self._fields, count, lambda writer: writer.append(whole))
        self._places.append(place)
        self.done = self._ready

    def copy(self, writer: ShardWriter) -> None:
        """Append all parts to a store."""
        for place in self._places:
            store = OutputStore.open(place)
            writer.append(store.gather(np.arange(len(store))))

    def _place(self) -> Path:
        return self._folder / f"{self.done:09d}"

    def _identity_of(self, first: int) -> dict[str, Any]:
        return {**self._identity, "part": {"first": first}}


def build_in_parts(
    folder: Path,
    identity: Mapping[str, Any],
    fields: Sequence[Field],
    counts: Ints,
    pack: Callable[[list[T]], Gathered],
    compute: Callable[[Parts[T]], None],
    *,
    part_items: int,
    wait: bool = False,
) -> int:
    """The store in `folder`, computed if it does not exist; parts are in `<folder>.parts` until it is complete.

    The same call continues after them.

    Args:
        folder: of the store.
        identity: origin of the outputs.
        fields: arrays of the store.
        counts: (texts,) items of each text.
        pack: makes the items of consecutive texts of their outputs.
        compute: adds the outputs of the texts from `Parts.done` on, in any order.
        part_items: items of a part, at least.
        wait: whether to wait for another process that computes the store.

    Returns:
        The number of items that are stored; fewer than there are if `compute` ended early.

    Raises:
        CacheError: an existing store or part cannot be used, or another process computes the store.
        WriteError: the folder cannot be written.
    """
    temporary, count = folder.with_name(f"{folder.name}.parts"), int(counts.sum(dtype=np.int64))
    with _alone(folder, temporary, wait):
        if folder.is_dir():
            OutputStore.open(folder).check_identity(identity)
        else:
            parts = Parts(temporary, identity, fields, counts, pack, part_items)
            try:
                if parts.done < len(counts):
                    compute(parts)
            finally:
                parts.write()
            if parts.done < len(counts):
                return parts.items
            build_outputs(folder, identity, fields, count, parts.copy)
        shutil.rmtree(temporary, ignore_errors=True)
    return count


@contextmanager
def _alone(folder: Path, parts: Path, wait: bool) -> Iterator[None]:
    """Keep other processes from computing the same store.

    Raises:
        CacheError: another one does, and this one is not to wait.
    """
    with writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(parts.with_name(f"{parts.name}.lock"))
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            raise CacheError(f"the store '{folder}' is being computed by another process; wait until it ends") from None
    try:
        yield
    finally:
        lock.release()
