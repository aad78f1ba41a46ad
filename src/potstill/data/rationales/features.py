"""Rows as token ids of both tasks: tokenised once, kept on disk, named by what they are made of.

Each row has two inputs and two targets (Hsieh et al. 2023, arXiv:2305.02301, section 3.2): behind the prefix of
prediction its label, behind the prefix of explanation its rationale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from potstill.data.common.store import build_once, store_key
from potstill.data.common.tokenizers import Vocabulary, load_backend
from potstill.data.rationales.rows import RationaleRows
from potstill.errors import DataError

PREDICT, EXPLAIN = "predict: ", "explain: "
MAX_INPUT_LENGTH, MAX_TARGET_LENGTH = 1024, 256  # tokens, as published
BATCH = 1000  # rows that are tokenised together
ARRAYS = ("ids", "lengths", "truncated")


@dataclass(frozen=True)
class Tokens:
    """Token ids of one text a row, end to end.

    Attributes:
        ids: `(tokens,)` int32, the end token counted.
        lengths: `(rows,)` int32; 0 where a row has no such text.
        truncated: `(rows,)` bool, texts that were longer than allowed and were cut.
    """

    ids: NDArray[np.int32]
    lengths: NDArray[np.int32]
    truncated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class RationaleFeatures:
    """What the student reads and is to write.

    Attributes:
        predict: inputs behind the prefix of prediction.
        explain: the same behind the prefix of explanation; of length 0 where a row has no rationale, but for
            `explain_all`.
        labels: targets of prediction.
        rationales: targets of explanation; of length 0 where a row has none.
    """

    predict: Tokens
    explain: Tokens
    labels: Tokens
    rationales: Tokens

    def __len__(self) -> int:
        return len(self.predict)

    def cut(self) -> dict[str, int]:
        """Texts that were cut, by attribute."""
        return {name: int(np.count_nonzero(getattr(self, name).truncated)) for name in _COLUMNS}


_COLUMNS = ("predict", "explain", "labels", "rationales")


def rationale_features(
    rows: RationaleRows,
    vocabulary: Vocabulary,
    *,
    cache: Path,
    predict_prefix: str = PREDICT,
    explain_prefix: str = EXPLAIN,
    max_input_length: int = MAX_INPUT_LENGTH,
    max_target_length: int = MAX_TARGET_LENGTH,
    explain_all: bool = False,
    progress: Callable[[int], None] | None = None,
) -> RationaleFeatures:
    """Both inputs and both targets of every row; a second call reads what the first has written.

    What is too long is cut at its end, before the end token.

    Args:
        rows: as they are to be trained on (`for_training`), or judged.
        vocabulary: of a tokenizer that puts an end token behind a text, as T5's does.
        cache: the features lie in its `features` folder, named by texts, prefixes, tokenizer and lengths.
        predict_prefix: before the input, for the label.
        explain_prefix: before the input, for the rationale.
        max_input_length: most tokens of an input, prefix and end token counted.
        max_target_length: most tokens of a target, end token counted.
        explain_all: rows without a rationale have an input of explanation too, to be answered.
        progress: called with the number of rows done.

    Raises:
        DataError: the tokenizer puts no end token behind a text; the cache cannot be written, or is damaged.
    """
    columns: dict[str, tuple[Sequence[str | None], str, int]] = {
        "predict": (rows.inputs, predict_prefix, max_input_length),
        "explain": (
            [
                None if rationale is None and not explain_all else text
                for text, rationale in zip(rows.inputs, rows.rationales, strict=True)
            ],
            explain_prefix,
            max_input_length,
        ),
        "labels": (rows.labels, "", max_target_length),
        "rationales": (rows.rationales, "", max_target_length),
    }
    options = {name: {"prefix": prefix, "max_length": most} for name, (_, prefix, most) in columns.items()}
    texts = {name: _digest(column) for name, (column, _, _) in columns.items()}
    folder = cache / "features" / store_key(texts, vocabulary.digest, options | {"kind": "rationales"})

    def build(temporary: Path) -> None:
        backend = load_backend(vocabulary.path)
        if backend.encode("a").ids[-1:] != [vocabulary.end_id]:
            raise DataError(
                f"data.tokenizer: '{vocabulary.path}' puts no end token behind a text, so a student could not learn "
                "to stop; give the tokenizer of an encoder-decoder, such as T5's"
            )
        arrays: dict[str, NDArray] = {}
        for number, (name, (column, prefix, most)) in enumerate(columns.items()):
            said = progress if number == len(columns) - 1 else None
            made = _tokenise(column, prefix, backend, most, said)
            arrays |= {f"{name}.{array}": getattr(made, array) for array in ARRAYS}
        np.savez(temporary / "features.npz", **arrays)  # type: ignore[arg-type]

    build_once(folder, build)
    return _open(folder, len(rows))


def _tokenise(
    texts: Sequence[str | None],
    prefix: str,
    backend: Tokenizer,
    max_length: int,
    progress: Callable[[int], None] | None,
) -> Tokens:
    backend.enable_truncation(max_length)
    ids: list[NDArray] = [np.zeros(0, np.int32)]
    lengths, truncated = np.zeros(len(texts), np.int32), np.zeros(len(texts), np.bool_)
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        there = [start + row for row, text in enumerate(batch) if text is not None]
        encoded = backend.encode_batch([f"{prefix}{texts[row]}" for row in there])
        for row, encoding in zip(there, encoded, strict=True):
            ids.append(np.array(encoding.ids, np.int32))
            lengths[row], truncated[row] = len(encoding.ids), bool(encoding.overflowing)
        if progress is not None:
            progress(start + len(batch))
    return Tokens(np.concatenate(ids), lengths, truncated)


def _open(folder: Path, rows: int) -> RationaleFeatures:
    try:
        with np.load(folder / "features.npz", allow_pickle=False) as stored:  # zip files carry checksums
            features = RationaleFeatures(
                *(Tokens(*(stored[f"{name}.{array}"] for array in ARRAYS)) for name in _COLUMNS)
            )
        for tokens in (features.predict, features.explain, features.labels, features.rationales):
            if len(tokens) != rows or tokens.lengths.sum() != len(tokens.ids):
                raise ValueError(f"{len(tokens)} rows instead of {rows}")
    except (OSError, ValueError, KeyError, BadZipFile, EOFError) as error:
        raise DataError(
            f"the features '{folder}' cannot be used: {error}; delete the folder, they will be made again"
        ) from error
    return features


def _digest(texts: Iterable[str | None]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        if text is None:
            digest.update(b"\xff" * 8)  # no text is that long
            continue
        coded = text.encode("utf-8", "surrogatepass")
        digest.update(len(coded).to_bytes(8, "little"))
        digest.update(coded)
    return digest.hexdigest()
