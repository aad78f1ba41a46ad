"""Stores of a teacher's outputs on disk: written once, unit by unit, and read in any order from a memory map.

A unit is whatever has outputs of its own: a row of a task, or a token of a corpus. Units have the numbers 0 to n - 1
and are written in this order. A store is a folder of shards of arrays with an index, checked by checksum, that says
what the outputs were made of (`teachers.identity`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from potstill.data.common.checked_files import ArrayFile, check_sealed, mapped, read_index, seal, write_index
from potstill.data.corpus.store import build_once
from potstill.errors import DataError
from potstill.teacher_cache.identity import differences

FORMAT_VERSION = 1
SHARD_BYTES = 256 * 2**20
_ENDS = "ends"


@dataclass(frozen=True)
class Field:
    """One array of a store.

    Attributes:
        name: what it is called.
        dtype: of its values, as numpy has it, with the order of bytes ("<f4").
        width: values in a row of it.
        ragged: whether a unit has any number of rows, and not one. All such fields of a store have equally many.
    """

    name: str
    dtype: str
    width: int = 1
    ragged: bool = False


@dataclass(frozen=True)
class Gathered:
    """Outputs of some units.

    Attributes:
        values: by field (units, width), or (all their rows, width) end to end of a ragged field.
        counts: (units,) rows of each in the ragged fields; None where there is no such field.
    """

    values: dict[str, NDArray[Any]]
    counts: NDArray[np.int64] | None = None


class OutputWriter:
    """Writes one store into an empty folder; memory does not grow with what is written.

    Args:
        folder: Where to.
        fields: Its arrays.
        units: How many units the store is to have.
        shard_bytes: A shard ends with the batch that reaches this size.
    """

    def __init__(
        self, folder: Path, fields: Sequence[Field], units: int, shard_bytes: int = SHARD_BYTES
    ) -> None:
        self.units, self.written = units, 0
        self._folder, self._fields, self._shard_bytes = folder, tuple(fields), shard_bytes
        self._ragged = any(field.ragged for field in fields)
        self._shards: list[dict[str, Any]] = []
        self._open: dict[str, ArrayFile] = {}
        self._open_units, self._open_rows, self._open_bytes = 0, 0, 0

    def add(self, outputs: Gathered) -> None:
        """Append the outputs of the next units.

        Raises:
            ValueError: Arrays of other fields or shapes, or more units than there are.
        """
        count = self._check(outputs)
        if not self._open:
            names = [field.name for field in self._fields] + [_ENDS] * self._ragged
            dtypes = [field.dtype for field in self._fields] + ["<u4"] * self._ragged
            self._open = {
                name: ArrayFile(self._folder / f"{name}-{len(self._shards):05d}.npy", np.dtype(dtype))
                for name, dtype in zip(names, dtypes, strict=True)
            }
        for name, values in outputs.values.items():
            self._open[name].append(values.reshape(-1))
            self._open_bytes += values.size * np.dtype(self._open[name].dtype).itemsize
        if outputs.counts is not None:
            ends = self._open_rows + np.cumsum(outputs.counts, dtype=np.int64)
            self._open[_ENDS].append(ends)
            self._open_rows = int(ends[-1]) if count else self._open_rows
        self.written += count
        self._open_units += count
        if self._open_bytes >= self._shard_bytes:
            self._seal()

    def close(self, identity: Mapping[str, Any]) -> None:
        """Finish the shards and write the index, which makes the folder a store.

        Raises:
            ValueError: Units are missing.
        """
        if self.written != self.units:
            raise ValueError(f"outputs of {self.written} units of {self.units}")
        self._seal()
        index = {
            "version": FORMAT_VERSION,
            "identity": dict(identity),
            "units": self.units,
            "fields": [asdict(field) for field in self._fields],
            "shards": self._shards,
        }
        write_index(self._folder, index)

    def _check(self, outputs: Gathered) -> int:
        """How many units there are in well-formed outputs."""
        values, counts = outputs.values, outputs.counts
        if values.keys() != {field.name for field in self._fields} or (counts is not None) != self._ragged:
            raise ValueError(f"outputs {sorted(values)} of a store of {[f.name for f in self._fields]}")
        sizes = [len(values[field.name]) for field in self._fields if not field.ragged]
        units = len(counts) if counts is not None else sizes[0]
        for field in self._fields:
            rows = int(counts.sum()) if field.ragged and counts is not None else units
            if values[field.name].shape != (rows, field.width):
                shape = values[field.name].shape
                raise ValueError(f"{field.name} has the shape {shape} instead of {(rows, field.width)}")
        if self.written + units > self.units:
            raise ValueError(f"outputs of {self.written + units} units or more of {self.units}")
        return units

    def _seal(self) -> None:
        if not self._open:
            return
        for file in self._open.values():
            file.close()
        files = {name: seal(file.path) for name, file in self._open.items()}
        self._shards.append({"units": self._open_units, "files": files})
        self._open, self._open_units, self._open_rows, self._open_bytes = {}, 0, 0, 0


class OutputStore:
    """A teacher's outputs, memory-mapped.

    Attributes:
        folder: Where they lie.
        identity: What they were made of.
        fields: The arrays.
        units: How many units there are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = read_index(folder, FORMAT_VERSION, partial(_broken, folder))
        self.identity: dict[str, Any] = index["identity"]
        self.fields = tuple(Field(**field) for field in index["fields"])
        self.units: int = index["units"]
        widths = {field.name: field.width for field in self.fields}
        self._shards = [
            {
                name: array if name == _ENDS else array.reshape(-1, widths[name])
                for name, entry in shard["files"].items()
                for array in [mapped(folder / entry["file"])]
            }
            for shard in index["shards"]
        ]
        self._shard_ends = np.cumsum([shard["units"] for shard in index["shards"]], dtype=np.int64)

    @classmethod
    def open(cls, folder: Path, identity: Mapping[str, Any]) -> OutputStore:
        """Open a store after a check of what it holds and of every file's size and checksum.

        Args:
            folder: Where it lies.
            identity: What its outputs have to be made of.

        Raises:
            DataError: They are made of something else, or a file is missing, truncated or altered; the message names
                the part or the file.
        """
        index = read_index(folder, FORMAT_VERSION, partial(_broken, folder))
        found = differences(index["identity"], identity)
        if found:
            raise _broken(folder, f"it is of another run: {'; '.join(found)}")
        entries = [entry for shard in index["shards"] for entry in shard["files"].values()]
        check_sealed(folder, entries, partial(_broken, folder))
        return cls(folder)

    def gather(self, units: ArrayLike) -> Gathered:
        """Read outputs.

        Args:
            units: (n,) numbers of units, in any order, repeats allowed.

        Raises:
            IndexError: A number is not below `self.units`, or is negative.
        """
        wanted = np.asarray(units, dtype=np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.units:
            raise IndexError(f"units {wanted.min()} to {wanted.max()} of a store of {self.units}")
        shard_of = np.searchsorted(self._shard_ends, wanted, side="right")
        touched = [(self._shards[number], shard_of == number) for number in np.unique(shard_of)]
        local = wanted - np.concatenate([[0], self._shard_ends])[shard_of]
        counts = rows = owners = None
        if any(field.ragged for field in self.fields):
            starts, counts = np.zeros_like(wanted), np.zeros_like(wanted)
            for shard, here in touched:
                ends = shard[_ENDS]
                starts[here] = np.where(local[here] > 0, ends[local[here] - 1], 0)
                counts[here] = ends[local[here]] - starts[here]
            before = np.cumsum(counts) - counts
            rows = np.repeat(starts - before, counts) + np.arange(counts.sum())
            owners = np.repeat(shard_of, counts)
        values = {}
        for field in self.fields:
            places, shards = (rows, owners) if field.ragged else (local, shard_of)
            assert places is not None
            values[field.name] = out = np.empty((len(places), field.width), dtype=field.dtype)
            for number in np.unique(shard_of):
                here = shards == number
                out[here] = self._shards[number][field.name][places[here]]
        return Gathered(values, counts)

    def __reduce__(self) -> tuple[type[OutputStore], tuple[Path]]:
        # A loader's worker process maps the files itself; pickling the maps would copy every output.
        return OutputStore, (self.folder,)


def build_outputs(
    folder: Path,
    identity: Mapping[str, Any],
    fields: Sequence[Field],
    units: int,
    write: Callable[[OutputWriter], None],
) -> OutputStore:
    """The store in `folder`, made by `write` if it is not there yet: whole or not at all, by one process of several.

    Args:
        folder: Where it lies.
        identity: What its outputs are made of.
        fields: Its arrays.
        units: How many units it has.
        write: Adds the outputs of all units to a writer.

    Raises:
        DataError: A store that is there cannot be used, or the folder cannot be written.
    """

    def build(temporary: Path) -> None:
        writer = OutputWriter(temporary, fields, units)
        write(writer)
        writer.close(identity)

    build_once(folder, build)
    return OutputStore.open(folder, identity)


def _broken(folder: Path, fault: str) -> DataError:
    return DataError(
        f"the store of teacher outputs '{folder}' cannot be used: {fault}; delete the folder, or name another, and "
        "they will be computed again"
    )
