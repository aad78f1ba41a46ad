"""Rows as token ids of both tasks (Hsieh et al. 2023, arXiv:2305.02301, section 3.2), tokenized once and stored.

The target is the label after the prediction prefix, and the rationale after the explanation prefix; or both are one
target (Wadhwa et al. 2024, arXiv:2406.14511).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from potstill.data.common.tokenizers import Vocabulary
from potstill.data.rationales.forms import Form, Tokens
from potstill.data.rationales.rows import RationaleRows
from potstill.data.tasks.features import remembered_arrays

PREDICT, EXPLAIN = "predict: ", "explain: "
MAX_INPUT_LENGTH, MAX_TARGET_LENGTH = 1024, 256  # tokens, as published
COLUMNS = ("predict", "explain", "labels", "rationales")
ARRAYS = ("ids", "lengths", "truncated")


@dataclass(frozen=True)
class RationaleFeatures:
    """Inputs and targets of both tasks.

    Attributes:
        predict: Inputs with the prediction prefix.
        explain: Inputs with the explanation prefix; without `explain_all`, length 0 for a row without rationale.
        labels: Targets of prediction; with the rationales, if both are one target.
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
    form: Form | None = None,
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
        vocabulary: Vocabulary of the tokenizer.
        cache: The features are stored in its `features` folder.
        form: Form of inputs and targets; None: that of an encoder-decoder, with two targets.
        predict_prefix: Prefix of the input for the label.
        explain_prefix: Prefix of the input for the rationale.
        max_input_length: Maximum number of tokens of an input, with prefix and end token.
        max_target_length: Maximum number of tokens of a target, with end token.
        explain_all: Whether rows without rationale have an explanation input too; there is none if a label and its
            rationale are one target.
        progress: Called with the number of rows done.

    Raises:
        DataError: The tokenizer adds no end token (encoder-decoders); a prompt without its text is too long; the cache
            cannot be written, or is damaged.
    """
    form = form or Form(vocabulary, vocabulary.end_id)
    one_target = form.separator is not None
    explained = [
        None if one_target or (rationale is None and not explain_all) else text
        for text, rationale in zip(rows.inputs, rows.rationales, strict=True)
    ]

    def make() -> dict[str, NDArray]:
        second = [None] * len(rows) if one_target else rows.rationales
        made = {
            "predict": form.inputs(rows.inputs, predict_prefix, max_input_length),
            "explain": form.inputs(explained, explain_prefix, max_input_length),
            "labels": form.joined(rows.labels, rows.rationales, max_target_length)
            if one_target
            else form.targets(rows.labels, max_target_length),
            "rationales": form.targets(second, max_target_length, progress),
        }
        return {f"{name}.{array}": getattr(tokens, array) for name, tokens in made.items() for array in ARRAYS}

    prefixes = {"predict": predict_prefix, "explain": explain_prefix, "labels": "", "rationales": ""}
    lengths = dict.fromkeys(("predict", "explain"), max_input_length)
    lengths |= dict.fromkeys(("labels", "rationales"), max_target_length)
    options = {name: {"prefix": prefixes[name], "max_length": lengths[name]} for name in COLUMNS}
    columns = (rows.inputs, explained, rows.labels, rows.rationales)
    digested = ([] if text is None else [text] for column in columns for text in column)
    stored = remembered_arrays(make, cache, digested, vocabulary, {**options, "kind": "rationales", **form.identity})
    return RationaleFeatures(*(Tokens(*(stored[f"{name}.{array}"] for array in ARRAYS)) for name in COLUMNS))
