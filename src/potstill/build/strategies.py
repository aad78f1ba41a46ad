"""Strategies of Lightning's by name, and the one that shares weights out over ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from omegaconf import DictConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from potstill.errors import ConfigError
from potstill.modules.sharding import as_shared, load_whole, whole
from potstill.modules.steps import TEACHER_PREFIX
from potstill.validation.launch import FSDP_GRADIENTS, SHARDED


def strategy_of(name: str) -> str | Strategy:
    """What `lightning.Trainer(strategy=)` takes for `trainer.strategy`."""
    return Sharded(keep=name == FSDP_GRADIENTS) if name in SHARDED else name


class Sharded(ModelParallelStrategy):
    """FSDP2 over all ranks; `StudentModule.configure_model` shares the weights out.

    Checkpoints are those of any other strategy, one whole file, so a run goes on under another strategy or number of
    ranks. The teacher is in none of them.

    Args:
        keep: see `potstill.modules.sharding.shard`.
    """

    def __init__(self, *, keep: bool) -> None:
        super().__init__(save_distributed_checkpoint=False)
        self.keep = keep

    def setup_environment(self) -> None:
        """All ranks are one dimension of data parallelism."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """By `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole weights on the CPU, the teacher's left out."""
        assert self.lightning_module is not None
        state = self.lightning_module.state_dict()
        return {k: whole(v).cpu() for k, v in state.items() if not k.startswith(TEACHER_PREFIX)}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As a plain optimizer's, put together on the CPU."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        return tree_map(lambda v: whole(v).cpu() if isinstance(v, Tensor) else v, optimizer.state_dict())

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """A whole file, read by every rank."""
        return self.checkpoint_io.load_checkpoint(self.broadcast(checkpoint_path), weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Share the saved weights out."""
        assert self.lightning_module is not None
        load_whole(self.lightning_module, dict(checkpoint["state_dict"]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Share the saved states out as the weights are that they belong to."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            shared = {
                number: {key: as_shared(value, weights[number]) for key, value in state.items()}
                for number, state in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": shared})


def check_hardware(settings: DictConfig) -> None:
    """Refuse devices and precisions that this machine lacks.

    Raises:
        ConfigError: there are fewer GPUs, or they have no units for bfloat16.
    """
    if settings.accelerator not in ("gpu", "cuda"):
        return
    found, wanted = torch.cuda.device_count(), settings.devices
    if not found:
        raise ConfigError(
            f"trainer.accelerator={settings.accelerator}: this machine has no GPU that torch can use; strategy=cpu"
        )
    number = int(wanted) if str(wanted).isdigit() else 1
    if number > found:
        raise ConfigError(
            f"trainer.devices={wanted}: this machine has {found} GPU{'s' * (found > 1)}; "
            f"trainer.devices={found} or fewer"
        )
    if settings.precision.startswith("bf16") and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"trainer.precision={settings.precision}: this GPU has no units for bfloat16; trainer.precision=32-true"
        )
