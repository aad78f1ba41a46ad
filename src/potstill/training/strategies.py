"""Strategies by name: those of Lightning, and those that shard weights over ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from potstill.config.running import TrainerConfig
from potstill.errors import ConfigError
from potstill.training.sharding import as_shared, load_whole, whole
from potstill.training.student_module import TEACHER_PREFIX
from potstill.training.zero import Zero
from potstill.validation.launch import DEEPSPEED, FSDP, FSDP_GRADIENTS
from potstill.validation.training import device_problems


def strategy_of(name: str) -> str | Strategy:
    """The `strategy` of `lightning.Trainer` for `trainer.strategy`."""
    if name in (FSDP, FSDP_GRADIENTS):
        return Sharded(keep=name == FSDP_GRADIENTS)
    return DeepSpeed(DEEPSPEED[name]) if name in DEEPSPEED else name


def _checkpointed(module: nn.Module) -> dict[str, Tensor]:
    """Whole weights on the CPU, without those of the teacher."""
    state = module.state_dict(keep_vars=True)
    return {k: whole(v).detach().cpu() for k, v in state.items() if not k.startswith(TEACHER_PREFIX)}


class Sharded(ModelParallelStrategy):
    """FSDP2 over all ranks; `StudentModule.configure_model` shards the weights.

    Checkpoints are single whole files without the teacher, as with any other strategy, so a run can be resumed with
    another strategy or number of ranks.

    Args:
        keep: see `potstill.training.sharding.shard`.
    """

    def __init__(self, *, keep: bool) -> None:
        super().__init__(save_distributed_checkpoint=False)
        self.keep = keep

    def setup_environment(self) -> None:
        """Use all ranks for data parallelism."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True: `load_optimizer_state_dict` restores it."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """See `_checkpointed`."""
        assert self.lightning_module is not None
        return _checkpointed(self.lightning_module)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of a plain optimizer, gathered on the CPU."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        return tree_map(lambda v: whole(v).cpu() if isinstance(v, Tensor) else v, optimizer.state_dict())

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the whole file on every rank."""
        return self.checkpoint_io.load_checkpoint(self.broadcast(checkpoint_path), weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Shard the saved weights."""
        assert self.lightning_module is not None
        load_whole(self.lightning_module, dict(checkpoint["state_dict"]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Shard the saved states like their weights."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            shared = {
                number: {key: as_shared(value, weights[number]) for key, value in state.items()}
                for number, state in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": shared})


class DeepSpeed(DDPStrategy):
    """ZeRO by DeepSpeed, see `Zero`; all weights are on every rank before and after training.

    Checkpoints are those of any other strategy, as with `Sharded`.

    Args:
        stage: 2 (gradients and optimizer states are sharded) or 3 (weights, too).
    """

    def __init__(self, stage: int) -> None:
        super().__init__()
        self.stage = stage

    @property
    def _zero(self) -> Zero | None:
        return self.lightning_module.zero if self.lightning_module is not None else None  # type: ignore[return-value]

    def configure_ddp(self) -> None:
        """Nothing: DeepSpeed exchanges gradients."""

    def setup(self, trainer: Any) -> None:
        """Let DeepSpeed take over the module for a fit."""
        super().setup(trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            module: Any = self.lightning_module
            module.zero = Zero(
                module,
                self.optimizers[0],
                stage=self.stage,
                clip=module.optimization.clip,
                local_rank=self.local_rank,
                precision=self.precision_plugin.forward_context,
            )

    def backward(self, closure_loss: Tensor, *_: Any, **__: Any) -> Tensor:
        """Run the backward pass of DeepSpeed."""
        assert self._zero is not None
        self._zero.backward(closure_loss)
        return closure_loss

    def optimizer_step(self, optimizer: Optimizer, closure: Any, *_: Any, **__: Any) -> Any:
        """Only count the step: `StudentModule` has already made it by `Zero.step`."""
        return closure()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """See `_checkpointed`."""
        assert self.lightning_module is not None
        return _checkpointed(self.lightning_module)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of a plain optimizer, gathered on the CPU."""
        assert self._zero is not None
        return self._zero.optimizer_state()

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Shard the saved states."""
        assert self._zero is not None
        self._zero.load_optimizer_state(checkpoint["optimizer_states"][0])


def check_hardware(settings: TrainerConfig) -> None:
    """Reject devices and precisions that this machine does not have.

    Raises:
        ConfigError: fewer GPUs, or GPUs without bfloat16.
    """
    if settings.accelerator == "auto" and not _has_accelerator():
        on_cpu = replace(settings, accelerator="cpu")
        if problems := device_problems(on_cpu):
            raise ConfigError(f"{problems[0]} (trainer.accelerator=auto is the CPU here)")
        if settings.precision == "16-mixed":
            raise ConfigError("trainer.precision=16-mixed: this machine has no GPU that torch can use; use bf16-mixed")
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
            f"trainer.precision={settings.precision}: this GPU has no units for bfloat16; use "
            "trainer.precision=16-mixed"
        )


def _has_accelerator() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()
