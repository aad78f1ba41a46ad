"""Rows as token ids, tokenized once and stored under a digest of their texts and options."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from potstill.data.common.store import build_once, store_key
from potstill.data.common.tokenizers import Vocabulary, load_backend
from potstill.data.tasks.readers import Rows
from potstill.errors import CacheError

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
    rows: Rows, vocabulary: Vocabulary, *, max_length: int, cache: Path, progress: Callable[[int], None] | None = None
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

    def make() -> Features:
        tokenizer = load_backend(vocabulary.path)
        tokenizer.enable_truncation(max_length, strategy="longest_first")
        texts = rows.texts[0] if len(rows.texts) == 1 else zip(*rows.texts, strict=True)
        # A blank text and a tokenizer without special tokens: a model needs at least one token.
        return encode_texts(texts, tokenizer, filler=[vocabulary.pad_id], progress=progress)

    options = {"max_length": max_length, "kind": "rows"}
    return remembered(Features, make, cache, zip(*rows.texts, strict=True), vocabulary, options)


def encode_texts(
    texts: Iterable[str | tuple[str, ...] | None],
    tokenizer: Tokenizer,
    *,
    filler: Sequence[int] = (),
    progress: Callable[[int], None] | None = None,
) -> Features:
    """Tokenize texts or pairs of texts in batches.

    Args:
        texts: Texts or pairs; None gives a row without tokens.
        tokenizer: Tokenizer with its truncation.
        filler: Tokens of a text that has none.
        progress: Called with the number of texts done.
    """
    ids, types = [np.zeros(0, np.int32)], [np.zeros(0, np.uint8)]
    lengths: list[int] = []
    truncated: list[bool] = []
    iterator = iter(texts)
    while batch := list(islice(iterator, BATCH)):
        encoded = iter(tokenizer.encode_batch([text for text in batch if text is not None]))
        for text in batch:
            encoding = None if text is None else next(encoded)
            own = [] if encoding is None else encoding.ids or list(filler)
            ids.append(np.array(own, np.int32))
            types.append(np.array(encoding.type_ids if encoding and encoding.ids else [0] * len(own), np.uint8))
            lengths.append(len(own))
            truncated.append(encoding is not None and bool(encoding.overflowing))
        if progress is not None:
            progress(len(lengths))
    return Features(
        np.concatenate(ids), np.concatenate(types), np.array(lengths, np.int32), np.array(truncated, np.bool_)
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
        raise CacheError(f"the features '{folder}' cannot be used: {error}; delete the folder to rebuild it") from error


def _digest(rows: Iterable[Iterable[str]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        for text in row:
            coded = text.encode("utf-8", "surrogatepass")
            digest.update(len(coded).to_bytes(8, "little"))
            digest.update(coded)
        digest.update(b"\xff" * 8)  # end of a row: no text has this length
    return digest.hexdigest()
