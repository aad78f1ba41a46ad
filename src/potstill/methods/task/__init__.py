"""Task models: fine-tuned (`finetune`), or distilled (`task_kd`, `diito` with a benchmark)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.benchmarks import TaskBenchmarkConfig
from potstill.config.data import TaskDataConfig, data_of
from potstill.config.defaults import trains_task
from potstill.data.tasks.splits import MAIN, kind_of
from potstill.methods.base import Evaluator, Method, Training
from potstill.methods.common.checks import distillation_problems, evaluation_problems
from potstill.validation.benchmarks import choice_problems, evaluated_problems
from potstill.validation.data import kind_problems, task_data_problems

if TYPE_CHECKING:
    from lightning import Trainer

    from potstill.evaluation.rows import Row
    from potstill.reporting.report import Section, Table


class TaskModels(Method):
    """Training of one model on one benchmark."""

    def applies(self, config: TrainConfig) -> bool:
        """Objectives of task models, and `diito` with a benchmark."""
        return bool(trains_task(config))

    def problems(self, config: TrainConfig, *, models: bool = True) -> list[str]:
        """User errors of objective, benchmark and models."""
        kind = kind_of(config.benchmark) if isinstance(config.benchmark, TaskBenchmarkConfig) else None
        return (
            choice_problems(config)
            or kind_problems(config.data, TaskDataConfig, f"benchmark={config.task_benchmark.name}")
            or distillation_problems(
                config, task_data_problems(data_of(config, TaskDataConfig)), kind=kind, models=models
            )
        )

    def build(self, config: TrainConfig) -> Training:
        """Rows, labels, tokenizer, models, features and module."""
        from potstill.methods.task.build import build_task_training

        return build_task_training(config)

    def monitored(self, config: TrainConfig) -> tuple[str, str | None]:
        """The benchmark's own metric; the best student is kept."""
        return f"val/{config.task_benchmark.monitor}", config.task_benchmark.mode

    def data_name(self, config: TrainConfig) -> str:
        """The benchmark."""
        return config.task_benchmark.name

    def test(self, trainer: Trainer, training: Any, metrics: Mapping[str, float]) -> dict[str, Any]:
        """The metrics of the best constant prediction, and whether the student is better."""
        from potstill.evaluation.constant import compared_with_constant

        module = training.module
        return dict(compared_with_constant(module.task, module.evaluators[MAIN], module.predicted(MAIN), metrics))

    def tables(self, training: Any, metrics: Mapping[str, float]) -> dict[str, Table]:
        """The metrics of each class or type of entity."""
        from potstill.methods.task.evaluation import class_tables

        return class_tables(training.module, metrics)


class TaskEvaluator(Evaluator):
    """The metrics of a benchmark, and agreement with a teacher under interventions."""

    def applies(self, config: EvaluateConfig) -> bool:
        """Benchmarks of task models."""
        return isinstance(config.benchmark, TaskBenchmarkConfig)

    def problems(self, config: EvaluateConfig, models: Sequence[str]) -> list[str]:
        """User errors of benchmark and models."""
        if problems := kind_problems(config.data, TaskDataConfig, f"benchmark={config.benchmark.name}"):
            return problems
        own = task_data_problems(data_of(config, TaskDataConfig))
        return evaluation_problems(config, models, [*own, *evaluated_problems(config, list(models))])

    def evaluate(self, config: EvaluateConfig, models: Mapping[str, str], folder: Path) -> list[Row]:
        """The metrics of every model; what each predicts is written."""
        from potstill.methods.task.evaluation import evaluate

        return evaluate(config, models, folder)

    def sections(self, config: EvaluateConfig, rows: list[Row]) -> list[Section]:
        """A table of the models, further metrics, and plots."""
        from potstill.methods.task.evaluation import sections

        return sections(config, rows)
