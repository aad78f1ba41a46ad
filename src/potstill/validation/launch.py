"""Problems of where a run goes: strategies, extras that they need, sweeps of several processes. No torch."""

from __future__ import annotations

import importlib.util

from potstill.config import TrainConfig
from potstill.config.data import CorpusDataConfig
from potstill.config.objectives.base import LossConfig

FSDP, FSDP_GRADIENTS = "fsdp", "fsdp_gradients"  # ZeRO 3 and 2
RAY = "ray"
DEEPSPEED = {"deepspeed_stage_2": 2, "deepspeed_stage_3": 3}  # the stages of ZeRO
SHARDED = (FSDP, FSDP_GRADIENTS, *DEEPSPEED)
STARTS_PROCESSES = ("ddp", "fsdp", "deepspeed", RAY)
IN_PROCESS = "spawn"


def missing_extra(key: str, module: str, extra: str) -> list[str]:
    """The problem of an optional package that is not installed, with the command that installs it.

    Args:
        key: the key and value that need the package, `trainer.strategy=ray`.
        module: that is imported.
        extra: of this package.
    """
    if importlib.util.find_spec(module) is not None:
        return []
    return [f"{key}: {module} is not installed; pip install 'potstill[{extra}]'"]


def strategy_problems(config: TrainConfig) -> list[str]:
    """Problems of `trainer.strategy` and of the keys that cannot be combined with it."""
    trainer, problems = config.trainer, []
    name = trainer.strategy
    if name == RAY:
        problems += missing_extra("trainer.strategy=ray", "ray", "ray")
        if not isinstance(trainer.devices, int):
            problems.append(
                f"trainer.devices={trainer.devices}: with trainer.strategy=ray the number of workers, trainer.devices=4"
            )
        if isinstance(config.data, CorpusDataConfig) and config.data.engine == RAY:
            problems.append(
                "data.engine=ray: not with trainer.strategy=ray, whose workers have the CPUs; binarize beforehand, "
                "strategy=cpu trainer.max_steps=0"
            )
    if name in DEEPSPEED:
        problems += missing_extra(f"trainer.strategy={name}", "deepspeed", "deepspeed")
        if DEEPSPEED[name] == 3 and trainer.nonfinite == "skip":
            problems.append(f"trainer.nonfinite=skip: stop with trainer.strategy={name}, or deepspeed_stage_2")
    elif name.startswith("deepspeed"):
        problems.append(f"trainer.strategy={name}: one of {', '.join(DEEPSPEED)}")
    if name in SHARDED:
        objective, every = config.objective, config.logger.parameters_every
        if every is not None:
            problems.append(
                f"logger.parameters_every={every}: null with trainer.strategy={name}, which has no whole weights"
            )
        if isinstance(objective, LossConfig) and objective.gradient_shares_every is not None:
            problems.append(
                f"objective.gradient_shares_every={objective.gradient_shares_every}: null with "
                f"trainer.strategy={name}, which has no whole gradients"
            )
        if trainer.precision in ("64-true", "16-mixed") or (trainer.precision == "bf16-true" and name in DEEPSPEED):
            problems.append(
                f"trainer.precision={trainer.precision}: 32-true or bf16-mixed with trainer.strategy={name}"
            )
        if config.compile:
            problems.append(f"compile=true: false with trainer.strategy={name}")
    return problems


def launch_problems(config: TrainConfig) -> list[str]:
    """A sweep in one process would be entered again by each process that DDP starts."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return []
    trainer = config.trainer
    if (
        trainer.strategy.startswith(STARTS_PROCESSES)
        and trainer.strategy != RAY  # its workers receive the configuration and compose nothing
        and IN_PROCESS not in trainer.strategy
        and (trainer.devices not in (1, "1") or trainer.num_nodes > 1)
        and "submitit" not in str(HydraConfig.get().launcher.get("_target_"))  # SLURM starts the processes
    ):
        return [
            f"trainer.strategy={trainer.strategy} with -m: each process would start the sweep again; use "
            "trainer.devices=1, trainer.strategy=ddp_spawn, or a launcher, hydra/launcher=slurm"
        ]
    return []
