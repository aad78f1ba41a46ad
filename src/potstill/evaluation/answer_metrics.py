"""Exact match and F1 of answers, as the scripts of SQuAD 1.1, SQuAD 2.0 and CMRC 2018, but from 0 to 1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from potstill.evaluation.words import words_of

References = Sequence[Sequence[str]]
Score = Callable[[str, str], float]


def answer_scores(script: str, predictions: Sequence[str], references: References) -> dict[str, NDArray[np.float64]]:
    """`em` and `f1` of each question, `(questions,)`, with its best reference; their means are the published figures.

    Args:
        script: `squad` (SQuAD 1.1, Rajpurkar et al. 2016), `squad_v2` (SQuAD 2.0, Rajpurkar et al. 2018), or `cmrc`
            (CMRC 2018, Cui et al. 2019; also for DRCD).
        predictions: one answer per question, "" for no answer.
        references: of each question; empty if it has no answer, which only SQuAD 2.0 has.
    """
    if script == "squad_v2":
        return _v2_scores(predictions, _v2_references(references))
    em, f1 = {"squad": (squad_em, squad_f1), "cmrc": (cmrc_em, cmrc_f1)}[script]
    return _scores(predictions, references, em, f1)


def squad_em(prediction: str, reference: str) -> float:
    """1 if both are equal apart from case, punctuation, articles and white space."""
    return float(normalize(prediction) == normalize(reference))


def squad_f1(prediction: str, reference: str) -> float:
    """F1 of the bags of words; 0 if one is empty."""
    own, gold = normalize(prediction).split(), normalize(reference).split()
    return _f1((Counter(own) & Counter(gold)).total(), len(own), len(gold))


def normalize(text: str) -> str:
    """Lower case without ASCII punctuation and articles, one space between words."""
    text = "".join(letter for letter in text.lower() if letter not in _ASCII_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_v2(
    predictions: Sequence[str],
    references: References,
    *,
    differences: Sequence[float] | None = None,
    best: Sequence[str] | None = None,
) -> dict[str, float]:
    """Exact match and F1 with unanswerable questions, as the script of SQuAD 2.0 (Rajpurkar et al. 2018).

    The only right answer to a question without references is "".

    Args:
        predictions: one answer per question, "" for no answer.
        references: of each question; empty if it has no answer.
        differences: score of "no answer" minus that of the best answer, per question.
        best: the best non-empty answers; with `differences`, the best thresholds are computed.

    Returns:
        `em`, `f1`; `has_ans_em`, `has_ans_f1`, `no_ans_em` and `no_ans_f1` for questions with and without answer, if
        there are any; and `best_em` at `best_em_threshold` and `best_f1` at `best_f1_threshold`, as in `Found.text`.
    """
    gold = _v2_references(references)
    has_N = np.array([own != [""] for own in gold], np.bool_)
    scores = _v2_scores(predictions, gold)
    found = {name: _mean(own) for name, own in scores.items()}
    for part, mask_N in (("has_ans", has_N), ("no_ans", ~has_N)):
        if mask_N.any():
            found |= {f"{part}_{name}": _mean(own[mask_N]) for name, own in scores.items()}
    if differences is not None and best is not None and len(gold):
        for name, own in _v2_scores(best, gold).items():
            found[f"best_{name}"], found[f"best_{name}_threshold"] = best_threshold(own, has_N, differences)
    return found


def best_threshold(
    score_N: NDArray[np.floating], has_N: NDArray[np.bool_], differences: Sequence[float]
) -> tuple[float, float]:
    """The threshold with the best mean score, and that score; the lowest of equally good thresholds.

    Questions of equal difference are answered together or not at all, while the published script adds them one by one.

    Args:
        score_N: of the best answers.
        has_N: whether a question has an answer.
        differences: as for `squad_v2`; a question of infinite difference is never answered.

    Returns:
        Mean score and threshold; a threshold below all differences answers no question.
    """
    difference = np.asarray(differences, float)
    order = np.argsort(difference, kind="stable")
    order = order[np.isfinite(difference[order])]
    # Change of the score by answering: an unanswerable question loses its point.
    gain = np.where(has_N[order], score_N[order], -1.0)
    reached = np.concatenate([[0.0], np.cumsum(gain)]) + float((~has_N).sum())
    ordered = difference[order]
    if not len(ordered):
        return float(reached[0] / len(score_N)), 0.0
    thresholds = np.concatenate([[ordered[0] - 1], ordered])
    reached[:-1][thresholds[:-1] == thresholds[1:]] = -np.inf
    at = int(reached.argmax())
    return float(reached[at] / len(score_N)), float(thresholds[at])


def cmrc_em(prediction: str, reference: str) -> float:
    """1 if both are equal apart from case, outer white space and `PUNCTUATION`."""
    return float(_bare(prediction) == _bare(reference))


def cmrc_f1(prediction: str, reference: str) -> float:
    """F1 from the length of the longest common run of `segments`."""
    own, gold = segments(prediction), segments(reference)
    return _f1(_longest_run(own, gold), len(own), len(gold))


def segments(text: str) -> list[str]:
    """Single Chinese characters and the words between them, in lower case without `PUNCTUATION`.

    Words on both sides of a removed mark are joined, as in the published script: "co-op" is one word.
    """
    found: list[str] = []
    for chinese, other in _CHINESE_OR_NOT.findall(_bare(text)):
        found.extend([chinese] if chinese else words_of(other))
    return found


# Marks that the CMRC script removes. It lists "……" too, which never equals a single character, so "…" stays.
PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")  # noqa: RUF001
_CHINESE_OR_NOT = re.compile("([\u4e00-\u9fa5])|([^\u4e00-\u9fa5]+)")
_ASCII_PUNCTUATION = frozenset(string.punctuation)


def _bare(text: str) -> str:
    return "".join(letter for letter in text.lower().strip() if letter not in PUNCTUATION)


def _longest_run(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common substring."""
    longest, above = 0, [0] * (len(right) + 1)
    for own in left:
        row = [0]
        for at, other in enumerate(right):
            row.append(above[at] + 1 if own == other else 0)
        longest, above = max(longest, *row), row
    return longest


def _f1(common: int, own: int, gold: int) -> float:
    if common == 0:
        return 0.0
    precision, recall = common / own, common / gold
    return 2 * precision * recall / (precision + recall)


def _v2_references(references: References) -> list[list[str]]:
    return [[text for text in own if normalize(text)] or [""] for own in references]


def _v2_scores(predictions: Sequence[str], gold: References) -> dict[str, NDArray[np.float64]]:
    return _scores(predictions, gold, squad_em, _v2_f1)


def _v2_f1(prediction: str, reference: str) -> float:
    """As `squad_f1`, but 1 if both are empty."""
    if not normalize(prediction) or not normalize(reference):
        return squad_em(prediction, reference)
    return squad_f1(prediction, reference)


def _scores(predictions: Sequence[str], references: References, em: Score, f1: Score) -> dict[str, NDArray[np.float64]]:
    pairs = list(zip(predictions, references, strict=True))
    return {
        name: np.array([max((score(answer, gold) for gold in own), default=0.0) for answer, own in pairs], float)
        for name, score in (("em", em), ("f1", f1))
    }


def _mean(scores: Sequence[float] | NDArray[np.floating]) -> float:
    return float(np.mean(scores)) if len(scores) else 0.0
