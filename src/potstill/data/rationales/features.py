"""Rows as token ids of both tasks (Hsieh et al. 2023, arXiv:2305.02301, section 3.2), tokenized once and stored.

The target is the label after the prediction prefix, and the rationale after the explanation prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from potstill.data.common.tokenizers import Vocabulary, load_backend
from potstill.data.rationales.rows import RationaleRows
from potstill.data.tasks.features import encode_texts, remembered_arrays
from potstill.errors import TokenizerError

PREDICT, EXPLAIN = "predict: ", "explain: "
MAX_INPUT_LENGTH, MAX_TARGET_LENGTH = 1024, 256  # tokens, as published
COLUMNS = ("predict", "explain", "labels", "rationales")
ARRAYS = ("ids", "lengths", "truncated")


@dataclass(frozen=True)
class Tokens:
    """Token ids of one text per row, end to end.

    Attributes:
        ids: `(tokens,)` int32, with the end token.
        lengths: `(rows,)` int32; 0 for a row without text.
        truncated: `(rows,)` bool, whether a text was truncated.
    """

    ids: NDArray[np.int32]
    lengths: NDArray[np.int32]
    truncated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class RationaleFeatures:
    """Inputs and targets of both tasks.

    Attributes:
        predict: Inputs with the prediction prefix.
        explain: Inputs with the explanation prefix; without `explain_all`, length 0 for a row without rationale.
        labels: Targets of prediction.
        rationales: Targets of explanation; length 0 for a row without rationale.
    """

    predict: Tokens
    explain: Tokens
    labels: Tokens
    rationales: Tokens

    def __len__(self) -> int:
        return len(self.predict)

    def cut(self) -> dict[str, int]:
        """Number of truncated texts, by attribute."""
        return {name: int(np.count_nonzero(getattr(self, name).truncated)) for name in COLUMNS}


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
    """Tokenize inputs and targets, truncated before the end token.

    Args:
        rows: Rows for training (`for_training`) or evaluation.
        vocabulary: Vocabulary of a tokenizer that adds an end token to a text, such as T5's.
        cache: The features are stored in its `features` folder.
        predict_prefix: Prefix of the input for the label.
        explain_prefix: Prefix of the input for the rationale.
        max_input_length: Maximum number of tokens of an input, with prefix and end token.
        max_target_length: Maximum number of tokens of a target, with end token.
        explain_all: Whether rows without rationale have an explanation input too.
        progress: Called with the number of rows done.

    Raises:
        DataError: The tokenizer adds no end token; the cache cannot be written, or is damaged.
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

    def make() -> dict[str, NDArray]:
        backend = load_backend(vocabulary.path)
        if backend.encode("a").ids[-1:] != [vocabulary.end_id]:
            raise TokenizerError(
                f"data.tokenizer: '{vocabulary.path}' adds no end token to a text, so a student could not learn "
                "to stop; use the tokenizer of an encoder-decoder, such as T5's"
            )
        arrays: dict[str, NDArray] = {}
        for name, (column, prefix, most) in columns.items():
            backend.enable_truncation(most)
            texts = (None if text is None else f"{prefix}{text}" for text in column)
            tokens = encode_texts(texts, backend, progress=progress if name == "rationales" else None)
            arrays |= {f"{name}.{array}": getattr(tokens, array) for array in ARRAYS}
        return arrays

    options = {name: {"prefix": prefix, "max_length": most} for name, (_, prefix, most) in columns.items()}
    digested = ([] if text is None else [text] for column, _, _ in columns.values() for text in column)
    stored = remembered_arrays(make, cache, digested, vocabulary, options | {"kind": "rationales"})
    return RationaleFeatures(*(Tokens(*(stored[f"{name}.{array}"] for array in ARRAYS)) for name in columns))
