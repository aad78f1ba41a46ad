"""A trial of a search ends early where it does worse than those before it."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn


class PruneTrial(Callback):
    """Reports each validation to the search, and ends the training where the search asks for it.

    The run itself ends as any other does, so what it came to is on disk; the sweeper learns of it by the mark `pruned`.

    Args:
        journal: of the study, in the sweep's folder.
        number: of the trial.
        metric: that is searched by, as it is logged.
        pruner: Optuna's, which decides.
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
            study_name="potstill",
            storage=JournalStorage(JournalFileBackend(self.journal)),
            pruner=self.pruner,
        )
        trial = optuna.trial.Trial(study, study.trials[self.number]._trial_id)
        trial.report(value, step)
        if not trial.should_prune():
            return False
        trial.set_user_attr("pruned", True)
        return True
