"""Callbacks of the user's own that wait for a metric: whether the run logs it, before anything is trained."""

from __future__ import annotations

import math
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping

from potstill.errors import ConfigError


class CheckMonitors(Callback):
    """Refuses a run that never logs what a callback waits for.

    Args:
        callbacks: by their names in `callbacks`.
    """

    def __init__(self, callbacks: dict[str, Callback]):
        self.monitors = {
            name: (callback, str(monitor))
            for name, callback in callbacks.items()
            if (monitor := getattr(callback, "monitor", None)) is not None
        }
        for callback, monitor in self.monitors.values():
            # Else Lightning compares at the end of a part of an epoch too, after which nothing was validated.
            if isinstance(callback, EarlyStopping) and callback._check_on_train_epoch_end is None:
                callback._check_on_train_epoch_end = not _is_validated(monitor)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check every monitor.

        Raises:
            ConfigError: no validation falls into the run, or the metric is not logged.
        """
        for name, (_, monitor) in self.monitors.items():
            given = f"callbacks.{name}.monitor={monitor}"
            if _is_validated(monitor):
                _check_validation(trainer, given)
                _check_name(pl_module, monitor, given)
            elif (steps := steps_of(trainer)) < trainer.log_every_n_steps:  # type: ignore[attr-defined]
                raise ConfigError(
                    f"{given}: is never logged in {steps:.0f} steps; give trainer.log_every_n_steps={steps:.0f} or less"
                )


def _is_validated(monitor: str) -> bool:
    return not monitor.startswith("train/")


def _check_validation(trainer: Trainer, given: str) -> None:
    if not trainer.enable_validation:
        raise ConfigError(
            f"{given}: there is no evaluation data to validate on; give some, or callbacks=none"
        )
    epochs_before = (trainer.check_val_every_n_epoch or 1) - 1
    first = epochs_before * trainer.num_training_batches + (trainer.val_check_batch or 0)
    steps = steps_of(trainer)
    if not trainer.global_step and first > steps:
        raise ConfigError(
            f"{given}: no validation falls into the {int(steps)} steps of the run, the first would be after step "
            f"{int(first)}; give trainer.val_check_interval={max(int(steps) // 2, 1)}, or callbacks=none"
        )


def _check_name(pl_module: LightningModule, monitor: str, given: str) -> None:
    """Of modules that say what they log; the others are found out at the first validation."""
    known: set[str] | None = getattr(pl_module, "validated_metrics", lambda: None)()
    if known is not None and monitor not in known and not monitor.startswith("val/interchange_"):
        raise ConfigError(f"{given}: is not logged; one of {', '.join(sorted(known))}")


def steps_of(trainer: Trainer) -> float:
    """Optimizer steps of a run, infinite where it has no bound; a batch is a step in this project."""
    bounds: list[Any] = [trainer.max_steps] if trainer.max_steps > 0 else []
    if trainer.max_epochs not in (None, -1):
        bounds.append(trainer.max_epochs * trainer.num_training_batches)
    return min(bounds, default=math.inf)


def is_missing_metric(fault: RuntimeError) -> bool:
    """Whether Lightning's early stopping has not found its metric."""
    return str(fault).startswith("Early stopping conditioned on metric")
