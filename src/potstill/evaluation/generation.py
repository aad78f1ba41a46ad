"""Evaluation of completions: exact match, ROUGE-L, samples and a file of predictions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from potstill.data.conversations.reading import Conversation
from potstill.evaluation.equations import NUMBER, same_value, value_of
from potstill.evaluation.step_by_step import rouge_l
from potstill.runtime.atomic import write_whole
from potstill.runtime.json_text import json_text

SAMPLE_COLUMNS = ("prompt", "completion", "reference", "right")
Decode = Callable[[NDArray[np.integer]], str]  # token ids to a text
METRICS = ("exact_match", "rouge_l")
_MARK = "####"  # before the final answer of a row of GSM8K
_NUMBER = re.compile(rf"[-\u2212]?\s?{NUMBER}")


@dataclass(frozen=True)
class GenerationEvaluator:
    """Evaluates what a model wrote for the last turns of conversations.

    Attributes:
        rows: the conversations, by the number of the sequence that a model read; None where its last turn is cut off.
    """

    rows: Sequence[Conversation | None]

    @property
    def numbers(self) -> list[int]:
        """The sequences that can be completed."""
        return [number for number, row in enumerate(self.rows) if row is not None]

    @property
    def has_answers(self) -> bool:
        """Whether any row has an answer or a reference of its own."""
        return any(row.answer is not None or row.reference is not None for row in self.rows if row is not None)

    def scores(self, written: Mapping[int, str]) -> dict[str, NDArray[np.float64]]:
        """`exact_match` (0 or 1) and `rouge_l` (0 to 1) by completion, in the order of the sequences."""
        rows = [(self._row(number), written[number]) for number in sorted(written)]
        return {
            "exact_match": np.array([is_exact(text, row.expected) for row, text in rows], np.float64),
            "rouge_l": np.array(
                rouge_l([text for _, text in rows], [row.reference or row.completion for row, _ in rows])
            ),
        }

    def metrics(self, written: Mapping[int, str]) -> dict[str, float]:
        """Means of the scores; empty without completions."""
        return {name: float(own.mean()) for name, own in self.scores(written).items()} if written else {}

    def samples(self, written: Mapping[int, str], count: int) -> list[list[str]]:
        """The first completions, in the order of `SAMPLE_COLUMNS`."""
        found = []
        for number in sorted(written)[:count]:
            row, text = self._row(number), written[number]
            right = "yes" if is_exact(text, row.expected) else "no"
            found.append([row.prompt_text, text, row.reference or row.completion, right])
        return found

    def write(self, path: Path, written: Mapping[int, str]) -> Path:
        """Write JSON lines atomically: `prompt`, `completion`, `expected`, `right`, `rouge_l`."""
        scores = self.scores(written)
        lines = [
            json_text(
                {
                    "prompt": self._row(number).prompt_text,
                    "completion": written[number],
                    "expected": self._row(number).expected,
                    "right": bool(scores["exact_match"][place]),
                    "rouge_l": float(scores["rouge_l"][place]),
                },
                ensure_ascii=False,
            )
            for place, number in enumerate(sorted(written))
        ]
        write_whole(path, "".join(f"{line}\n" for line in lines))
        return path

    def _row(self, number: int) -> Conversation:
        row = self.rows[number]
        assert row is not None
        return row


def final_answer(text: str) -> str:
    """What follows the last `####`, the mark of GSM8K (Cobbe et al. 2021), or the whole text without one."""
    return text.rpartition(_MARK)[2].strip()


def is_exact(text: str, expected: str) -> bool:
    """Whether a completion has the expected answer.

    The answer of either is what follows its last `####`, or the whole text. A number is compared by value; a completion
    without `####` then answers with its last number. Other answers are compared as texts, whatever their white space.
    """
    wanted = final_answer(expected)
    if (value := _value(wanted)) is None:
        return final_answer(text).split() == wanted.split()
    found = final_answer(text)
    if _value(found) is None and _MARK not in text:
        found = next(reversed(_NUMBER.findall(text)), "")
    return same_value(_value(found), value)


def _value(text: str) -> float | None:
    """The value of a number, with a currency or percent sign, or a full stop behind it."""
    plain = text.strip().strip("$\u20ac\u00a3%").strip().removesuffix(".").replace("\u2212", "-")
    return value_of(plain) if _NUMBER.fullmatch(plain) else None
