"""Extractive answers: from start and end logits to texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from potstill.data.tasks.questions import Question
from potstill.data.tasks.windows import NULL, Windows

CHUNK = 4 * 10**6  # span scores in memory at a time


class Candidate(NamedTuple):
    """A span of a context.

    Attributes:
        text: of the span.
        start: index of its first character.
        end: index after its last character.
        score: sum of the logits of its first and last token.
    """

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Found:
    """The answers of a model to a question.

    Attributes:
        question: its index.
        candidates: the best answers, best first; empty if the context has no token.
        null: score of "no answer": the lowest over the windows, as any of them may hold the answer.
    """

    question: int
    candidates: tuple[Candidate, ...]
    null: float

    @property
    def difference(self) -> float:
        """Score of "no answer" minus that of the best answer; compared with a threshold."""
        return self.null - self.candidates[0].score if self.candidates else np.inf

    def text(self, threshold: float | None = None) -> str:
        """The best answer.

        Args:
            threshold: the answer is "" if the difference is above; None never answers "" if there is a candidate.
        """
        silent = not self.candidates or (threshold is not None and self.difference > threshold)
        return "" if silent else self.candidates[0].text


def find_answers(
    start_NL: NDArray[np.floating],
    end_NL: NDArray[np.floating],
    windows: Windows,
    questions: Sequence[Question],
    *,
    rows_N: NDArray[np.integer] | None = None,
    n_best: int = 20,
    max_answer_length: int = 30,
) -> list[Found]:
    """The best answers of every question, over all its windows.

    All spans of a window are scored. BERT's code scores pairs of the best starts and ends only, which misses the best
    span if these pairs are invalid, and lets an answer start only in the window where its first token has most context.
    A span of several windows counts once, with its best score. Ties are ordered by window, start and end.

    Args:
        start_NL: `(n, length)` logits of first tokens; values after a window's end are ignored.
        end_NL: `(n, length)` logits of last tokens.
        windows: of the questions.
        questions: with their contexts.
        rows_N: `(n,)` indices of the windows of the logits; None for all windows in order.
        n_best: maximum number of answers per question.
        max_answer_length: maximum number of tokens of an answer.

    Returns:
        Questions with at least one window, in order.

    Raises:
        ValueError: the logits are not one row per window.
    """
    rows = np.arange(len(windows)) if rows_N is None else np.asarray(rows_N)
    if start_NL.shape != end_NL.shape or len(start_NL) != len(rows):
        raise ValueError(f"logits {start_NL.shape} and {end_NL.shape} of {len(rows)} windows")
    # In the order of the windows, each once: a distributed sampler repeats some.
    rows, first = np.unique(rows, return_index=True)
    start_NL, end_NL = (np.asarray(logits, np.float32)[first] for logits in (start_NL, end_NL))
    spans = _spans(start_NL, end_NL, windows, rows, n_best, max_answer_length)
    nulls: dict[int, float] = {}
    null_N = start_NL[:, NULL].astype(float) + end_NL[:, NULL]
    for question, null in zip(windows.question[rows].tolist(), null_N.tolist(), strict=True):
        nulls[question] = min(null, nulls.get(question, np.inf))
    found: dict[int, list[Candidate]] = {question: [] for question in nulls}
    for question, first_token, last_token, score in zip(*(own.tolist() for own in spans), strict=True):
        offsets, context = windows.offsets_of(question), questions[question].context
        start, end = int(offsets[first_token, 0]), int(offsets[last_token, 1])
        found[question].append(Candidate(context[start:end], start, end, score))
    return [Found(question, tuple(own), nulls[question]) for question, own in found.items()]


def _spans(
    start_NL: NDArray[np.float32],
    end_NL: NDArray[np.float32],
    windows: Windows,
    rows: NDArray[np.integer],
    n_best: int,
    longest: int,
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Question, first and last context token, and score of the best spans of each question, best first."""
    size = max(1, CHUNK // max(1, start_NL.shape[1] * longest))
    chunks = [
        _spans_of_windows(
            start_NL[at : at + size], end_NL[at : at + size], windows, rows[at : at + size], n_best, longest
        )
        for at in range(0, len(rows), size)
    ]
    none = np.zeros(0, np.int64)
    row, first, last, score = (np.concatenate(own) for own in zip((none, none, none, none), *chunks, strict=True))
    question = windows.question[row].astype(np.int64)
    # The best score of a span in several windows.
    order = np.lexsort((row, -score, last, first, question))
    row, first, last, score, question = (own[order] for own in (row, first, last, score, question))
    once = np.ones(len(question), np.bool_)
    once[1:] = (np.diff(question) != 0) | (np.diff(first) != 0) | (np.diff(last) != 0)
    row, first, last, score, question = (own[once] for own in (row, first, last, score, question))
    order = np.lexsort((last, first, row, -score, question))
    kept = order[_rank(question[order]) < n_best]
    return question[kept], first[kept], last[kept], score[kept]


def _spans_of_windows(
    start_NL: NDArray[np.float32],
    end_NL: NDArray[np.float32],
    windows: Windows,
    rows: NDArray[np.integer],
    n_best: int,
    longest: int,
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Window, first and last context token, and score of the best spans of each window."""
    count, width = start_NL.shape
    begin, pieces = windows.begin[rows][:, None], windows.pieces[rows][:, None]
    place = np.arange(width)
    outside = (place < begin) | (place >= begin + pieces)
    # A token of white space does not start or end an answer.
    blank = np.append(windows.offsets[:, 0] >= windows.offsets[:, 1], True)
    context = windows.context[windows.question[rows]]
    token = (windows.starts[context] + windows.first[rows])[:, None] + place - begin
    outside |= blank[np.where(outside, -1, token)]
    starts, ends = (np.where(outside, -np.inf, own) for own in (start_NL, end_NL))
    longest = min(longest, width)
    scores_NDL = np.full((count, longest, width), -np.inf, np.float32)
    for more in range(longest):
        scores_NDL[:, more, : width - more] = starts[:, : width - more] + ends[:, more:]
    flat = scores_NDL.reshape(count, -1)
    # By the n-th best score: np.partition orders ties arbitrarily.
    least = np.partition(flat, -n_best, axis=1)[:, -n_best] if n_best < flat.shape[1] else flat.min(1)
    window, span = np.nonzero((flat >= least[:, None]) & np.isfinite(flat))
    extra, first = np.divmod(span, width)
    score = flat[window, span]
    order = np.lexsort((extra, first, -score, window))
    kept = order[_rank(window[order]) < n_best]
    window, first, extra, score = window[kept], first[kept], extra[kept], score[kept]
    first = first + (windows.first[rows] - windows.begin[rows])[window]
    return rows[window], first, first + extra, score.astype(float)


def _rank(sorted_groups: NDArray[np.integer]) -> NDArray[np.integer]:
    """Index of every element within its group."""
    place = np.arange(len(sorted_groups))
    new = np.ones(len(sorted_groups), np.bool_)
    new[1:] = np.diff(sorted_groups) != 0
    return place - np.maximum.accumulate(np.where(new, place, 0))
