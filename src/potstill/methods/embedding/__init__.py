"""Sentence encoders: students whose vectors follow a teacher's, and their vectors on scored pairs and in retrieval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.benchmarks import RetrievalConfig, SimilarityConfig
from potstill.config.data import CorpusDataConfig
from potstill.config.objectives.embedding import EmbedConfig
from potstill.methods.base import Evaluator, Method, ServedOutputs, Training
from potstill.methods.embedding.checks import (
    embedding_problems,
    evaluated_encoder_problems,
    follows_teacher,
    served_vector_problems,
)

if TYPE_CHECKING:
    from potstill.evaluation.rows import Row
    from potstill.reporting.report import Section


class Embedding(Method):
    """Training of sentence encoders on texts (Reimers & Gurevych 2020)."""

    def applies(self, config: TrainConfig) -> bool:
        """With `objective=embed`."""
        return isinstance(config.objective, EmbedConfig)

    def problems(self, config: TrainConfig, *, models: bool = True) -> list[str]:
        """User errors of objective, texts, models and scored pairs."""
        return embedding_problems(config, models=models)

    def build(self, config: TrainConfig) -> Training:
        """Tokenizers, models, texts and module."""
        from potstill.methods.embedding.build import build_embedding_training

        return build_embedding_training(config)

    def monitored(self, config: TrainConfig) -> tuple[str, str | None]:
        """The benchmark's metric, by which the best student is kept.

        Otherwise the cosine with the teacher, or without a teacher the loss.
        """
        if config.benchmark is None:
            return "val/cosine" if follows_teacher(config) else "val/loss", None
        return f"val/{config.benchmark.monitor}", config.benchmark.mode

    def data_name(self, config: TrainConfig) -> str:
        """The corpus, or the rows."""
        return str(config.data.name)

    def sample(self, config: TrainConfig, examples: int) -> None:
        """A sample of each source's texts; rows of several texts are read as a whole."""
        if not isinstance(config.data, CorpusDataConfig):
            return
        config.data.max_examples = min(config.data.max_examples or examples, examples)

    def served_problems(self, config: TrainConfig) -> list[str]:
        """User errors of a server that makes vectors."""
        return served_vector_problems(config)

    def store_served(self, config: TrainConfig) -> ServedOutputs:
        """The vector of each text."""
        from potstill.methods.embedding.serving import store_served_vectors

        return store_served_vectors(config)

    def save(self, config: TrainConfig, training: Any, summary: dict[str, Any], folder: Path) -> None:
        """Write the student as a folder of sentence-transformers, which transformers opens, too."""
        from potstill.methods.embedding.build import save_encoder

        save_encoder(config, training, self.data_name(config), summary, folder)


class EncoderEvaluator(Evaluator):
    """Similarities of vectors against scores, and retrieval."""

    def applies(self, config: EvaluateConfig) -> bool:
        """With `benchmark=sts`, `paraphrases` or `retrieval`."""
        return isinstance(config.benchmark, SimilarityConfig | RetrievalConfig)

    def problems(self, config: EvaluateConfig, models: Sequence[str]) -> list[str]:
        """User errors of benchmark and models."""
        return evaluated_encoder_problems(config, list(models))

    def evaluate(self, config: EvaluateConfig, models: Mapping[str, str], folder: Path) -> list[Row]:
        """The metrics of every model; writes similarities or rankings."""
        from potstill.methods.embedding.evaluation import evaluate

        return evaluate(config, models, folder)

    def sections(self, config: EvaluateConfig, rows: list[Row]) -> list[Section]:
        """A table of the models, and quality against latency."""
        from potstill.methods.embedding.evaluation import sections

        return sections(config, rows)
