"""Several tasks of one student, each with a teacher of its own (`tasks=[...]`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from potstill.methods.base import Method, Training
from potstill.methods.common.checks import own_module_problems
from potstill.methods.multitask.checks import shared_task_faults
from potstill.methods.multitask.tasks import monitored
from potstill.validation.data import data_faults

if TYPE_CHECKING:
    from lightning import Trainer


class Multitask(Method):
    """Training of one encoder with one head per task."""

    def applies(self, config: DictConfig) -> bool:
        """With `tasks`."""
        return bool(config.tasks)

    def problems(self, config: DictConfig, *, models: bool = True) -> list[str]:
        """User errors of each task alone and of all together."""
        return [
            *shared_task_faults(config, models=models),
            *own_module_problems(config),
            *data_faults(config.data, corpus=False),
        ]

    def build(self, config: DictConfig) -> Training:
        """Rows, teachers, student, features and module."""
        from potstill.methods.multitask.build import build_shared_training

        return build_shared_training(config)

    def monitored(self, config: DictConfig) -> tuple[str, str | None]:
        """The mean of the tasks' metrics, or the metric of one task; the best student is kept."""
        return monitored(config)

    def data_name(self, config: DictConfig) -> str:
        """The benchmarks."""
        return ", ".join(str(task.name or task.benchmark) for task in config.tasks)

    def test(self, trainer: Trainer, training: Any, metrics: Mapping[str, float]) -> dict[str, Any]:
        """For each task the metrics of the best constant prediction, and whether the student is better."""
        from potstill.data.tasks.splits import MAIN
        from potstill.evaluation.constant import compared_with_constant

        found: dict[str, Any] = {}
        for name, lane in training.module.lanes.items():
            predicted = training.module.predicted(name, MAIN)
            found |= compared_with_constant(lane.task, lane.judges[MAIN], predicted, metrics, f"_{name}")
        return found

    def check_savable(self, training: Training) -> None:
        """Each task's model."""
        from potstill.models.load import check_savable

        student = training.module.student
        for task in student:
            check_savable(student.model(task))

    def save(self, config: DictConfig, training: Any, summary: dict[str, Any], folder: Path) -> None:
        """One folder per task, each complete by itself."""
        from potstill.methods.common.cards import student_card
        from potstill.models.folders import fresh_folder
        from potstill.models.load import save_student

        student = training.module.student
        with fresh_folder(folder) as fresh:
            for task in student:
                model = student.apart(task)
                card = student_card(config, self.data_name(config), summary, model)
                save_student(model, training.vocabulary.path, fresh / task, card)
