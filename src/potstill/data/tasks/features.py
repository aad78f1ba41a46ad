"""Rows as token ids: tokenised once, kept on disk, named by what they are made of."""

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

BATCH = 1000  # rows that are tokenised together

Made = TypeVar("Made")


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
    """What `make` gives, kept in the `features` folder of `cache`; a second call reads what the first has written.

    Args:
        kind: a dataclass of arrays and whole numbers.
        make: makes one.
        cache: a folder.
        texts: all that it is made of, row by row.
        vocabulary: of the tokenizer.
        options: what else it depends on; its `kind` tells it from others of the same texts.

    Raises:
        DataError: the cache cannot be written, or what it holds is damaged.
    """
    folder = cache / "features" / store_key({"texts": _digest(texts)}, vocabulary.digest, options)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]

    def build(temporary: Path) -> None:
        made = make()
        np.savez(temporary / "features.npz", **{name: getattr(made, name) for name in names})

    build_once(folder, build)
    try:
        with np.load(folder / "features.npz", allow_pickle=False) as stored:  # zip files carry checksums
            values = {name: stored[name] for name in names}
    except (OSError, ValueError, KeyError, BadZipFile, EOFError) as error:
        raise DataError(
            f"the features '{folder}' cannot be used: {error}; delete the folder, they will be made again"
        ) from error
    return kind(**{name: value if value.ndim else value.item() for name, value in values.items()})


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
            # No token at all (a blank text, a tokenizer that frames nothing): a model needs one to read.
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
        digest.update(b"\xff" * 8)  # no length of a text: the end of a row
    return digest.hexdigest()
