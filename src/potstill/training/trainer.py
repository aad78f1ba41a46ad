"""Trainer, callbacks and loggers from configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import lightning
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from potstill.config import TrainConfig
from potstill.config.instantiate import make
from potstill.config.running import ALL, TrainerConfig
from potstill.config.typed import as_written
from potstill.errors import ConfigError
from potstill.reporting.loggers import Resumed, make_loggers
from potstill.runtime.redaction import redact
from potstill.training.callbacks import (
    AtomicCheckpointIO,
    KeptCheckpoints,
    LastCheckpoint,
    ParameterStatistics,
    StopOnSignal,
    Throughput,
    progress_bar,
)
from potstill.training.monitoring import CheckMonitors, PruneTrial
from potstill.training.precision import precision_of
from potstill.training.resuming import Resume
from potstill.training.strategies import check_hardware, strategy_of
from potstill.validation.resuming import identity_of


def build_loggers(config: TrainConfig, folder: Path, data: str, resumed: Resumed | None = None) -> list[Logger]:
    """The loggers of a run: metrics.csv and the configured one.

    Args:
        config: configuration of the run.
        folder: folder of the run.
        data: name of the training data, a tag.
        resumed: position at which the run is resumed; earlier metrics are kept.
    """
    written = as_written(config)
    logger = written["logger"]
    return make_loggers(
        config.logger.name,
        folder,
        entity=logger["entity"],
        project=logger["project"],
        run=logger["run"],
        group=logger["group"],
        job_type=config.stage,
        tags=[*logger["tags"], config.objective.name, redact(data)],
        mode=config.logger.mode,
        config=written,
        resumed=resumed,
    )


def build_callbacks(
    config: TrainConfig,
    folder: Path,
    with_progress: bool,
    monitor: str = "val/perplexity",
    identity: Mapping[str, Any] | None = None,
    unit: str = "tokens",
    write: Callable[[dict[str, Any], Path], None] | None = None,
) -> tuple[list[Callback], Throughput]:
    """The run's own callbacks and the configured ones.

    Args:
        config: configuration of the run.
        folder: folder of the run.
        with_progress: whether there is a progress bar.
        monitor: metric of a search.
        identity: `identity_of` the run; None: that of one process.
        unit: unit of throughput.
        write: writes the student into a folder, with metrics for its model card; for kept checkpoints.
    """
    throughput, checkpoint = Throughput(unit), config.checkpoint
    kept = None
    if checkpoint.keep is not None and write is not None:
        kept = KeptCheckpoints(write, None if checkpoint.keep == ALL else int(checkpoint.keep))
    last = LastCheckpoint(folder / "checkpoints", checkpoint.every_n_steps, checkpoint.every_n_epochs, kept)
    configured = configured_callbacks(config)
    callbacks: list[Callback] = [Resume(identity or identity_of(config, 1), configured), throughput]
    if with_progress:
        callbacks.append(progress_bar())
    if config.logger.parameters_every is not None:
        callbacks.append(ParameterStatistics(config.logger.parameters_every))
    callbacks += [*configured, CheckMonitors(dict(zip(map(str, config.callbacks), configured, strict=True)))]
    trial = config.trial
    if trial.journal is not None and trial.pruner.get("_target_"):
        pruner = make("trial.pruner", trial.pruner)
        callbacks.append(PruneTrial(trial.journal, int(trial.number or 0), monitor, pruner))
    callbacks += [last, StopOnSignal(last)]  # the last ones: they save the states of all others, and end the run
    return callbacks, throughput


def configured_callbacks(config: TrainConfig) -> dict[Callback, dict[str, Any]]:
    """The callbacks that `callbacks` names, with their settings.

    Raises:
        ConfigError: not a callback, or invalid settings.
    """
    return {make(f"callbacks.{name}", own, kind=Callback): own for name, own in config.callbacks.items()}


class _NoHandlers(_SignalConnector):
    """Disables the signal handlers of Lightning, which end a run after SIGTERM with exit code 0; see `signals`."""

    def register_signal_handlers(self) -> None:
        """Register no handlers."""
        self.received_sigterm = False


def build_trainer(
    settings: TrainerConfig, folder: Path, *, callbacks: list[Callback], loggers: Any, validate: bool = True
) -> lightning.Trainer:
    """Lightning's Trainer, without its accumulation and clipping (see `StudentModule`).

    Raises:
        ConfigError: an unknown argument in trainer.extra, or devices that this machine does not have.
    """
    known = inspect.signature(lightning.Trainer.__init__).parameters
    if unknown := [key for key in settings.extra if key not in known]:
        raise ConfigError(f"trainer.extra.{unknown[0]}: not an argument of lightning.Trainer")
    check_hardware(settings)
    limit = settings.limit_val_batches
    extra = {str(name): value for name, value in settings.extra.items()}
    hints = get_type_hints(lightning.Trainer.__init__)
    for name, value in extra.items():  # Lightning accepts any value as true or false
        kinds = set(get_args(hints[name]) or (hints[name],))
        if kinds <= {bool, type(None)} and type(value) not in kinds:
            raise ConfigError(f"trainer.extra.{name}={value}: true or false")
    precision = precision_of(settings)
    try:
        own: dict[str, Any] = {
            "default_root_dir": folder,
            "max_steps": settings.max_steps,
            "max_epochs": settings.max_epochs if settings.max_epochs is not None else -1,
            "val_check_interval": settings.val_check_interval or 1.0,
            "check_val_every_n_epoch": None if settings.val_check_interval else 1,
            "limit_val_batches": 0 if not validate else (limit if limit is not None else 1.0),
            "num_sanity_val_steps": 0,
            "log_every_n_steps": settings.log_every_n_steps,
            "accelerator": settings.accelerator,
            "devices": settings.devices,
            "num_nodes": settings.num_nodes,
            "strategy": strategy_of(settings.strategy),
            "enable_progress_bar": settings.enable_progress_bar,
            "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
            "use_distributed_sampler": False,
            "precision": precision["precision"],
            "plugins": [AtomicCheckpointIO(), *precision["plugins"]],
            "callbacks": callbacks,
            "logger": loggers,
        }
        if taken := [key for key in extra if key in own]:
            raise ConfigError(
                f"trainer.extra.{taken[0]}={settings.extra[taken[0]]}: is set by the run itself"
                + (f"; use trainer.{taken[0]}" if hasattr(settings, taken[0]) else "; leave it out")
            )
        trainer = lightning.Trainer(**own, **extra)
    except (
        ValueError,
        TypeError,
        RuntimeError,
        lightning.fabric.utilities.exceptions.MisconfigurationException,
    ) as error:
        raise ConfigError(f"trainer: {error}") from error
    trainer._signal_connector = _NoHandlers(trainer)
    return trainer
