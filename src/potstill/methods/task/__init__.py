"""Task models: fine-tuned (`finetune`), or distilled (`task_kd`, `diito` with a benchmark)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from potstill.config.defaults import trains_task
from potstill.data.tasks.splits import MAIN, is_task, kind_of
from potstill.methods.base import Evaluator, Method, Training
from potstill.methods.common.checks import distillation_problems, evaluation_problems
from potstill.validation.benchmarks import judged_faults
from potstill.validation.data import data_faults

if TYPE_CHECKING:
    from lightning import Trainer

    from potstill.evaluation.rows import Row
    from potstill.reporting.report import Section, Table


class TaskModels(Method):
    """Training of one model on one benchmark."""

    def applies(self, config: DictConfig) -> bool:
        """Objectives of task models, and `diito` with a benchmark."""
        return bool(trains_task(config))

    def problems(self, config: DictConfig, *, models: bool = True) -> list[str]:
        """User errors of objective, benchmark and models."""
        kind = kind_of(config.benchmark) if config.benchmark else None
        data = data_faults(config.data, corpus=False)
        return distillation_problems(config, data, kind=kind, models=models)

    def build(self, config: DictConfig) -> Training:
        """Rows, labels, tokenizer, models, features and module."""
        from potstill.methods.task.build import build_task_training

        return build_task_training(config)

    def monitored(self, config: DictConfig) -> tuple[str, str | None]:
        """The benchmark's own metric; the best student is kept."""
        return f"val/{config.benchmark.monitor}", config.benchmark.mode

    def data_name(self, config: DictConfig) -> str:
        """The benchmark."""
        return str(config.benchmark.name)

    def test(self, trainer: Trainer, training: Any, metrics: Mapping[str, float]) -> dict[str, Any]:
        """The metrics of the best constant prediction, and whether the student is better."""
        from potstill.evaluation.constant import compared_with_constant

        module = training.module
        return dict(compared_with_constant(module.task, module.judges[MAIN], module.predicted(MAIN), metrics))

    def tables(self, training: Any, metrics: Mapping[str, float]) -> dict[str, Table]:
        """The metrics of each class or type of entity."""
        from potstill.methods.task.evaluation import class_tables

        return class_tables(training.module, metrics)


class TaskEvaluator(Evaluator):
    """The metrics of a benchmark, and agreement with a teacher under interventions."""

    def applies(self, config: DictConfig) -> bool:
        """Benchmarks of task models."""
        return is_task(config.benchmark)

    def problems(self, config: DictConfig, models: Sequence[str]) -> list[str]:
        """User errors of benchmark and models."""
        own = data_faults(config.data, evaluating=True, corpus=False)
        return evaluation_problems(config, models, [*own, *judged_faults(config, list(models))])

    def evaluate(self, config: DictConfig, models: Mapping[str, str], folder: Path) -> list[Row]:
        """The metrics of every model; what each predicts is written."""
        from potstill.methods.task.evaluation import evaluate

        return evaluate(config, models, folder)

    def sections(self, config: DictConfig, rows: list[Row]) -> list[Section]:
        """A table of the models, further metrics, and plots."""
        from potstill.methods.task.evaluation import sections

        return sections(config, rows)
