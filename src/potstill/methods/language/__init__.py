"""Language models: distilled from a teacher (`kd`, `diito`), or trained alone (`mlm`, `clm`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from potstill.methods.base import Evaluator, Method, Training
from potstill.methods.common.checks import distillation_problems, evaluation_problems
from potstill.validation.data import data_faults

if TYPE_CHECKING:
    from potstill.evaluation.rows import Row
    from potstill.reporting.report import Section


class Language(Method):
    """Training of language models on a corpus."""

    def problems(self, config: DictConfig, *, models: bool = True) -> list[str]:
        """User errors of objective, corpus and models."""
        data = data_faults(config.data)
        return distillation_problems(config, data, kind=None, models=models)

    def build(self, config: DictConfig) -> Training:
        """Tokenizer, models, corpus and module."""
        from potstill.methods.language.build import build_language_training

        return build_language_training(config)

    def monitored(self, config: DictConfig) -> tuple[str, str | None]:
        """Perplexity; the last student is kept."""
        return "val/perplexity", None

    def data_name(self, config: DictConfig) -> str:
        """The corpus."""
        return str(config.data.name)

    def sample(self, config: DictConfig, examples: int) -> None:
        """A sample of each source's texts."""
        config.data.max_examples = min(config.data.max_examples or examples, examples)

    def curves(self, metrics: Mapping[str, Any]) -> list[Section]:
        """Perplexity over the steps, on a logarithmic scale."""
        from potstill.reporting.report import Curves

        shown = {name: series for name, series in metrics.items() if name.endswith("perplexity")}
        return [Curves("Validation perplexity", shown, "step", "perplexity", True)] if shown else []


class LanguageEvaluator(Evaluator):
    """Perplexity of language models, and their agreement with a teacher under interventions."""

    def problems(self, config: DictConfig, models: Sequence[str]) -> list[str]:
        """User errors of benchmark, text and models."""
        from potstill.validation.benchmarks import unread_faults

        kind = {"mlm": "masked", "clm": "causal"}.get(config.benchmark.name)
        own = data_faults(config.data, evaluating=True, eval_file=config.benchmark.eval_file)
        return evaluation_problems(config, models, [*own, *unread_faults(config.benchmark)], kind=kind)

    def evaluate(self, config: DictConfig, models: Mapping[str, str], folder: Path) -> list[Row]:
        """Perplexity of every model, and its agreement with the first where states are swapped."""
        from potstill.methods.language.evaluation import evaluate

        return evaluate(config, models, folder)

    def sections(self, config: DictConfig, rows: list[Row]) -> list[Section]:
        """A table of the models, and plots."""
        from potstill.methods.language.evaluation import sections

        return sections(config, rows)

    def deciding(self, config: DictConfig) -> str:
        """The benchmark's metric, without a prefix."""
        return str(config.benchmark.monitor)
