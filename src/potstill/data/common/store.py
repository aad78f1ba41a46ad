"""Stores on disk: shards of arrays with checksums, read from memory maps, and folders that are built at most once.

A store is written once, item by item, and read in any order. An item is a sequence of a corpus, a row of a task, or a
token of a corpus. The index lists every file with its size and checksums.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from filelock import FileLock
from numpy.typing import ArrayLike, NDArray

from potstill.data.common.ragged import flat_indices
from potstill.errors import CacheError
from potstill.runtime.atomic import writing
from potstill.runtime.json_text import json_text, read_json

FORMAT_VERSION = 2
SHARD_BYTES = 256 * 2**20
# A checksum covers one block, so that threads share the work on a single large shard.
CHECKSUM_BYTES = 16 * 2**20
_ENDS = "ends"


@dataclass(frozen=True)
class Field:
    """One array of a store.

    Attributes:
        name: Name of the array and of its files.
        dtype: Type of its values with the byte order, such as "<f4".
        width: Values per row.
        ragged: Whether an item has any number of rows instead of one. All ragged fields of a store have equally many.
    """

    name: str
    dtype: str
    width: int = 1
    ragged: bool = False


@dataclass(frozen=True)
class Gathered:
    """Some items of a store.

    Attributes:
        values: By field, `(items, width)`, or `(all their rows, width)` for a ragged field.
        counts: `(items,)` rows of each item in the ragged fields; None for a store without ragged fields.
    """

    values: dict[str, NDArray[Any]]
    counts: NDArray[np.int64] | None = None


class ArrayFile:
    """A one-dimensional .npy file that grows; its header is rewritten when the size is known."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path, self.size, self.dtype = path, 0, dtype
        self._stream = path.open("wb")
        self._write_header()
        self._header_bytes = self._stream.tell()

    def append(self, values: NDArray[Any]) -> None:
        """Add values at the end."""
        self._stream.write(np.ascontiguousarray(values, dtype=self.dtype).data)
        self.size += len(values)

    def close(self) -> dict[str, Any]:
        """Write the size into the header, and return the file's entry for the index."""
        self._stream.seek(0)
        self._write_header()
        if self._stream.tell() != self._header_bytes:
            raise RuntimeError(f"the .npy header of {self.path} has grown over the data")
        self._stream.close()
        return _index_entry(self.path)

    def _write_header(self) -> None:
        # numpy pads the header for any size of the first axis, so that it can be replaced in place.
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.size,)}
        np.lib.format.write_array_header_1_0(self._stream, header)


class ShardWriter:
    """Writes one store into an empty folder; memory does not grow with what is written.

    Args:
        folder: Empty folder.
        fields: Arrays of the store.
        shard_bytes: Size of a shard; only a single item may be larger.

    Attributes:
        written: Number of items.
    """

    def __init__(self, folder: Path, fields: Sequence[Field], shard_bytes: int = SHARD_BYTES) -> None:
        self.written = 0
        self._folder, self._fields, self._shard_bytes = folder, tuple(fields), shard_bytes
        self._ragged = any(field.ragged for field in fields)
        self._row_bytes = {False: 0, True: 0}  # of one row of all plain, and of all ragged fields
        for field in fields:
            self._row_bytes[field.ragged] += field.width * np.dtype(field.dtype).itemsize
        self._shards: list[dict[str, Any]] = []
        self._files: dict[str, ArrayFile] = {}
        self._items = self._rows = self._bytes = 0  # of the open shard

    def append(self, outputs: Gathered) -> None:
        """Append the next items.

        Raises:
            ValueError: Arrays of other fields or shapes.
        """
        self._check(outputs)
        plain = next((len(outputs.values[field.name]) for field in self._fields if not field.ragged), 0)
        counts = np.zeros(plain, dtype=np.int64) if outputs.counts is None else outputs.counts
        row_ends = np.append(0, np.cumsum(counts, dtype=np.int64))
        ends = np.append(0, np.cumsum(self._row_bytes[False] + counts * self._row_bytes[True]))
        first, count = 0, len(counts)
        while first < count:
            free = max(self._shard_bytes - self._bytes, 0)
            last = int(np.searchsorted(ends, ends[first] + free, side="right")) - 1
            if last == first and not self._items:  # larger than a whole shard
                last = first + 1
            if last > first:
                self._write(outputs, slice(first, last), row_ends[first : last + 1])
                self._bytes += int(ends[last] - ends[first])
            first = last
            if first < count:
                self._close_shard()

    def finish(self, content: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
        """Close the shards and write the index, which makes the folder a store.

        Args:
            content: Further entries of the index.
            arrays: Further arrays by name.
        """
        self._close_shard()
        entries = []
        for name, array in (arrays or {}).items():
            np.save(self._folder / f"{name}.npy", array, allow_pickle=False)
            entries.append(_index_entry(self._folder / f"{name}.npy"))
        index = {
            "version": FORMAT_VERSION,
            "items": self.written,
            "fields": [asdict(field) for field in self._fields],
            "shards": self._shards,
            "arrays": entries,
            **content,
        }
        index["crc32"] = zlib.crc32(canonical(index))
        (self._folder / "index.json").write_text(json_text(index, indent=1), encoding="utf-8")

    def _check(self, outputs: Gathered) -> None:
        values, counts = outputs.values, outputs.counts
        if values.keys() != {field.name for field in self._fields} or (counts is not None) != self._ragged:
            raise ValueError(f"outputs {sorted(values)} of a store of {[f.name for f in self._fields]}")
        rows = {True: 0, False: len(next(iter(values.values())))}
        if counts is not None:
            rows = {True: int(counts.sum()), False: len(counts)}
        for field in self._fields:
            shape, expected = values[field.name].shape, (rows[field.ragged], field.width)
            if shape != expected:
                raise ValueError(f"{field.name} has the shape {shape} instead of {expected}")

    def _write(self, outputs: Gathered, items: slice, row_ends: NDArray[np.int64]) -> None:
        if not self._files:
            dtypes = {field.name: field.dtype for field in self._fields} | ({_ENDS: "<u4"} if self._ragged else {})
            suffix = f"{len(self._shards):05d}.npy"
            self._files = {
                name: ArrayFile(self._folder / f"{name}-{suffix}", np.dtype(dtype)) for name, dtype in dtypes.items()
            }
        rows = slice(int(row_ends[0]), int(row_ends[-1]))
        for field in self._fields:
            part = outputs.values[field.name][rows if field.ragged else items]
            self._files[field.name].append(part.reshape(-1))
        if self._ragged:
            self._files[_ENDS].append(self._rows + row_ends[1:] - rows.start)
        self._rows += rows.stop - rows.start
        self._items += items.stop - items.start
        self.written += items.stop - items.start

    def _close_shard(self) -> None:
        if self._files:
            files = {name: file.close() for name, file in self._files.items()}
            self._shards.append({"items": self._items, "rows": self._rows, "files": files})
        self._files, self._items, self._rows, self._bytes = {}, 0, 0, 0


class ShardReader:
    """Items of one or several stores with the same fields, read from memory maps.

    Args:
        fields: Arrays of the stores.
        shards: Arrays of each shard by name.
        sizes: Items per shard.
    """

    def __init__(
        self, fields: Sequence[Field], shards: Sequence[Mapping[str, NDArray[Any]]], sizes: Sequence[int]
    ) -> None:
        self.fields, self.shards, self.sizes = tuple(fields), tuple(shards), tuple(sizes)
        self._starts = np.append(0, np.cumsum(sizes, dtype=np.int64))
        self._ragged = any(field.ragged for field in fields)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def row_counts(self) -> NDArray[np.int32]:
        """`(items,)` rows of all items in the ragged fields."""
        parts = [np.diff(shard[_ENDS], prepend=np.uint32(0)) for shard in self.shards]
        return np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)

    def gather(self, items: ArrayLike) -> Gathered:
        """Read items.

        Args:
            items: `(n,)` numbers of items, in any order, repeats allowed.

        Raises:
            IndexError: A number is negative, or not below `len(self)`.
        """
        wanted = np.asarray(items, dtype=np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"items {wanted.min()} to {wanted.max()} of a store of {len(self)}")
        shard_of = np.searchsorted(self._starts[1:], wanted, side="right")
        local = wanted - self._starts[shard_of]
        counts, touched = None, np.unique(shard_of)
        places = {False: (local, shard_of)}
        if self._ragged:
            starts, counts = np.zeros_like(wanted), np.zeros_like(wanted)
            for number in touched:
                here, ends = shard_of == number, self.shards[number][_ENDS]
                starts[here] = np.where(local[here] > 0, ends[local[here] - 1], 0)
                counts[here] = ends[local[here]] - starts[here]
            places[True] = flat_indices(starts, counts), np.repeat(shard_of, counts)
        values = {}
        for field in self.fields:
            rows, shards = places[field.ragged]
            if len(touched) == 1:
                values[field.name] = self.shards[touched[0]][field.name][rows]
                continue
            values[field.name] = out = np.empty((len(rows), field.width), dtype=field.dtype)
            for number in touched:
                here = shards == number
                out[here] = self.shards[number][field.name][rows[here]]
        return Gathered(values, counts)


class Store(ShardReader):
    """A store of one folder, memory-mapped.

    Attributes:
        folder: Folder of the store.
        index: Content of index.json.
    """

    kind: ClassVar[str] = "store"

    def __init__(self, folder: Path, *, check: bool = False) -> None:
        self.folder = folder
        self.index = self._read_index()
        if check:
            self._check_files()
        fields = [Field(**field) for field in self.index["fields"]]
        widths = {field.name: field.width for field in fields}
        shards = [
            {
                name: array if name == _ENDS else array.reshape(-1, widths[name])
                for name, entry in shard["files"].items()
                for array in [_mapped(folder / entry["file"])]
            }
            for shard in self.index["shards"]
        ]
        super().__init__(fields, shards, [shard["items"] for shard in self.index["shards"]])

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a store after a check of the size and the checksums of every file.

        Raises:
            CacheError: A file is missing, truncated or altered; the message names it.
        """
        return cls(folder, check=True)

    def unusable(self, reason: str) -> CacheError:
        """The error of a store that cannot be used for a reason."""
        return CacheError(f"the {self.kind} '{self.folder}' cannot be used: {reason}; delete the folder to rebuild it")

    def _read_index(self) -> dict[str, Any]:
        try:
            index = dict(read_json(self.folder / "index.json"))
            crc32 = index.pop("crc32")
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise self.unusable("index.json is missing or cannot be read") from error
        if crc32 != zlib.crc32(canonical(index)):
            raise self.unusable("the content of index.json does not match its checksum")
        if index["version"] != FORMAT_VERSION:
            raise self.unusable(f"it has format version {index['version']} instead of {FORMAT_VERSION}")
        return index

    def _check_files(self) -> None:
        """Compare the size and the checksums of all files with their index entries."""
        blocks = []
        of_shards = [entry for shard in self.index["shards"] for entry in shard["files"].values()]
        for entry in [*of_shards, *self.index["arrays"]]:
            path = self.folder / entry["file"]
            size = path.stat().st_size if path.is_file() else None
            if size != entry["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes instead of {entry['bytes']}"
                raise self.unusable(f"{entry['file']} {found}")
            blocks += [(path, number, crc32) for number, crc32 in enumerate(entry["crc32"])]
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
            checksums = threads.map(lambda block: _block_crc32(block[0], block[1]), blocks)
            for (path, _, expected), found_crc32 in zip(blocks, checksums, strict=True):
                if found_crc32 != expected:
                    raise self.unusable(f"the content of {path.name} does not match its checksum")

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process of a loader maps the files itself; pickling the maps would copy every value.
        return type(self), (self.folder,)


def store_key(source: dict[str, Any], tokenizer: str, options: dict[str, Any]) -> str:
    """Name of the folder for `source`, tokenized by `tokenizer` with `options`: 32 hex digits."""
    parts = {"version": FORMAT_VERSION, "source": source, "tokenizer": tokenizer, "options": options}
    return hashlib.sha256(canonical(parts)).hexdigest()[:32]


def build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Create `folder` by `build(temporary folder)`, completely or not at all.

    One of several processes builds while the others wait. Leftovers of killed runs are removed.

    Raises:
        WriteError: The folder cannot be written (no space, no permission).
    """
    if folder.is_dir():
        return
    with writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if folder.is_dir():
                return
            for stale in folder.parent.glob(f"{folder.name}.tmp-*"):
                shutil.rmtree(stale, ignore_errors=True)
            temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
            temporary.mkdir()
            try:
                build(temporary)
                temporary.rename(folder)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise


def canonical(value: Any) -> bytes:
    """JSON of a value, the same bytes for any order of its keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _index_entry(path: Path) -> dict[str, Any]:
    """Name, size and checksums of a file."""
    size = path.stat().st_size
    blocks = range((size + CHECKSUM_BYTES - 1) // CHECKSUM_BYTES)
    return {"file": path.name, "bytes": size, "crc32": [_block_crc32(path, number) for number in blocks]}


def _mapped(path: Path) -> NDArray[Any]:
    # A plain array over the map: indexing a memmap object is slower and returns memmaps.
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _block_crc32(path: Path, number: int) -> int:
    crc32, left = 0, CHECKSUM_BYTES
    with path.open("rb") as stream:
        stream.seek(number * CHECKSUM_BYTES)
        while left and (piece := stream.read(min(left, 2**20))):
            crc32 = zlib.crc32(piece, crc32)
            left -= len(piece)
    return crc32
