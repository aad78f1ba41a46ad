"""Problems of how a run goes: trainer, optimizer, schedule, checkpoint, logger."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from potstill.config import TrainConfig
from potstill.config.running import ALL, LoggerConfig, TrainerConfig
from potstill.config.typed import leaves
from potstill.runtime.ranges import (
    COUNT,
    EPSILON,
    FINITE,
    LEARNING_RATE,
    MOST_PROCESSES,
    PART,
    SOME,
    WEIGHT,
    WHOLE,
    is_number,
)
from potstill.validation.launch import SHARDED

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
# Numbers of an optimizer by name, in lists too; others are finite.
OPTIMIZER = {
    "lr": LEARNING_RATE,
    "eps": EPSILON,
    "betas": PART,
    "momentum": PART,
    "weight_decay": WEIGHT,
    "layer_decay": SOME,
}
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
MOST_DEVICES = 1024  # of a machine
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")


def trainer_problems(trainer: TrainerConfig) -> list[str]:
    """Problems of devices, precision and the treatment of steps that are not finite."""
    problems = device_problems(trainer)
    if trainer.nonfinite not in ("stop", "skip"):
        problems.append(f"trainer.nonfinite={trainer.nonfinite}: stop or skip")
    if trainer.precision not in PRECISIONS:
        problems.append(f"trainer.precision={trainer.precision}: one of {', '.join(PRECISIONS)}")
    if trainer.precision == "16-mixed" and trainer.accelerator not in ("auto", "gpu", "cuda"):
        problems.append(
            f"trainer.precision=16-mixed: needs a GPU; bf16-mixed with trainer.accelerator={trainer.accelerator}"
        )
    return problems


def device_problems(trainer: TrainerConfig) -> list[str]:
    """Problems of `trainer.devices`: a number, a list of GPUs, or `auto`; each device is a process with all models."""
    devices, accelerator = trainer.devices, trainer.accelerator
    if accelerator not in ACCELERATORS:
        return [f"trainer.accelerator={accelerator}: one of {', '.join(ACCELERATORS)}"]
    on_cpu = accelerator == "cpu"
    most = MOST_PROCESSES if on_cpu and trainer.strategy != "ray" else MOST_DEVICES
    wanted = f"a number from 1 to {most}" + ("" if on_cpu else ", auto or -1 for all, or a list of GPUs, [0,1]")
    numbers = list(devices) if isinstance(devices, list) else _listed(devices)
    if numbers is not None:
        known = {n for n in numbers if n in WHOLE and n < MOST_DEVICES}
        fits = not on_cpu and 0 < len(numbers) == len(known)
    elif str(devices) in ("auto", "-1"):
        fits = not on_cpu or devices == "auto"
    else:
        count = int(devices) if isinstance(devices, str) and re.fullmatch("[0-9]{1,9}", devices) else devices
        fits = count in WHOLE and 1 <= count <= most
    shown = list(devices) if isinstance(devices, list) else devices
    return [] if fits else [f"trainer.devices={shown}: {wanted}"]


def _listed(devices: Any) -> list[Any] | None:
    """The GPUs of text such as `0,1`; None of anything else."""
    if not isinstance(devices, str) or not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})+", devices):
        return None
    return [int(number) for number in devices.split(",")]


def optimizer_problems(config: TrainConfig) -> list[str]:
    """Problems of optimizer, callbacks, schedule and length of a run."""
    problems = []
    optimizer, schedule = config.optimizer, config.schedule
    classes: dict[str, Any] = {"optimizer": optimizer}
    classes |= {f"callbacks.{name}": own for name, own in config.callbacks.items()}
    for key, own in classes.items():
        target = own.get("_target_") if isinstance(own, dict) else None
        if not isinstance(target, str) or not re.fullmatch(r"\w+(\.\w+)+", target):
            problems.append(
                f"{key}._target_={'null' if target is None else target}: a dotted path, such as torch.optim.AdamW, or "
                "lightning.pytorch.callbacks.EarlyStopping of a callback"
            )
    for key, value in leaves("optimizer", optimizer):
        allowed = OPTIMIZER.get(key.split(".")[1], FINITE if is_number(value) else None)
        if value is not None and allowed is not None and value not in allowed:
            problems.append(f"{key}={value}: {allowed}")
    if schedule.name not in SCHEDULES:
        problems.append(f"schedule.name={schedule.name}: one of {', '.join(SCHEDULES)}")
    if config.trainer.max_steps == -1 and config.trainer.max_epochs is None:
        problems.append("trainer.max_steps=-1 with trainer.max_epochs=null never ends; give one of them")
    return problems


def checkpoint_problems(config: TrainConfig) -> list[str]:
    """Problems of the checkpoints that are kept, and of the one to resume from."""
    path, keep, strategy = config.ckpt_path, config.checkpoint.keep, config.trainer.strategy
    if keep not in (None, ALL) and not (isinstance(keep, int) and keep in COUNT):
        return [f"checkpoint.keep={keep}: {COUNT}, {ALL}, or null"]
    if keep is not None and strategy in SHARDED:
        return [
            f"checkpoint.keep={keep}: not with trainer.strategy={strategy}, whose ranks have parts of the student; null"
        ]
    if config.resume not in (None, "auto"):
        return [f"resume={config.resume}: auto, or null; a checkpoint is named by ckpt_path"]
    if config.resume and path is not None:
        return [f"ckpt_path={path} with resume=auto: give one of them"]
    if path is None or Path(path).expanduser().is_file():
        return []
    return [f"ckpt_path={path}: no such file; a run writes checkpoints/last.ckpt into its folder"]


def logger_problems(logger: LoggerConfig) -> list[str]:
    """Problems of the logger and its mode."""
    problems = []
    if logger.name not in LOGGERS:
        problems.append(f"logger.name={logger.name}: one of {', '.join(LOGGERS)}")
    if logger.name == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        problems.append("logger=tensorboard: not installed; pip install 'potstill[tensorboard]'")
    if logger.mode not in (None, "online", "offline", "disabled"):
        problems.append(f"logger.mode={logger.mode}: online, offline, disabled, or null")
    return problems
