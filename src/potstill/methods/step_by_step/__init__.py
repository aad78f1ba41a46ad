"""Distilling step-by-step: students that learn labels and an LLM's rationales (Hsieh et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.benchmarks import StepByStepBenchmarkConfig
from potstill.config.data import RationaleDataConfig
from potstill.config.objectives.step_by_step import StepByStepConfig
from potstill.methods.base import Evaluator, Method, Training
from potstill.methods.step_by_step.checks import evaluated_rationale_problems, rationale_problems
from potstill.validation.data import kind_problems

if TYPE_CHECKING:
    from lightning import Trainer

    from potstill.evaluation.rows import Row
    from potstill.reporting.report import Section, Table


class StepByStep(Method):
    """Training of an encoder-decoder with task prefixes."""

    def applies(self, config: TrainConfig) -> bool:
        """With `objective=step_by_step`."""
        return isinstance(config.objective, StepByStepConfig)

    def problems(self, config: TrainConfig, *, models: bool = True) -> list[str]:
        """User errors of objective, sets and student."""
        reader = f"objective={config.objective.name}"
        return kind_problems(config.data, RationaleDataConfig, reader) or rationale_problems(config)

    def build(self, config: TrainConfig) -> Training:
        """Rows, tokenizer, student, features and module."""
        from potstill.methods.step_by_step.build import build_rationale_training

        return build_rationale_training(config)

    def monitored(self, config: TrainConfig) -> tuple[str, str | None]:
        """Accuracy of the labels; the best student is kept."""
        return "val/accuracy", "max"

    def data_name(self, config: TrainConfig) -> str:
        """The set."""
        return str(config.data.name)

    def test(self, trainer: Trainer, training: Any, metrics: Mapping[str, float]) -> dict[str, Any]:
        """The metrics of the test part."""
        from potstill.methods.step_by_step.evaluation import test_metrics

        return dict(test_metrics(trainer, training))

    def tables(self, training: Any, metrics: Mapping[str, float]) -> dict[str, Table]:
        """Samples of the student's labels and rationales."""
        from potstill.methods.step_by_step.evaluation import samples_of

        return {"samples": samples_of(training.module)}


class StepByStepEvaluator(Evaluator):
    """Labels and rationales of students on a part with rationales."""

    def applies(self, config: EvaluateConfig) -> bool:
        """With `benchmark=step_by_step`."""
        return isinstance(config.benchmark, StepByStepBenchmarkConfig)

    def problems(self, config: EvaluateConfig, models: Sequence[str]) -> list[str]:
        """User errors of sets and students."""
        reader = f"benchmark={config.benchmark.name}"
        return kind_problems(config.data, RationaleDataConfig, reader) or evaluated_rationale_problems(
            config, list(models)
        )

    def evaluate(self, config: EvaluateConfig, models: Mapping[str, str], folder: Path) -> list[Row]:
        """The metrics of every student; writes predictions.jsonl."""
        from potstill.methods.step_by_step.evaluation import evaluate

        return evaluate(config, models, folder)

    def sections(self, config: EvaluateConfig, rows: list[Row]) -> list[Section]:
        """A table of the students, and samples of each."""
        from potstill.methods.step_by_step.evaluation import sections

        return sections(config, rows)
