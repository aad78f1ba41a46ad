"""Callbacks that decide by a logged metric: the user's own (early stopping), and the pruning of a search."""

from __future__ import annotations

import math
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn

from potstill.errors import ConfigError


class CheckMonitors(Callback):
    """Rejects a run that never logs the metric of a callback, before anything is trained.

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
            # Otherwise Lightning also compares at the end of a partial epoch, without a validation.
            if isinstance(callback, EarlyStopping) and callback._check_on_train_epoch_end is None:
                callback._check_on_train_epoch_end = not _is_validated(monitor)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check every monitor.

        Raises:
            ConfigError: the run ends before the first validation, or the metric is not logged.
        """
        for name, (_, monitor) in self.monitors.items():
            given = f"callbacks.{name}.monitor={monitor}"
            if _is_validated(monitor):
                _check_validation(trainer, given)
                # Names of modules that do not declare them are found out at the first validation.
                known: set[str] | None = getattr(pl_module, "validated_metrics", lambda: None)()
                if known is not None and monitor not in known and not monitor.startswith("val/interchange_"):
                    raise ConfigError(f"{given}: is not logged; one of {', '.join(sorted(known))}")
            elif (steps := steps_of(trainer)) < trainer.log_every_n_steps:  # type: ignore[attr-defined]
                raise ConfigError(
                    f"{given}: is never logged in {steps:.0f} steps; use trainer.log_every_n_steps={steps:.0f} or less"
                )


def _is_validated(monitor: str) -> bool:
    return not monitor.startswith("train/")


def _check_validation(trainer: Trainer, given: str) -> None:
    if not trainer.enable_validation:
        raise ConfigError(f"{given}: there is no evaluation data; add some, or use callbacks=none")
    epochs_before = (trainer.check_val_every_n_epoch or 1) - 1
    first = epochs_before * trainer.num_training_batches + (trainer.val_check_batch or 0)
    steps = steps_of(trainer)
    if not trainer.global_step and first > steps:
        raise ConfigError(
            f"{given}: the run has {int(steps)} steps, the first validation is after step {int(first)}; use "
            f"trainer.val_check_interval={max(int(steps) // 2, 1)}, or callbacks=none"
        )


def steps_of(trainer: Trainer) -> float:
    """Optimizer steps of a run, infinite without a bound; one batch of a loader is one step."""
    bounds: list[Any] = [trainer.max_steps] if trainer.max_steps > 0 else []
    if trainer.max_epochs not in (None, -1):
        bounds.append(trainer.max_epochs * trainer.num_training_batches)
    return min(bounds, default=math.inf)


def is_missing_metric(error: RuntimeError) -> bool:
    """Whether Lightning's early stopping has not found its metric."""
    return str(error).startswith("Early stopping conditioned on metric")


class PruneTrial(Callback):
    """Reports each validation to a search by Optuna, and ends the training when the search prunes the trial.

    The run itself ends as usual, so its results are on disk; the sweeper reads the attribute `pruned`.

    Args:
        journal: file of the study, in the folder of the sweep.
        number: number of the trial.
        metric: the searched metric, as it is logged.
        pruner: Optuna's pruner.
    """

    def __init__(self, journal: str, number: int, metric: str, pruner: Any) -> None:
        self.journal, self.number, self.metric, self.pruner = journal, number, metric, pruner

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One rank reports; all of them stop."""
        if trainer.state.fn != TrainerFn.FITTING or self.metric not in trainer.callback_metrics:
            return
        stop = False
        if trainer.is_global_zero:
            stop = self._report(float(trainer.callback_metrics[self.metric]), trainer.global_step)
        if trainer.strategy.broadcast(stop):
            trainer.should_stop = True

    def _report(self, value: float, step: int) -> bool:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        study = optuna.load_study(
            study_name="potstill", storage=JournalStorage(JournalFileBackend(self.journal)), pruner=self.pruner
        )
        trial = optuna.trial.Trial(study, study.trials[self.number]._trial_id)
        trial.report(value, step)
        if not trial.should_prune():
            return False
        trial.set_user_attr("pruned", True)
        return True
