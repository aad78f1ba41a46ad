"""Benchmarks of sentence encoders from configuration: their rows are read once, and tokenized for every model."""

from __future__ import annotations

import logging
from typing import Any

from numpy.typing import NDArray

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.benchmarks import RetrievalConfig, SimilarityConfig
from potstill.data.common.tokenizers import Vocabulary
from potstill.data.tasks.labels import REGRESSION, Task, encode_labels
from potstill.data.tasks.readers import Rows
from potstill.data.tasks.retrieval import Collection, read_collection
from potstill.data.tasks.splits import MAIN, evaluated_parts
from potstill.errors import DataError, LabelError
from potstill.evaluation.encoders import EncoderBenchmark
from potstill.evaluation.retrieval import retrieval_of
from potstill.evaluation.similarity import AVERAGE_PRECISION, scored_pairs
from potstill.models.sentence_folders import SentenceSettings

log = logging.getLogger(__name__)

ScoredRows = tuple[Rows, NDArray[Any]]  # pairs of texts, and their scores


def benchmark_rows(
    config: TrainConfig | EvaluateConfig, limits: tuple[int | None, str | None] = (None, None)
) -> ScoredRows | Collection:
    """The rows of a benchmark.

    Args:
        config: of the run.
        limits: number of rows, and a regular expression of lines to leave out.

    Raises:
        DataError: rows that cannot be used.
    """
    benchmark = config.benchmark
    if isinstance(benchmark, RetrievalConfig):
        found = read_collection(benchmark.folder, benchmark.part, limits[0])
        if found.left_out:
            log.info("%s: %d queries have no relevant document, and are left out", benchmark.folder, found.left_out)
        return found
    assert isinstance(benchmark, SimilarityConfig)
    rows = evaluated_parts(benchmark, *limits)[MAIN].read()
    if len(rows.texts) != 2:
        raise DataError(f"{rows.key}: '{rows.name}' has one text in a row; set benchmark.text_columns=[a,b]")
    scores = encode_labels(rows, Task(benchmark.name, REGRESSION, (), (), "", "max"))
    if scores is None:
        raise DataError(f"{rows.key}: '{rows.name}' has no scores; set benchmark.label_column")
    if AVERAGE_PRECISION in benchmark.metrics:
        for place, score in zip(rows.places, scores.tolist(), strict=True):
            if score not in (0, 1):
                raise LabelError(
                    f"{rows.key}: '{rows.name}' {place}: score {score:g}; {AVERAGE_PRECISION} is of 0 and 1"
                )
        if not scores.any():
            raise LabelError(f"{rows.key}: '{rows.name}' has no pair of score 1, which {AVERAGE_PRECISION} is of")
    return rows, scores


def benchmark_of(
    config: TrainConfig | EvaluateConfig,
    rows: ScoredRows | Collection,
    vocabulary: Vocabulary,
    settings: SentenceSettings,
    length: int,
    prompt: str | None = None,
) -> EncoderBenchmark:
    """The benchmark in the tokens of a model.

    Args:
        config: of the run.
        rows: of `benchmark_rows`.
        vocabulary: of the model's tokenizer.
        settings: of the model.
        length: most tokens of a text, with special tokens.
        prompt: name or text of the prompt before every text of a pair; None: the model's default.
    """
    batch_size = config.data.eval_batch_size
    if isinstance(rows, Collection):
        assert isinstance(config.benchmark, RetrievalConfig)
        return retrieval_of(
            rows,
            vocabulary,
            settings,
            prompts=(
                settings.prompt_of("query", config.benchmark.query_prompt),
                settings.prompt_of("document", config.benchmark.document_prompt),
            ),
            max_length=length,
            metrics=config.benchmark.metrics,
            batch_size=batch_size,
        )
    assert isinstance(config.benchmark, SimilarityConfig)
    return scored_pairs(
        *rows,
        vocabulary,
        settings,
        prompt=settings.prompt(prompt),
        max_length=length,
        metrics=config.benchmark.metrics,
        batch_size=batch_size,
    )
