"""Rows as token ids, tokenized once and stored under a digest of their texts and options."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from potstill.data.common.store import build_once, store_key
from potstill.data.common.tokenizers import Vocabulary, load_backend
from potstill.data.tasks.readers import Rows
from potstill.errors import DataError

BATCH = 1000  # rows tokenized together

Made = TypeVar("Made")


@dataclass(frozen=True)
class Features:
    """Token ids of all rows, end to end.

    Attributes:
        ids: `(tokens,)` int32, with special tokens.
        types: `(tokens,)` uint8 token types of the tokenizer.
        lengths: `(rows,)` int32.
        truncated: `(rows,)` bool, whether a row was truncated.
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
    """Tokenize texts or pairs of texts with the tokenizer's own special tokens, truncated `longest_first`.

    Args:
        rows: Texts, or pairs of texts.
        vocabulary: Vocabulary of the tokenizer.
        max_length: Maximum number of tokens per row, with special tokens.
        cache: The features are stored in its `features` folder.
        progress: Called with the number of rows done.

    Raises:
        DataError: The cache cannot be written, or its content is damaged.
    """
    return remembered(
        Features,
        lambda: _tokenise(rows, vocabulary, max_length, progress),
        cache,
        zip(*rows.texts, strict=True),
        vocabulary,
        {"max_length": max_length, "kind": "rows"},
    )


def remembered(
    kind: type[Made],
    make: Callable[[], Made],
    cache: Path,
    texts: Iterable[Iterable[str]],
    vocabulary: Vocabulary,
    options: dict[str, Any],
) -> Made:
    """Make features once and store them; a second call reads what the first has written.

    Args:
        kind: A dataclass of arrays and whole numbers.
        make: Makes one.
        cache: The features are stored in its `features` folder.
        texts: All texts that the features depend on, row by row.
        vocabulary: Of the tokenizer.
        options: Other dependencies; its `kind` separates it from other features of the same texts.

    Raises:
        DataError: The cache cannot be written, or its content is damaged.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]

    def arrays() -> dict[str, Any]:
        made = make()
        return {name: getattr(made, name) for name in names}

    stored = remembered_arrays(arrays, cache, texts, vocabulary, options)
    return kind(**{name: stored[name] if stored[name].ndim else stored[name].item() for name in names})


def remembered_arrays(
    make: Callable[[], dict[str, Any]],
    cache: Path,
    texts: Iterable[Iterable[str]],
    vocabulary: Vocabulary,
    options: dict[str, Any],
) -> dict[str, NDArray]:
    """Arrays by name, made once and stored; see `remembered`."""
    folder = cache / "features" / store_key({"texts": _digest(texts)}, vocabulary.digest, options)
    build_once(folder, lambda temporary: np.savez(temporary / "features.npz", **make()))
    try:
        with np.load(folder / "features.npz", allow_pickle=False) as stored:  # zip files carry checksums
            return dict(stored)
    except (OSError, ValueError, BadZipFile, EOFError) as error:
        raise DataError(
            f"the features '{folder}' cannot be used: {error}; delete the folder to rebuild it"
        ) from error


def _tokenise(
    rows: Rows, vocabulary: Vocabulary, max_length: int, progress: Callable[[int], None] | None
) -> Features:
    tokenizer = load_backend(vocabulary.path)
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    ids: list[NDArray] = []
    types: list[NDArray] = []
    lengths, truncated = np.zeros(len(rows), np.int32), np.zeros(len(rows), np.bool_)
    for start, texts in _batches(rows):
        for row, encoding in enumerate(tokenizer.encode_batch(texts), start):
            # A blank text and a tokenizer without special tokens: a model needs at least one token.
            own = encoding.ids or [vocabulary.pad_id]
            ids.append(np.array(own, np.int32))
            types.append(np.array(encoding.type_ids or [0], np.uint8))
            lengths[row], truncated[row] = len(own), bool(encoding.overflowing)
        if progress is not None:
            progress(start + len(texts))
    return Features(np.concatenate(ids), np.concatenate(types), lengths, truncated)


def _batches(rows: Rows) -> Iterator[tuple[int, list]]:
    for start in range(0, len(rows), BATCH):
        parts = [column[start : start + BATCH] for column in rows.texts]
        yield start, parts[0] if len(parts) == 1 else list(zip(*parts, strict=True))


def _digest(rows: Iterable[Iterable[str]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        for text in row:
            coded = text.encode("utf-8", "surrogatepass")
            digest.update(len(coded).to_bytes(8, "little"))
            digest.update(coded)
        digest.update(b"\xff" * 8)  # end of a row: no text has this length
    return digest.hexdigest()
