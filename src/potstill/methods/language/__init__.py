"""Language models: distilled from a teacher (`kd`, `diito`), or trained alone (`mlm`, `clm`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.benchmarks import LanguageBenchmarkConfig, language_benchmark_of
from potstill.config.data import ConversationsDataConfig, TextDataConfig, data_of
from potstill.methods.base import Evaluator, Method, ServedOutputs, Training
from potstill.methods.common.checks import distillation_problems, evaluation_problems
from potstill.runtime.atomic import write_whole
from potstill.validation.benchmarks import choice_problems
from potstill.validation.data import kind_problems, text_problems
from potstill.validation.generation import served_token_problems

if TYPE_CHECKING:
    from potstill.evaluation.rows import Row
    from potstill.reporting.report import Section


class Language(Method):
    """Training of language models on a corpus."""

    def problems(self, config: TrainConfig, *, models: bool = True) -> list[str]:
        """User errors of objective, corpus and models."""
        return (
            choice_problems(config)
            or kind_problems(config.data, TextDataConfig, f"objective={config.objective.name}")
            or distillation_problems(config, text_problems(data_of(config, TextDataConfig)), kind=None, models=models)
        )

    def build(self, config: TrainConfig) -> Training:
        """Tokenizer, models, corpus and module."""
        from potstill.methods.language.build import build_language_training

        return build_language_training(config)

    def served_problems(self, config: TrainConfig) -> list[str]:
        """User errors of a server that scores tokens."""
        return served_token_problems(config)

    def store_served(self, config: TrainConfig) -> ServedOutputs:
        """The likeliest tokens behind each token of the corpus."""
        from potstill.methods.language.serving import store_served_tokens

        return store_served_tokens(config)

    def save(self, config: TrainConfig, training: Any, summary: dict[str, Any], folder: Path) -> None:
        """The student, and with it the chat template that it was trained with."""
        from potstill.methods.common.data import template_of

        super().save(config, training, summary, folder)
        if isinstance(config.data, ConversationsDataConfig) and (template := template_of(config.data)) is not None:
            write_whole(folder / "chat_template.jinja", template)

    def monitored(self, config: TrainConfig) -> tuple[str, str | None]:
        """Perplexity; the last student is kept."""
        return "val/perplexity", None

    def data_name(self, config: TrainConfig) -> str:
        """The corpus."""
        return str(config.data.name)

    def sample(self, config: TrainConfig, examples: int) -> None:
        """A sample of each source's texts."""
        config.data.max_examples = min(config.data.max_examples or examples, examples)

    def curves(self, metrics: Mapping[str, Any]) -> list[Section]:
        """Perplexity over the steps, on a logarithmic scale."""
        from potstill.reporting.report import Curves

        shown = {name: series for name, series in metrics.items() if name.endswith("perplexity")}
        return [Curves("Validation perplexity", shown, "step", "perplexity", True)] if shown else []


class LanguageEvaluator(Evaluator):
    """Perplexity of language models, and their agreement with a teacher under interventions."""

    def applies(self, config: EvaluateConfig) -> bool:
        """Benchmarks of language models."""
        return isinstance(config.benchmark, LanguageBenchmarkConfig)

    def problems(self, config: EvaluateConfig, models: Sequence[str]) -> list[str]:
        """User errors of benchmark, text and models."""
        benchmark = language_benchmark_of(config.benchmark)
        if problems := kind_problems(config.data, TextDataConfig, f"benchmark={benchmark.name}"):
            return problems
        text = data_of(config, TextDataConfig)
        own = text_problems(text, evaluating=True, eval_file=benchmark.eval_file)
        return evaluation_problems(config, models, own, masked=benchmark.masked)

    def evaluate(self, config: EvaluateConfig, models: Mapping[str, str], folder: Path) -> list[Row]:
        """Perplexity of every model, and its agreement with the first where states are swapped."""
        from potstill.methods.language.evaluation import evaluate

        return evaluate(config, models, folder)

    def sections(self, config: EvaluateConfig, rows: list[Row]) -> list[Section]:
        """A table of the models, and plots."""
        from potstill.methods.language.evaluation import sections

        return sections(config, rows)

    def deciding(self, config: EvaluateConfig) -> str:
        """The benchmark's metric, without a prefix."""
        return str(config.benchmark.monitor)
