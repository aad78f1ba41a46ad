"""Evaluation of generated labels and rationales: metrics, samples and a file of predictions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchmetrics.functional.text import rouge_score

from potstill.data.rationales.rows import RationaleRows
from potstill.data.rationales.sets import by_value
from potstill.evaluation.equations import same_value, text_accuracy, value_of
from potstill.evaluation.rationales import consistency
from potstill.runtime.atomic import write_whole
from potstill.runtime.json_text import json_text

SAMPLE_COLUMNS = ("input", "label", "prediction", "reference", "rationale")

Decode = Callable[[Sequence[Sequence[int]]], list[str]]
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class RationaleEvaluator:
    """Evaluates what a student generated for a part.

    Attributes:
        rows: of the part.
        set_name: decides how labels are compared: by value for equations such as `svamp`, otherwise as texts.
        gold: `rows.labels` after encoding and decoding, which may change their blanks; a label that the tokenizer
            cannot represent is as in the file.
        decode: token ids to texts without special tokens.
    """

    rows: RationaleRows
    set_name: str
    gold: Sequence[str]
    decode: Decode

    def metrics(self, written: GeneratedTexts) -> dict[str, float]:
        """All metrics; empty without generated labels.

        `accuracy` is by value for equations, beside `text_accuracy`; `accuracy_restricted` is that of the most likely
        choices. For rationales: `rouge_l`, the mean over rows with a reference; `consistency`, the share of
        labels that their rationales conclude with, among the share `consistency_decided` of recognized conclusions.
        """
        numbers = sorted(written.labels)
        if not numbers:
            return {}
        labels = [written.labels[row] for row in numbers]
        found = {"accuracy": self._accuracy(labels, numbers)}
        if by_value(self.set_name):
            found["text_accuracy"] = text_accuracy(labels, [self.gold[row] for row in numbers])
        if written.restricted:
            chosen = [written.restricted.get(row, written.labels[row]) for row in numbers]
            found["accuracy_restricted"] = self._accuracy(chosen, numbers)
        return found | self._of_rationales(written)

    def right(self, row: int, text: str) -> bool:
        """Whether a label is the row's: by value, or as text in the spelling of the file or of the tokenizer.

        A gold equation without a value (`$5`) is compared as text.
        """
        if by_value(self.set_name) and (value := value_of(self.rows.labels[row])) is not None:
            return same_value(value_of(text), value)
        return text.strip() in (self.rows.labels[row].strip(), self.gold[row].strip())

    def samples(self, written: GeneratedTexts, count: int) -> list[list[str]]:
        """The first rows with their generated texts, in the order of `SAMPLE_COLUMNS`."""
        return [
            [
                self.rows.inputs[row],
                self.rows.labels[row],
                written.labels[row],
                self.rows.rationales[row] or "",
                written.rationales.get(row, ""),
            ]
            for row in sorted(written.labels)[:count]
        ]

    def write(self, path: Path, written: GeneratedTexts) -> Path:
        """Write JSON lines atomically: `index` (from 0), `label`, `prediction`, `right`.

        A line also has `restricted`, `rationale` and `reference` if they exist.
        """
        lines = []
        for row in sorted(written.labels):
            line = {
                "index": row,
                "label": self.rows.labels[row],
                "prediction": written.labels[row],
                "right": self.right(row, written.labels[row]),
            }
            more = {
                "restricted": written.restricted.get(row),
                "rationale": written.rationales.get(row),
                "reference": self.rows.rationales[row] if row in written.rationales else None,
            }
            line |= {k: v for k, v in more.items() if v is not None}
            lines.append(json_text(line, ensure_ascii=False))
        write_whole(path, "".join(f"{line}\n" for line in lines))
        return path

    def _accuracy(self, labels: list[str], numbers: list[int]) -> float:
        right = [self.right(row, text) for row, text in zip(numbers, labels, strict=True)]
        return sum(right) / len(right)

    def _of_rationales(self, written: GeneratedTexts) -> dict[str, float]:
        numbers = sorted(written.rationales)
        if not numbers:
            return {}
        found = consistency(
            self.set_name,
            [written.labels[row] for row in numbers],
            [written.rationales[row] for row in numbers],
            [self.rows.choices[row] for row in numbers],
        )
        metrics = {"consistency_decided": found.decided}
        if not math.isnan(found.share):
            metrics["consistency"] = found.share
        references = {row: text for row in numbers if (text := self.rows.rationales[row]) is not None}
        if references:
            scores = rouge_l([written.rationales[row] for row in references], list(references.values()))
            metrics["rouge_l"] = sum(scores) / len(scores)
        return metrics


@dataclass
class GeneratedTexts:
    """Texts that a student generated, by row.

    Attributes:
        labels: free generations.
        restricted: the most likely of a row's choices, if it has any and they are evaluated.
        rationales: if they are evaluated.
    """

    labels: dict[int, str] = field(default_factory=dict)
    restricted: dict[int, str] = field(default_factory=dict)
    rationales: dict[int, str] = field(default_factory=dict)

    def add(self, other: GeneratedTexts) -> None:
        """Add the texts of another process."""
        self.labels |= other.labels
        self.restricted |= other.restricted
        self.rationales |= other.rationales


def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
    """ROUGE-L F1 of each prediction, between 0 and 1.

    With L the length of the longest common subsequence of words, m words in the reference and n in the prediction,
    recall is L / m and precision L / n. Words are runs of letters and digits, in lower case, not stemmed.

    Source: Lin 2004 (ROUGE), section 3.1, equations 2 to 4.

    Raises:
        ValueError: lists of different lengths.
    """
    keys: dict[str, Any] = {"rouge_keys": "rougeL", "normalizer": str.lower, "tokenizer": _WORD.findall}
    pairs = zip(predictions, references, strict=True)
    return [float(rouge_score(*pair, **keys)["rougeL_fmeasure"]) for pair in pairs]
