"""Files of a store: arrays that grow, an index that says what there is, and checksums of all of it.

A folder is whole if its index can be read and every file has the size and the checksums that the index says.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from potstill.errors import DataError
from potstill.runtime.json_text import json_text, read_json

# A checksum covers one block, so that the threads of a check share the work on a single large shard.
CHECKSUM_BYTES = 16 * 2**20


class ArrayFile:
    """A one-dimensional .npy file that grows; its header is written again when the size is known."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path, self.size, self.dtype = path, 0, dtype
        self._stream = path.open("wb")
        self._write_header()
        self._header_bytes = self._stream.tell()

    def append(self, values: npt.NDArray[Any]) -> None:
        """Add values at the end."""
        self._stream.write(np.ascontiguousarray(values, dtype=self.dtype).data)
        self.size += len(values)

    def close(self) -> None:
        """Write how many there are, and close the file."""
        self._stream.seek(0)
        self._write_header()
        if self._stream.tell() != self._header_bytes:
            raise RuntimeError(f"the .npy header of {self.path} has grown over the data")
        self._stream.close()

    def _write_header(self) -> None:
        # numpy pads the header for any size of the first axis, so that it can be replaced in place.
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.size,)}
        np.lib.format.write_array_header_1_0(self._stream, header)


def seal(path: Path) -> dict[str, Any]:
    """What an index says of a file: its name, size and checksums."""
    size = path.stat().st_size
    blocks: Iterable[int] = range((size + CHECKSUM_BYTES - 1) // CHECKSUM_BYTES)
    return {"file": path.name, "bytes": size, "crc32": [_block_crc32(path, number) for number in blocks]}


def check_sealed(folder: Path, entries: Iterable[dict[str, Any]], broken: Callable[[str], DataError]) -> None:
    """Compare the size and the checksums of files with what `seal` said of them.

    Args:
        folder: Where they lie.
        entries: What `seal` gave.
        broken: Makes the fault of a reason.

    Raises:
        DataError: A file is missing, truncated or altered; the reason names it.
    """
    blocks = []
    for entry in entries:
        path = folder / entry["file"]
        size = path.stat().st_size if path.is_file() else None
        if size != entry["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes instead of {entry['bytes']}"
            raise broken(f"{entry['file']} {found}")
        blocks += [(path, number, crc32) for number, crc32 in enumerate(entry["crc32"])]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        checksums = threads.map(lambda block: _block_crc32(block[0], block[1]), blocks)
        for (path, _, expected), found_crc32 in zip(blocks, checksums, strict=True):
            if found_crc32 != expected:
                raise broken(f"the content of {path.name} does not match its checksum")


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Write index.json, which makes a folder a store."""
    sealed = index | {"crc32": zlib.crc32(canonical(index))}
    (folder / "index.json").write_text(json_text(sealed, indent=1), encoding="utf-8")


def read_index(folder: Path, version: int, broken: Callable[[str], DataError]) -> dict[str, Any]:
    """What index.json says.

    Args:
        folder: Where it lies.
        version: Which format is understood.
        broken: Makes the fault of a reason.

    Raises:
        DataError: It is missing, altered, or of another version.
    """
    try:
        index = read_json(folder / "index.json")
        crc32 = index.pop("crc32")
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise broken("index.json is missing or cannot be read") from error
    if crc32 != zlib.crc32(canonical(index)):
        raise broken("the content of index.json does not match its checksum")
    if index["version"] != version:
        raise broken(f"it has format version {index['version']} instead of {version}")
    return dict(index)


def mapped(path: Path) -> npt.NDArray[Any]:
    """A .npy file as an array over its memory map."""
    # A plain array over the map: indexing a memmap object is slower and returns memmaps.
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def canonical(value: Any) -> bytes:
    """JSON of a value, the same bytes whatever the order of its keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _block_crc32(path: Path, number: int) -> int:
    crc32, left = 0, CHECKSUM_BYTES
    with path.open("rb") as stream:
        stream.seek(number * CHECKSUM_BYTES)
        while left and (piece := stream.read(min(left, 2**20))):
            crc32 = zlib.crc32(piece, crc32)
            left -= len(piece)
    return crc32
