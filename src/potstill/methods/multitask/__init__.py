"""Several tasks of one student, each with a teacher of its own (`tasks=[...]`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.config import TrainConfig
from potstill.methods.base import Method, Training
from potstill.methods.multitask.checks import shared_task_problems
from potstill.methods.multitask.tasks import monitored

if TYPE_CHECKING:
    from lightning import Trainer


class Multitask(Method):
    """Training of one encoder with one head per task."""

    def applies(self, config: TrainConfig) -> bool:
        """With `tasks`."""
        return bool(config.tasks)

    def problems(self, config: TrainConfig, *, models: bool = True) -> list[str]:
        """User errors of each task alone and of all together."""
        return shared_task_problems(config, models=models)

    def build(self, config: TrainConfig) -> Training:
        """Rows, teachers, student, features and module."""
        from potstill.methods.multitask.build import build_shared_training

        return build_shared_training(config)

    def monitored(self, config: TrainConfig) -> tuple[str, str | None]:
        """The mean of the tasks' metrics, or the metric of one task; the best student is kept."""
        return monitored(config)

    def data_name(self, config: TrainConfig) -> str:
        """The benchmarks."""
        return ", ".join(str(task.name or task.benchmark) for task in config.tasks)

    def test(self, trainer: Trainer, training: Any, metrics: Mapping[str, float]) -> dict[str, Any]:
        """For each task the metrics of the best constant prediction, and whether the student is better."""
        from potstill.data.tasks.splits import MAIN
        from potstill.evaluation.constant import compared_with_constant

        found: dict[str, Any] = {}
        for name, own in training.module.parts.items():
            predicted = training.module.predicted(MAIN, name)
            found |= compared_with_constant(own.task, own.evaluators[MAIN], predicted, metrics, f"_{name}")
        return found

    def check_savable(self, training: Training) -> None:
        """Each task's model."""
        from potstill.models.save import check_savable

        student = training.module.student
        for task in student:
            check_savable(student.model(task))

    def save(self, config: TrainConfig, training: Any, summary: dict[str, Any], folder: Path) -> None:
        """One folder per task, each complete by itself."""
        from potstill.methods.common.cards import student_card
        from potstill.models.folders import fresh_folder
        from potstill.models.save import save_student

        student = training.module.student
        with fresh_folder(folder) as fresh:
            for task in student:
                model = student.apart(task)
                card = student_card(config, self.data_name(config), summary, model)
                save_student(model, training.vocabulary.path, fresh / task, card)
