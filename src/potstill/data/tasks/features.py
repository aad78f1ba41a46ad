"""Rows as token ids: tokenised once, kept on disk, named by what they are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from potstill.data.corpus.store import build_once, store_key
from potstill.data.corpus.tokenizers import Vocabulary, load_backend
from potstill.data.tasks.readers import Rows
from potstill.errors import DataError

BATCH = 1000  # rows that are tokenised together
ARRAYS = ("ids", "types", "lengths", "truncated")


@dataclass(frozen=True)
class Features:
    """Token ids of all rows, end to end.

    Attributes:
        ids: `(tokens,)` int32, special tokens counted.
        types: `(tokens,)` uint8, 0 in the first text, 1 in the second, as the tokenizer has them.
        lengths: `(rows,)` int32.
        truncated: `(rows,)` bool, rows that were longer than allowed and were cut.
    """

    ids: NDArray[np.int32]
    types: NDArray[np.uint8]
    lengths: NDArray[np.int32]
    truncated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.lengths)


def features_of(
    rows: Rows,
    vocabulary: Vocabulary,
    *,
    max_length: int,
    cache: Path,
    progress: Callable[[int], None] | None = None,
) -> Features:
    """The rows as the tokenizer itself frames a text or a pair; a second call reads what the first has written.

    What is longer than `max_length` is cut token by token at the end of the longer text (`longest_first`).

    Args:
        rows: texts, or pairs of texts.
        vocabulary: of the tokenizer.
        max_length: most tokens of a row, special ones counted.
        cache: the features lie in its `features` folder, named by texts, tokenizer and `max_length`.
        progress: called with the number of rows done.

    Raises:
        DataError: the cache cannot be written, or what it holds is damaged.
    """
    options = {"max_length": max_length, "kind": "rows"}
    folder = cache / "features" / store_key({"texts": _digest(rows)}, vocabulary.digest, options)

    def build(temporary: Path) -> None:
        arrays = _tokenise(rows, vocabulary, max_length, progress)
        np.savez(temporary / "features.npz", **arrays)  # type: ignore[arg-type]

    build_once(folder, build)
    return _open(folder, len(rows))


def _tokenise(
    rows: Rows, vocabulary: Vocabulary, max_length: int, progress: Callable[[int], None] | None
) -> dict[str, NDArray]:
    tokenizer = load_backend(vocabulary.path)
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    ids: list[NDArray] = []
    types: list[NDArray] = []
    lengths, truncated = np.zeros(len(rows), np.int32), np.zeros(len(rows), np.bool_)
    for start, texts in _batches(rows):
        for row, encoding in enumerate(tokenizer.encode_batch(texts), start):
            # No token at all (a blank text, a tokenizer that frames nothing): a model needs one to read.
            own = encoding.ids or [vocabulary.pad_id]
            ids.append(np.array(own, np.int32))
            types.append(np.array(encoding.type_ids or [0], np.uint8))
            lengths[row], truncated[row] = len(own), bool(encoding.overflowing)
        if progress is not None:
            progress(start + len(texts))
    return dict(zip(ARRAYS, (np.concatenate(ids), np.concatenate(types), lengths, truncated), strict=True))


def _batches(rows: Rows) -> Iterator[tuple[int, list]]:
    for start in range(0, len(rows), BATCH):
        parts = [column[start : start + BATCH] for column in rows.texts]
        yield start, parts[0] if len(parts) == 1 else list(zip(*parts, strict=True))


def _open(folder: Path, rows: int) -> Features:
    try:
        with np.load(folder / "features.npz", allow_pickle=False) as stored:  # zip files carry checksums
            features = Features(*(stored[name] for name in ARRAYS))
        if len(features) != rows or features.lengths.sum() != len(features.ids):
            raise ValueError(f"{len(features)} rows instead of {rows}")
    except (OSError, ValueError, KeyError, BadZipFile, EOFError) as error:
        raise DataError(
            f"the features '{folder}' cannot be used: {error}; delete the folder, they will be made again"
        ) from error
    return features


def _digest(rows: Rows) -> str:
    digest = hashlib.sha256()
    for column in rows.texts:
        digest.update(f"{len(column)}\n".encode())
        for text in column:
            coded = text.encode("utf-8", "surrogatepass")
            digest.update(len(coded).to_bytes(8, "little"))
            digest.update(coded)
    return digest.hexdigest()
