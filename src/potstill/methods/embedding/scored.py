"""Scored pairs of a benchmark, in the tokens of an encoder."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.benchmarks import SimilarityConfig
from potstill.data.tasks.labels import encode_labels
from potstill.data.tasks.readers import Rows
from potstill.data.tasks.splits import MAIN, evaluated_parts, task_of
from potstill.errors import DataError
from potstill.evaluation.similarity import ScoredPairs, scored_pairs
from potstill.methods.embedding.models import Side

ScoredRows = tuple[Rows, NDArray[Any]]  # pairs of texts, and their scores


def scored_rows(benchmark: Any, limits: tuple[int | None, str | None] = (None, None)) -> ScoredRows:
    """The pairs of a benchmark with their scores.

    Raises:
        DataError: rows of single texts, or without scores.
    """
    assert isinstance(benchmark, SimilarityConfig)
    rows = evaluated_parts(benchmark, *limits)[MAIN].read()
    if len(rows.texts) != 2:
        raise DataError(f"{rows.key}: '{rows.name}' has one text in a row; set benchmark.text_columns=[a,b]")
    scores = encode_labels(rows, task_of(benchmark))
    if scores is None:
        raise DataError(f"{rows.key}: '{rows.name}' has no scores; set benchmark.label_column")
    return rows, scores


def pairs_of(
    config: TrainConfig | EvaluateConfig, found: ScoredRows, side: Side, prompt: str, length: int
) -> ScoredPairs:
    """Pairs of `scored_rows` in the tokens of a model, of at most `length` tokens each."""
    rows, scores = found
    return scored_pairs(
        rows,
        scores,
        side.vocabulary,
        side.settings,
        prompt=prompt,
        max_length=length,
        metrics=tuple(config.task_benchmark.metrics),
        batch_size=config.data.eval_batch_size,
    )
