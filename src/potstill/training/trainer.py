"""Trainer, callbacks and loggers from configuration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from omegaconf import DictConfig, OmegaConf

from potstill.config.instantiate import make
from potstill.errors import ConfigError
from potstill.reporting.loggers import Resumed, make_loggers
from potstill.reporting.records import as_written
from potstill.runtime.redaction import redact
from potstill.training.callbacks import (
    AtomicCheckpointIO,
    LastCheckpoint,
    StopOnSignal,
    Throughput,
    progress_bar,
)
from potstill.training.monitored_callbacks import CheckMonitors
from potstill.training.resuming import Resume
from potstill.training.strategies import check_hardware, strategy_of
from potstill.validation.resuming import identity_of


def build_loggers(
    config: DictConfig, folder: Path, data: str, resumed: Resumed | None = None
) -> list[Logger]:
    """metrics.csv, and the logger that is asked for; close them with `tracking.finish`.

    Args:
        config: of the run.
        folder: of the run.
        data: the name of the training data, a tag.
        resumed: where the run in this folder goes on; its metrics up to there are kept.
    """
    written = as_written(config)
    logger = written["logger"]
    return make_loggers(
        config.logger.name,
        folder,
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
    config: DictConfig,
    folder: Path,
    with_progress: bool,
    monitor: str = "val/perplexity",
    identity: Mapping[str, Any] | None = None,
    unit: str = "tokens",
) -> tuple[list[Callback], Throughput]:
    """The run's own callbacks and the configured ones.

    Args:
        config: of the run.
        folder: of the run.
        with_progress: whether there is a progress bar.
        monitor: what a search goes by.
        identity: `identity_of` the run; null: of one process.
        unit: what throughput counts.
    """
    throughput = Throughput(unit)
    last = LastCheckpoint(folder / "checkpoints", config.checkpoint.every_n_steps)
    configured = configured_callbacks(config)
    callbacks: list[Callback] = [Resume(identity or identity_of(config, 1), configured), throughput]
    if with_progress:
        callbacks.append(progress_bar())
    callbacks += [*configured, CheckMonitors(dict(zip(map(str, config.callbacks), configured, strict=True)))]
    trial = config.trial
    if trial.journal is not None and trial.pruner.get("_target_"):
        from potstill.training.pruning import PruneTrial

        pruner = make("trial.pruner", trial.pruner)
        callbacks.append(PruneTrial(trial.journal, trial.number, monitor, pruner))
    callbacks += [
        last,
        StopOnSignal(last),
    ]  # the last: one saves what all others have done, one ends the step
    return callbacks, throughput


def configured_callbacks(config: DictConfig) -> dict[Callback, DictConfig]:
    """The callbacks that `callbacks` names, with their settings.

    Raises:
        ConfigError: a class that is no callback, or does not take its settings.
    """
    return {make(f"callbacks.{name}", own, kind=Callback): own for name, own in config.callbacks.items()}


class _NoHandlers(_SignalConnector):
    """Keeps Lightning from handling signals, as `signals` does: it would end a run after SIGTERM with exit code 0."""

    def register_signal_handlers(self) -> None:
        """Register none."""
        self.received_sigterm = False


def build_trainer(
    settings: DictConfig, folder: Path, *, callbacks: list[Callback], loggers: Any, validate: bool = True
) -> lightning.Trainer:
    """Lightning's Trainer. Accumulation and clipping are the module's own (see `LanguageDistillation`).

    Raises:
        ConfigError: an unknown argument in trainer.extra, or devices that this machine lacks.
    """
    known = inspect.signature(lightning.Trainer.__init__).parameters
    if unknown := [key for key in settings.extra if key not in known]:
        raise ConfigError(f"trainer.extra.{unknown[0]}: not an argument of lightning.Trainer")
    check_hardware(settings)
    limit = settings.limit_val_batches
    extra = {str(name): value for name, value in OmegaConf.to_container(settings.extra).items()}  # type: ignore[union-attr]
    hints = get_type_hints(lightning.Trainer.__init__)
    for name, value in extra.items():  # Lightning takes any value for true or false
        kinds = set(get_args(hints[name]) or (hints[name],))
        if kinds <= {bool, type(None)} and type(value) not in kinds:
            raise ConfigError(f"trainer.extra.{name}={value}: true or false")
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
            "precision": settings.precision,
            "enable_progress_bar": settings.enable_progress_bar,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "use_distributed_sampler": False,
            "plugins": [AtomicCheckpointIO()],
            "callbacks": callbacks,
            "logger": loggers,
        }
        if taken := [key for key in extra if key in own]:
            raise ConfigError(
                f"trainer.extra.{taken[0]}={settings.extra[taken[0]]}: is set by the run itself"
                + (f"; use trainer.{taken[0]}" if taken[0] in settings else "; leave it out")
            )
        trainer = lightning.Trainer(**own, **extra)
    except (
        ValueError,
        TypeError,
        RuntimeError,
        lightning.fabric.utilities.exceptions.MisconfigurationException,
    ) as fault:
        raise ConfigError(f"trainer: {fault}") from fault
    trainer._signal_connector = _NoHandlers(trainer)
    return trainer
