"""Resuming a run: whether a checkpoint belongs to it, and the state of Lightning's loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim import Optimizer

from potstill.config import TrainConfig
from potstill.errors import CheckpointError
from potstill.validation.resuming import differences, resume_problems, shown, within

IDENTITY = "run"  # key of a checkpoint: `identity_of` its run
_EPOCH_STEPS, _ENDED = "epoch_steps", "ended_early"
_ENDS = ("callbacks", "trainer.max_steps", "trainer.max_epochs")  # keys that decide when a run ends
MAX_NAMED = 5  # differences in an error


def check_resumed(
    saved: Mapping[str, Any],
    identity: Mapping[str, Any],
    config: TrainConfig,
    make_optimizer: Callable[[nn.Module], Optimizer],
) -> None:
    """Reject a checkpoint that a run cannot be resumed from, before its data is read.

    Args:
        saved: the checkpoint.
        identity: of this run.
        config: of this run.
        make_optimizer: builds the configured optimizer for a module.

    Raises:
        CheckpointError: the checkpoint is of another run, or beyond the end of this one.
    """
    path, recorded = config.ckpt_path, saved.get(IDENTITY)
    if recorded is None:
        raise CheckpointError(
            f"ckpt_path={path}: of an earlier version, without its configuration; start anew, or from its student, "
            "student.model=<folder>/student"
        )
    errors = resume_problems(recorded, identity)
    if len(errors) > MAX_NAMED:
        errors[MAX_NAMED:] = [f"and {len(errors) - MAX_NAMED} other keys"]
    errors = errors or [
        *_optimizer_errors(saved, differences(recorded, identity), make_optimizer),
        *_end_errors(saved, config),
    ]
    if errors:
        raise CheckpointError(f"{'; '.join(errors)}; ckpt_path={path}")


def _end_errors(saved: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """Errors of a last step or epoch before that of the checkpoint."""
    done, steps, epochs = int(saved["global_step"]), config.trainer.max_steps, config.trainer.max_epochs
    errors = []
    if steps is not None and 0 <= steps < done:
        errors.append(f"trainer.max_steps={steps}: the checkpoint is of step {done}")
    epoch_steps = saved.get(_EPOCH_STEPS)
    if epochs is not None and epoch_steps and epochs * epoch_steps < done:
        errors.append(f"trainer.max_epochs={epochs}: the checkpoint is of epoch {math.ceil(done / epoch_steps)}")
    return errors


def _optimizer_errors(
    saved: Mapping[str, Any], changes: Mapping[str, tuple[Any, Any]], make_optimizer: Callable[[nn.Module], Optimizer]
) -> list[str]:
    """Errors of optimizer options that need a state that the checkpoint lacks, such as amsgrad."""
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
        f"{key}={shown(here)}: the checkpoint's optimizer has another state, of {shown(before)}"
        for key, (before, here) in changed.items()
    ]


class Resume(Callback):
    """Records the identity of a run in its checkpoints, and sets Lightning's counters when it is resumed.

    Lightning saves its counters while they are being updated, so their values depend on the moment. Here they follow
    from the number of steps. The command line takes precedence over the saved settings of callbacks.

    Args:
        identity: of the run.
        settings: of the configured callbacks.
    """

    def __init__(self, identity: Mapping[str, Any], settings: Mapping[Callback, Mapping[Any, Any]]):
        self.identity, self.settings = identity, settings

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the identity of the run and the length of its epochs."""
        checkpoint[IDENTITY] = dict(self.identity)
        checkpoint[_EPOCH_STEPS] = int(trainer.num_training_batches)
        checkpoint[_ENDED] = bool(trainer.should_stop)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set Lightning's counters and the settings of callbacks."""
        _set_position(checkpoint)
        for callback, settings in self.settings.items():
            state = checkpoint["callbacks"].get(callback.state_key, {})
            state.update({key: settings[key] for key in state if key in settings})
        changed = differences(checkpoint[IDENTITY], self.identity)
        if checkpoint[_ENDED] and not any(within(key, _ENDS) for key in changed):
            trainer.should_stop = True

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Number rows of metrics by finished steps."""
        number_rows(trainer)


def number_rows(trainer: Trainer) -> None:
    """Log the next metrics at the number of finished steps."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def finish_epoch(trainer: Trainer) -> None:
    """Count the epoch in which training ended, also if it ended in an earlier process."""
    number_rows(trainer)
    epoch_steps = trainer.num_training_batches
    if trainer.global_step and math.isfinite(epoch_steps):
        trainer.fit_loop.epoch_progress.current.completed = math.ceil(trainer.global_step / epoch_steps)


def _set_position(checkpoint: dict[str, Any]) -> None:
    """Set the counters of a checkpoint between two steps."""
    done, loop = int(checkpoint["global_step"]), checkpoint["loops"]["fit_loop"]
    epoch, within_epoch = divmod(done, checkpoint[_EPOCH_STEPS])
    begun = epoch + bool(within_epoch)
    epochs = {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}
    loop["epoch_progress"] = {"total": epochs, "current": dict(epochs)}
    loop["epoch_loop.state_dict"] = {"_batches_that_stepped": done}
    loop["epoch_loop.batch_progress"] = _batch_progress(done, within_epoch)
    loop["epoch_loop.val_loop.batch_progress"] = _batch_progress(0, 0)


def _batch_progress(total: int, current: int) -> dict[str, Any]:
    counters = ("ready", "started", "processed", "completed")
    return {
        "total": dict.fromkeys(counters, total),
        "current": dict.fromkeys(counters, current),
        "is_last_batch": False,
    }


def checkpoint_in(config: TrainConfig, folder: Path) -> bool:
    """Whether `ckpt_path` lies in the folder of the run."""
    if config.ckpt_path is None:
        return False
    return Path(config.ckpt_path).expanduser().resolve().parent == (folder / "checkpoints").resolve()
