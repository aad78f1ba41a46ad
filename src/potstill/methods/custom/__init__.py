"""Modules, data and adaptors of the user's own (`objective=custom`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill.config import TrainConfig
from potstill.config.objectives.custom import CustomObjectiveConfig
from potstill.data.tasks.labels import CLASSIFICATION
from potstill.methods.base import Method, Training
from potstill.methods.custom.checks import custom_problems
from potstill.validation.objectives import objective_problems


class Custom(Method):
    """Training of any pair of modules, whose features adaptors name."""

    unit = "examples"

    def applies(self, config: TrainConfig) -> bool:
        """With `objective=custom`."""
        return isinstance(config.objective, CustomObjectiveConfig)

    def problems(self, config: TrainConfig, *, models: bool = True) -> list[str]:
        """User errors of objective and dotted paths."""
        return [*objective_problems(config.losses, CLASSIFICATION), *custom_problems(config)]

    def build(self, config: TrainConfig) -> Training:
        """Models, data, adaptors and module."""
        from potstill.methods.custom.build import build_custom_training

        return build_custom_training(config)

    def monitored(self, config: TrainConfig) -> tuple[str, str | None]:
        """The validation loss; the last student is kept."""
        return "val/loss", None

    def data_name(self, config: TrainConfig) -> str:
        """The function that makes the data."""
        return str(config.custom.data["_target_"])

    def check_savable(self, training: Training) -> None:
        """Weights of any module can be saved."""

    def save(self, config: TrainConfig, training: Any, summary: dict[str, Any], folder: Path) -> None:
        """The weights, and a card that says how to load them."""
        from potstill.methods.custom.build import student_card
        from potstill.models.save import save_module

        save_module(training.module.student, folder, student_card(config, summary))
