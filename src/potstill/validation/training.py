"""Faults of how a run goes: trainer, optimizer, schedule, checkpoint, logger."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from omegaconf import DictConfig

LOGGERS = ("wandb", "tensorboard", "csv")
# What transformers.get_scheduler makes without further arguments.
SCHEDULES = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "64-true")


def trainer_faults(trainer: DictConfig) -> list[str]:
    """Of steps, intervals, clipping and precision."""
    faults = []
    if trainer.max_steps < -1:
        faults.append(f"trainer.max_steps={trainer.max_steps}: 0 or more, or -1 for no bound")
    if trainer.max_epochs is not None and trainer.max_epochs < 1:
        faults.append(f"trainer.max_epochs={trainer.max_epochs}: 1 or more, or null")
    if trainer.accumulate_grad_batches < 1:
        faults.append(f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}: 1 or more")
    for name in ("val_check_interval", "limit_val_batches", "log_every_n_steps"):
        if trainer[name] is not None and trainer[name] < 1:
            faults.append(f"trainer.{name}={trainer[name]}: 1 or more")
    clip = trainer.gradient_clip_val
    if clip is not None and clip <= 0:
        faults.append(f"trainer.gradient_clip_val={clip}: above 0, or null for no clipping")
    if trainer.nonfinite not in ("stop", "skip"):
        faults.append(f"trainer.nonfinite={trainer.nonfinite}: stop or skip")
    if trainer.precision not in PRECISIONS:
        faults.append(f"trainer.precision={trainer.precision}: one of {', '.join(PRECISIONS)}")
    return faults


def optimizer_faults(config: DictConfig) -> list[str]:
    """Of optimizer, schedule, and how long and how often."""
    faults = []
    optimizer, schedule = config.optimizer, config.schedule
    if not optimizer.get("_target_"):
        faults.append("optimizer._target_=null: name an optimizer, such as torch.optim.AdamW")
    for name, low in (("lr", 0.0), ("eps", 0.0), ("weight_decay", 0.0)):
        value = optimizer.get(name)
        if value is not None and not (isinstance(value, int | float) and value >= low):
            faults.append(f"optimizer.{name}={value}: a number, {low:g} or more")
    if schedule.name not in SCHEDULES:
        faults.append(f"schedule.name={schedule.name}: one of {', '.join(SCHEDULES)}")
    if not 0 <= schedule.warmup_share <= 1:
        faults.append(f"schedule.warmup_share={schedule.warmup_share}: a share, from 0 to 1")
    if schedule.warmup_steps is not None and schedule.warmup_steps < 0:
        faults.append(f"schedule.warmup_steps={schedule.warmup_steps}: 0 or more")
    if config.trainer.max_steps == -1 and config.trainer.max_epochs is None:
        faults.append("trainer.max_steps=-1 with trainer.max_epochs=null never ends; give one of them")
    every = config.checkpoint.every_n_steps
    if every is not None and every < 1:
        faults.append(f"checkpoint.every_n_steps={every}: 1 or more, or null for the end only")
    return faults


def checkpoint_faults(config: DictConfig) -> list[str]:
    """Of the checkpoint to resume from."""
    path = config.ckpt_path
    if config.resume not in (None, "auto"):
        return [f"resume={config.resume}: auto, or null; a checkpoint is named by ckpt_path"]
    if config.resume and path is not None:
        return [f"ckpt_path={path} with resume=auto: give one of them"]
    if path is None or Path(path).expanduser().is_file():
        return []
    return [f"ckpt_path={path}: no such file; a run writes checkpoints/last.ckpt into its folder"]


def logger_faults(logger: DictConfig) -> list[str]:
    """Of the logger and its mode."""
    faults = []
    if logger.name not in LOGGERS:
        faults.append(f"logger.name={logger.name}: one of {', '.join(LOGGERS)}")
    if logger.name == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        faults.append("logger=tensorboard: not installed; pip install 'potstill[tensorboard]'")
    if logger.mode not in (None, "online", "offline", "disabled"):
        faults.append(f"logger.mode={logger.mode}: online, offline, disabled, or null")
    if not logger.artifact_mb >= 0:
        faults.append(f"logger.artifact_mb={logger.artifact_mb}: a size in MB, 0 or more")
    return faults
