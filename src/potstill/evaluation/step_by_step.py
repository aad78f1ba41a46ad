"""What a student wrote of a part with rationales: how good it is, samples of it, and all of it as a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from potstill.data.rationales.rows import RationaleRows
from potstill.data.rationales.sets import EQUATION, SETS
from potstill.evaluation.equations import same_value, text_accuracy, value_of
from potstill.evaluation.rationales import consistency
from potstill.evaluation.rouge import rouge_l
from potstill.runtime.atomic import write_whole
from potstill.runtime.json_text import json_text

SAMPLE_COLUMNS = ("input", "label", "prediction", "reference", "rationale")

Decode = Callable[[Sequence[Sequence[int]]], list[str]]


@dataclass(frozen=True)
class StudentJudge:
    """Judges what a student wrote of a part.

    Attributes:
        rows: of the part.
        set_name: how labels are compared: by value for `svamp`, else as texts.
        gold: `rows.labels` as the tokenizer gives them back, which texts are compared with: it may put blanks
            otherwise than the file. One that it cannot write whole is as the file has it.
        decode: token ids as texts, special tokens left out.
    """

    rows: RationaleRows
    set_name: str
    gold: Sequence[str]
    decode: Decode

    def metrics(self, written: Written) -> dict[str, float]:
        """All metrics of what was written; empty where nothing was.

        `accuracy` is by value for equations, where `text_accuracy` is beside it; `accuracy_restricted` is that of the
        likeliest choices. Of rationales: `rouge_l`, the mean over rows that have a reference; `consistency`, the share
        of labels that are what their rationales conclude, among the `consistency_decided` whose conclusion can be told.
        """
        numbers = sorted(written.labels)
        if not numbers:
            return {}
        labels = [written.labels[row] for row in numbers]
        found = {"accuracy": self._accuracy(labels, numbers)}
        if self._by_value:
            found["text_accuracy"] = text_accuracy(labels, [self.gold[row] for row in numbers])
        if written.restricted:
            chosen = [written.restricted.get(row, written.labels[row]) for row in numbers]
            found["accuracy_restricted"] = self._accuracy(chosen, numbers)
        return found | self._of_rationales(written)

    def right(self, row: int, text: str) -> bool:
        """Whether a label is the row's; a text may be as the file has it, or as the tokenizer gives it back.

        A gold label without a value (`$5`) is compared as a text where others are compared by value.
        """
        if self._by_value and (value := value_of(self.rows.labels[row])) is not None:
            return same_value(value_of(text), value)
        return text.strip() in (self.rows.labels[row].strip(), self.gold[row].strip())

    def samples(self, written: Written, count: int) -> list[list[str]]:
        """The first rows with what was written of them, in the order of `SAMPLE_COLUMNS`."""
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

    def write(self, path: Path, written: Written) -> Path:
        """Write JSON lines, whole or not at all.

        A line has `index` (from 0), `label`, `prediction`, `right`, and where they are there `restricted`, `rationale`
        and `reference`.
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

    @property
    def _by_value(self) -> bool:
        return self.set_name in SETS and SETS[self.set_name].compared == EQUATION

    def _accuracy(self, labels: list[str], numbers: list[int]) -> float:
        right = [self.right(row, text) for row, text in zip(numbers, labels, strict=True)]
        return sum(right) / len(right)

    def _of_rationales(self, written: Written) -> dict[str, float]:
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
class Written:
    """What a student wrote, by the number of the row.

    Attributes:
        labels: freely.
        restricted: the likeliest of a row's choices, where it has any and they were asked for.
        rationales: where they were asked for.
    """

    labels: dict[int, str] = field(default_factory=dict)
    restricted: dict[int, str] = field(default_factory=dict)
    rationales: dict[int, str] = field(default_factory=dict)

    def add(self, other: Written) -> None:
        """Take over what another process wrote."""
        self.labels |= other.labels
        self.restricted |= other.restricted
        self.rationales |= other.rationales
