"""A run that is resumed from a checkpoint: whether it is the checkpoint's run, and where and with what it continues."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer

from potstill.errors import CheckpointError
from potstill.validation.resuming import differences, resume_faults, shown, within

IDENTITY = "run"  # of a checkpoint: `identity_of` its run
_EPOCH_STEPS, _ENDED = "epoch_steps", "ended_early"
_ENDS = ("callbacks", "trainer.max_steps", "trainer.max_epochs")  # what decides when a run ends
_MOST_NAMED = 5


def check_resumed(
    saved: Mapping[str, Any],
    identity: Mapping[str, Any],
    config: DictConfig,
    make_optimizer: Callable[[nn.Module], Optimizer],
) -> None:
    """Reject a checkpoint that a run cannot be resumed from, before its data are read.

    Args:
        saved: the checkpoint.
        identity: of this run.
        config: of this run.
        make_optimizer: as configured, of the parameters of a module.

    Raises:
        CheckpointError: it is of another run, or beyond the end of this one.
    """
    path, recorded = config.ckpt_path, saved.get(IDENTITY)
    if recorded is None:
        raise CheckpointError(
            f"ckpt_path={path}: made by an earlier version, which did not record its configuration; start anew, or "
            "from its student, student.model=<folder>/student"
        )
    faults = resume_faults(recorded, identity)
    if len(faults) > _MOST_NAMED:
        faults[_MOST_NAMED:] = [f"and {len(faults) - _MOST_NAMED} other keys"]
    faults = faults or [
        *_state_faults(saved, differences(recorded, identity), make_optimizer),
        *_end_faults(saved, config),
    ]
    if faults:
        raise CheckpointError(f"{'; '.join(faults)}; ckpt_path={path}")


def _end_faults(saved: Mapping[str, Any], config: DictConfig) -> list[str]:
    """Of the ends that lie before the checkpoint; an end that it has just reached is none."""
    done, steps, epochs = int(saved["global_step"]), config.trainer.max_steps, config.trainer.max_epochs
    faults = []
    if 0 <= steps < done:
        faults.append(f"trainer.max_steps={steps}: the checkpoint is of step {done} already")
    an_epoch = saved.get(_EPOCH_STEPS)
    if epochs is not None and an_epoch and epochs * an_epoch < done:
        faults.append(
            f"trainer.max_epochs={epochs}: the checkpoint is of epoch {math.ceil(done / an_epoch)} already"
        )
    return faults


def _state_faults(
    saved: Mapping[str, Any],
    changes: Mapping[str, tuple[Any, Any]],
    make_optimizer: Callable[[nn.Module], Optimizer],
) -> list[str]:
    """Of options of the optimizer that need another state than the checkpoint has, such as amsgrad."""
    changed = {key: values for key, values in changes.items() if within(key, ("optimizer",))}
    states = [state for one in saved["optimizer_states"] for state in one["state"].values()]
    if not changed or not states:
        return []
    probe = nn.Linear(2, 2)
    optimizer = make_optimizer(probe)
    for weight in probe.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    kept = {name for state in states for name in state}
    wanted = {name for state in optimizer.state.values() for name in state}
    if kept == wanted:
        return []
    return [
        f"{key}={shown(here)}: the checkpoint was made with {shown(before)}, and its optimizer has another state"
        for key, (before, here) in changed.items()
    ]


class Resume(Callback):
    """Records whose a checkpoint is, and puts a resumed run where its number of steps says.

    Lightning saves its counters in the middle of what counts them, and its guess of what was done differs with the
    moment. Here they follow from the number of steps. What the command line says wins over what callbacks saved.

    Args:
        identity: of the run.
        settings: of the configured callbacks.
    """

    def __init__(self, identity: Mapping[str, Any], settings: Mapping[Callback, Mapping[Any, Any]]):
        self.identity, self.settings = identity, settings

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the identity of the run, and how long its epochs are."""
        checkpoint[IDENTITY] = dict(self.identity)
        checkpoint[_EPOCH_STEPS] = int(trainer.num_training_batches)
        checkpoint[_ENDED] = bool(trainer.should_stop)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set Lightning's counters, and what callbacks were configured with."""
        _set_position(checkpoint)
        for callback, settings in self.settings.items():
            state = checkpoint["callbacks"].get(callback.state_key, {})
            state.update({key: settings[key] for key in state if key in settings})
        changed = differences(checkpoint[IDENTITY], self.identity)
        if checkpoint[_ENDED] and not any(within(key, _ENDS) for key in changed):
            trainer.should_stop = True

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Number the rows of metrics by the steps that are done."""
        number_rows(trainer)


def number_rows(trainer: Trainer) -> None:
    """Let what is logged next have the number of the steps that are done."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def finish_epoch(trainer: Trainer) -> None:
    """After training: count the epoch that it ended in, whether or not it ended in this process."""
    number_rows(trainer)
    an_epoch = trainer.num_training_batches
    if trainer.global_step and math.isfinite(an_epoch):
        trainer.fit_loop.epoch_progress.current.completed = math.ceil(trainer.global_step / an_epoch)


def _set_position(checkpoint: dict[str, Any]) -> None:
    """All steps of the checkpoint are done, and nothing of the next one is begun."""
    done, loop = int(checkpoint["global_step"]), checkpoint["loops"]["fit_loop"]
    epoch, within_epoch = divmod(done, checkpoint[_EPOCH_STEPS])
    begun = epoch + bool(within_epoch)
    epochs = {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
    loop["epoch_progress"] = {"total": epochs, "current": dict(epochs)}
    loop["epoch_loop.state_dict"] = {"_batches_that_stepped": done}
    loop["epoch_loop.batch_progress"] = {
        "total": _all(done),
        "current": _all(within_epoch),
        "is_last_batch": False,
    }
    loop["epoch_loop.val_loop.batch_progress"] = {
        "total": _all(0),
        "current": _all(0),
        "is_last_batch": False,
    }


def _all(count: int) -> dict[str, int]:
    return dict.fromkeys(("ready", "started", "processed", "completed"), count)


def checkpoint_in(config: DictConfig, folder: Path) -> bool:
    """Whether the checkpoint that a run is resumed from is of its own folder."""
    if config.ckpt_path is None:
        return False
    return Path(config.ckpt_path).expanduser().resolve().parent == (folder / "checkpoints").resolve()
