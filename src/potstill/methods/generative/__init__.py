"""Generative distillation: decoders that learn from a teacher on completions which they write themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.benchmarks import GenerationBenchmarkConfig
from potstill.config.data import ConversationsDataConfig
from potstill.config.objectives.generative import GkdConfig, generative_of
from potstill.methods.base import Evaluator, Method, Training
from potstill.methods.generative.checks import evaluated_generation_problems, generative_problems
from potstill.methods.language import Language
from potstill.validation.data import kind_problems

if TYPE_CHECKING:
    from potstill.evaluation.rows import Row
    from potstill.reporting.report import Section, Table


class Generative(Language):
    """Training of decoders on given and on sampled completions (Agarwal et al. 2024)."""

    def applies(self, config: TrainConfig) -> bool:
        """With `objective=gkd`."""
        return isinstance(config.objective, GkdConfig)

    def problems(self, config: TrainConfig, *, models: bool = True) -> list[str]:
        """User errors of objective, conversations and models."""
        reader = f"objective={config.objective.name}"
        if problems := kind_problems(config.data, ConversationsDataConfig, reader):
            return problems
        return super().problems(config, models=models) + generative_problems(config, models=models)

    def served_problems(self, config: TrainConfig) -> list[str]:
        """No outputs of a server are read."""
        return Method.served_problems(self, config)

    def build(self, config: TrainConfig) -> Training:
        """Tokenizer, models, conversations, completions of the teacher, and module."""
        from potstill.methods.generative.build import build_generative_training

        return build_generative_training(config)

    def sample(self, config: TrainConfig, examples: int) -> None:
        """A sample of the rows; what is measured are steps that are sampled, if any are, without the teacher's part."""
        super().sample(config, examples)
        objective = generative_of(config)
        objective.sequence_kd, objective.on_policy = False, float(objective.on_policy > 0)

    def tables(self, training: Any, metrics: Mapping[str, float]) -> dict[str, Table]:
        """Samples of what the student writes."""
        from potstill.methods.generative.evaluation import samples_of

        return {"samples": samples_of(training.module)}


class GenerationEvaluation(Evaluator):
    """Completions of causal language models, compared with the right ones."""

    def applies(self, config: EvaluateConfig) -> bool:
        """With `benchmark=generation`."""
        return isinstance(config.benchmark, GenerationBenchmarkConfig)

    def problems(self, config: EvaluateConfig, models: Sequence[str]) -> list[str]:
        """User errors of benchmark, conversations and models."""
        reader = f"benchmark={config.benchmark.name}"
        return kind_problems(config.data, ConversationsDataConfig, reader) or evaluated_generation_problems(
            config, list(models)
        )

    def evaluate(self, config: EvaluateConfig, models: Mapping[str, str], folder: Path) -> list[Row]:
        """The metrics of every model; writes predictions.jsonl."""
        from potstill.methods.generative.evaluation import evaluate

        return evaluate(config, models, folder)

    def sections(self, config: EvaluateConfig, rows: list[Row]) -> list[Section]:
        """A table of the models, and samples of each."""
        from potstill.methods.generative.evaluation import sections

        return sections(config, rows)
