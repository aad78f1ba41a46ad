"""Binarized text sources on disk, and several of them as one corpus.

A store is named by its content (source, tokenizer, options), so a changed input gets another folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from potstill.data.common.store import Field, Gathered, ShardReader, ShardWriter, Store, store_key
from potstill.errors import DataError, TokenizerError

SHARD_TOKENS = 64 * 2**20


class StoreWriter(ShardWriter):
    """Writes the sequences of one source into an empty folder."""

    def __init__(self, folder: Path, vocabulary_size: int, shard_tokens: int = SHARD_TOKENS) -> None:
        dtype = token_dtype(vocabulary_size)
        super().__init__(folder, [Field("tokens", dtype.str, ragged=True)], shard_tokens * dtype.itemsize)
        self.counts = np.zeros(vocabulary_size, dtype=np.int64)

    def add(self, ids: NDArray[Any], lengths: NDArray[np.int32]) -> None:
        """Append sequences: `(tokens,)` ids end to end, and the `(sequences,)` lengths."""
        self.counts += np.bincount(ids, minlength=len(self.counts))
        self.append(Gathered({"tokens": ids[:, None]}, lengths.astype(np.int64)))

    def close(self, source: dict[str, Any], tokenizer: str, options: dict[str, Any], report: dict[str, int]) -> None:
        """Close the shards and write the index, which makes the folder a store."""
        content = {
            "key": store_key(source, tokenizer, options),
            "source": source,
            "tokenizer": tokenizer,
            "options": options,
            "report": report,
        }
        self.finish(content, {"counts": self.counts})


class TokenStore(Store):
    """One binarized source, memory-mapped."""

    kind = "token store"

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """`(sequences,)` tokens of each sequence, with special tokens."""
        return self.row_counts()

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """`(vocabulary,)` occurrences of each token id."""
        counts: NDArray[np.int64] = np.load(self.folder / "counts.npy", allow_pickle=False)
        return counts


class Corpus:
    """Several stores of one vocabulary as one list of sequences; joining reads no tokens.

    Attributes:
        lengths: `(sequences,)` int32, with special tokens.
        token_counts: `(vocabulary,)` int64, summed over the stores.
    """

    def __init__(self, stores: Sequence[TokenStore]) -> None:
        """Join `stores` in their order.

        Raises:
            DataError: No store, or stores of different tokenizers.
        """
        if not stores:
            raise DataError("the corpus has no text source; name at least one")
        for store in stores[1:]:
            if store.index["tokenizer"] != stores[0].index["tokenizer"]:
                raise TokenizerError(
                    f"data.tokenizer: the stores '{stores[0].folder}' and '{store.folder}' have different "
                    "tokenizers and cannot be joined; binarize both with one"
                )
        self.stores = tuple(stores)
        self.lengths: NDArray[np.int32] = np.concatenate([store.lengths for store in stores])
        self.token_counts: NDArray[np.int64] = np.sum([store.counts for store in stores], axis=0)
        self._reader = ShardReader(
            stores[0].fields,
            [shard for store in stores for shard in store.shards],
            [size for store in stores for size in store.sizes],
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def gather(self, indices: ArrayLike) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Read sequences.

        Args:
            indices: `(batch,)` numbers of sequences, in any order, repeats allowed.

        Returns:
            `(tokens,)` int32 ids of the sequences end to end, and their `(batch,)` int32 lengths.

        Raises:
            IndexError: A number is negative, or not below `len(self)`.
        """
        found = self._reader.gather(indices)
        assert found.counts is not None
        return found.values["tokens"][:, 0].astype(np.int32), found.counts.astype(np.int32)

    def __reduce__(self) -> tuple[type[Corpus], tuple[tuple[TokenStore, ...]]]:
        return Corpus, (self.stores,)

    def describe(self) -> dict[str, int]:
        """Counts of the binarization (texts, sequences, tokens, split, dropped), summed over the stores."""
        reports = [store.index["report"] for store in self.stores]
        return {name: sum(report[name] for report in reports) for name in reports[0]}


def token_dtype(vocabulary_size: int) -> np.dtype[Any]:
    """Smallest unsigned type for every token id, little-endian."""
    return np.dtype("<u2" if vocabulary_size <= 2**16 else "<u4")
