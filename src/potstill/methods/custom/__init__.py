"""Modules, data and adaptors of the user's own (`objective=adapted`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from potstill.config.learning import ADAPTED
from potstill.data.tasks.labels import CLASSIFICATION
from potstill.methods.base import Method, Training
from potstill.methods.custom.checks import adapted_faults
from potstill.validation.objectives import objective_faults


class Custom(Method):
    """Training of any pair of modules, whose features adaptors name."""

    unit = "examples"

    def applies(self, config: DictConfig) -> bool:
        """With `objective=adapted`."""
        return bool(config.objective.name == ADAPTED)

    def problems(self, config: DictConfig, *, models: bool = True) -> list[str]:
        """User errors of objective and dotted paths."""
        return [*objective_faults(config.objective, CLASSIFICATION), *adapted_faults(config)]

    def build(self, config: DictConfig) -> Training:
        """Models, data, adaptors and module."""
        from potstill.methods.custom.build import build_adapted_training

        return build_adapted_training(config)

    def monitored(self, config: DictConfig) -> tuple[str, str | None]:
        """The validation loss; the last student is kept."""
        return "val/loss", None

    def data_name(self, config: DictConfig) -> str:
        """The function that makes the data."""
        return str(config.adapted.data["_target_"])

    def check_savable(self, training: Training) -> None:
        """Weights of any module can be saved."""

    def save(self, config: DictConfig, training: Any, summary: dict[str, Any], folder: Path) -> None:
        """The weights, and a card that says how to load them."""
        from potstill.methods.custom.build import student_card
        from potstill.models.load import save_module

        save_module(training.module.student, folder, student_card(config, summary))
