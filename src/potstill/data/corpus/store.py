"""Token stores on disk: flat shards of token ids, checked by checksum, memory-mapped, built at most once.

A store is a folder named by what it holds (source, tokenizer, options), so a changed input is another store and an
old one never has to be invalidated. Several stores are joined without reading their tokens again.
"""

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from potstill.data.common.checked_files import (
    ArrayFile,
    canonical,
    check_sealed,
    mapped,
    read_index,
    seal,
    write_index,
)
from potstill.errors import DataError

FORMAT_VERSION = 1
SHARD_TOKENS = 64 * 2**20


def store_key(source: dict[str, Any], tokenizer: str, options: dict[str, Any]) -> str:
    """Name of the store that holds `source`, tokenized by `tokenizer` with `options`: 32 hex digits."""
    parts = {"version": FORMAT_VERSION, "source": source, "tokenizer": tokenizer, "options": options}
    return hashlib.sha256(canonical(parts)).hexdigest()[:32]


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold an advisory lock on the file `lock`; other processes wait. A killed holder lets go of it."""
    with lock.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Have `folder` made by `build(temporary folder)`, whole or not at all.

    Of several processes one builds and the others wait for it. What killed runs left behind is removed.

    Raises:
        DataError: The folder cannot be written (no space, no permission).
    """
    if folder.is_dir():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(folder.with_name(f"{folder.name}.lock")):
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
    except OSError as error:
        raise DataError(
            f"the cache folder '{folder.parent}' cannot be written ({error.strerror or error}); "
            "free some space or choose another cache folder"
        ) from error


class StoreWriter:
    """Writes one store into an empty folder; memory does not grow with what is written."""

    def __init__(self, folder: Path, vocabulary_size: int, shard_tokens: int = SHARD_TOKENS) -> None:
        self.counts = np.zeros(vocabulary_size, dtype=np.int64)
        self._folder = folder
        self._shard_tokens = shard_tokens
        self._dtype = token_dtype(vocabulary_size)
        self._lengths = ArrayFile(folder / "lengths.npy", np.dtype("<i4"))
        self._shards: list[dict[str, Any]] = []
        self._open: ArrayFile | None = None
        self._open_sequences = 0

    def add(self, ids: npt.NDArray[Any], lengths: npt.NDArray[np.int32]) -> None:
        """Append sequences: `ids` (tokens,) holds them end to end, `lengths` (sequences,) says where they end."""
        self.counts += np.bincount(ids, minlength=len(self.counts))
        self._lengths.append(lengths)
        ends = np.cumsum(lengths, dtype=np.int64)
        first, token = 0, 0
        while first < len(lengths):
            if self._open is None:
                self._open = ArrayFile(self._folder / f"tokens-{len(self._shards):05d}.npy", self._dtype)
            room = self._shard_tokens - self._open.size
            last = int(np.searchsorted(ends, token + room, side="right"))
            if last == first and self._open.size == 0:  # longer than a whole shard: it gets one to itself
                last = first + 1
            if last > first:
                stop = int(ends[last - 1])
                self._open.append(ids[token:stop])
                self._open_sequences += last - first
                first, token = last, stop
            if first < len(lengths):
                self._seal()

    def close(
        self, source: dict[str, Any], tokenizer: str, options: dict[str, Any], report: dict[str, int]
    ) -> None:
        """Finish the shards and write the index, which makes the folder a store."""
        self._seal()
        self._lengths.close()
        np.save(self._folder / "counts.npy", self.counts, allow_pickle=False)
        index = {
            "version": FORMAT_VERSION,
            "key": store_key(source, tokenizer, options),
            "source": source,
            "tokenizer": tokenizer,
            "options": options,
            "vocabulary_size": len(self.counts),
            "dtype": self._dtype.name,
            "shards": self._shards,
            "arrays": [seal(self._folder / name) for name in ("lengths.npy", "counts.npy")],
            "report": report,
        }
        write_index(self._folder, index)

    def _seal(self) -> None:
        if self._open is None:
            return
        self._open.close()
        sizes = {"sequences": self._open_sequences, "tokens": self._open.size}
        self._shards.append(seal(self._open.path) | sizes)
        self._open, self._open_sequences = None, 0


class TokenStore:
    """One binarized source, memory-mapped.

    Attributes:
        folder: Where it lies.
        index: What index.json says: key parts, shards and the report of the counts.
        lengths: (sequences,) int32, special tokens counted.
        counts: (vocabulary,) int64, how often each token id occurs.
        shards: Flat arrays of token ids, one a file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = read_index(folder, FORMAT_VERSION, partial(_broken, folder))
        self.lengths = mapped(folder / "lengths.npy")
        self.counts = np.load(folder / "counts.npy", allow_pickle=False)
        self.shards = tuple(mapped(folder / shard["file"]) for shard in self.index["shards"])

    @classmethod
    def open(cls, folder: Path) -> "TokenStore":
        """Open a store after a check of the size and the checksum of every file.

        Raises:
            DataError: A file is missing, truncated or altered; the message names it.
        """
        index = read_index(folder, FORMAT_VERSION, partial(_broken, folder))
        check_sealed(folder, [*index["shards"], *index["arrays"]], partial(_broken, folder))
        return cls(folder)

    def __reduce__(self) -> tuple[type["TokenStore"], tuple[Path]]:
        # A loader's worker process maps the files itself; pickling the maps would copy every token.
        return TokenStore, (self.folder,)


class Corpus:
    """Several stores of one vocabulary as one sequence of sequences; joining reads no tokens.

    Attributes:
        lengths: (sequences,) int32, special tokens counted.
        token_counts: (vocabulary,) int64, summed over the stores.
    """

    def __init__(self, stores: Sequence[TokenStore]) -> None:
        """Join `stores` in their order.

        Raises:
            DataError: The stores were made with different tokenizers.
        """
        if not stores:
            raise DataError("the corpus has no text source; name at least one")
        for store in stores[1:]:
            if store.index["tokenizer"] != stores[0].index["tokenizer"]:
                raise DataError(
                    f"data.tokenizer: the stores '{stores[0].folder}' and '{store.folder}' were made with different "
                    "tokenizers and cannot be joined; binarize both with one"
                )
        self.stores = tuple(stores)
        self.lengths: npt.NDArray[np.int32] = np.concatenate([store.lengths for store in stores])
        self.token_counts: npt.NDArray[np.int64] = np.sum([store.counts for store in stores], axis=0)
        self._shards = [shard for store in stores for shard in store.shards]
        sequences = [shard["sequences"] for store in stores for shard in store.index["shards"]]
        self._shard_ends = np.cumsum(sequences)
        # Where a sequence starts in its shard.
        per_shard = np.split(self.lengths, self._shard_ends[:-1])
        self._starts = np.concatenate([np.cumsum(part, dtype=np.int64) - part for part in per_shard])

    def __len__(self) -> int:
        return len(self.lengths)

    def gather(self, indices: npt.ArrayLike) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Read sequences.

        Args:
            indices: (batch,) numbers of sequences, in any order, repeats allowed.

        Returns:
            (tokens,) int32 ids of the sequences end to end, and their (batch,) int32 lengths.

        Raises:
            IndexError: A number is not below `len(self)`, or is negative.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and wanted.min() < 0:
            raise IndexError(f"sequence {wanted.min()} of a corpus")
        lengths = self.lengths[wanted]
        ends = np.cumsum(lengths, dtype=np.int64)
        total = int(ends[-1]) if wanted.size else 0
        # The place in its shard of each token that is wanted.
        places = np.repeat(self._starts[wanted] - (ends - lengths), lengths) + np.arange(total)
        shard_of = np.searchsorted(self._shard_ends, wanted, side="right")
        touched = np.unique(shard_of)
        if len(touched) == 1:
            return self._shards[touched[0]][places].astype(np.int32), lengths
        ids = np.empty(total, dtype=np.int32)
        for shard in touched:
            here = np.repeat(shard_of == shard, lengths)
            ids[here] = self._shards[shard][places[here]]
        return ids, lengths

    def __reduce__(self) -> tuple[type["Corpus"], tuple[tuple[TokenStore, ...]]]:
        return Corpus, (self.stores,)

    def describe(self) -> dict[str, int]:
        """Counts of the binarization (texts, sequences, tokens, split, dropped), summed over the stores."""
        reports = [store.index["report"] for store in self.stores]
        return {name: sum(report[name] for report in reports) for name in reports[0]}


def token_dtype(vocabulary_size: int) -> np.dtype[Any]:
    """Smallest unsigned type that holds every token id, little-endian."""
    return np.dtype("<u2" if vocabulary_size <= 2**16 else "<u4")


def _broken(folder: Path, fault: str) -> DataError:
    return DataError(
        f"the token store '{folder}' cannot be used: {fault}; delete the folder, it will be built again"
    )
