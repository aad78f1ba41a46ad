"""ROUGE-L of generated rationales."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torchmetrics.functional.text import rouge_score

_WORD = re.compile(r"[^\W_]+")


def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """ROUGE-L F1 of each prediction, between 0 and 1.

    With L the length of the longest common subsequence of words, m words in the reference and n in the prediction,
    recall is L / m and precision L / n. Words are runs of letters and digits, in lower case, not stemmed.

    Source: Lin 2004 (ROUGE), section 3.1, equations 2 to 4.

    Raises:
        ValueError: lists of different lengths.
    """
    return [
        float(
            rouge_score(
                prediction, reference, rouge_keys="rougeL", normalizer=str.lower, tokenizer=_WORD.findall
            )["rougeL_fmeasure"]
        )
        for prediction, reference in zip(predictions, references, strict=True)
    ]
