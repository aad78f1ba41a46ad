"""Optimizer states, gradients and, in stage 3, weights sharded over ranks by DeepSpeed.

`StudentModule` runs the step; DeepSpeed exchanges gradients, clips and updates. In stage 3 the modules within blocks
are gathered as they run. The other weights (embeddings, norms, heads, projections) stay gathered, because backbones,
tied gradients and the fused vocabulary losses read them directly.

Source: Rajbhandari et al. 2020, ZeRO (arXiv:1910.02054).
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from potstill.training.sharding import RUNS, blocks_of, gather

LOCAL_RANK = "LOCAL_RANK"
KILLED_SECONDS = 600  # longer than any part of DeepSpeed takes to compile

log = logging.getLogger(__name__)


class Zero:
    """Runs a LightningModule with DeepSpeed, from construction to `close`.

    Args:
        module: has the same weights on every rank.
        optimizer: optimizer of the trained weights, without states; DeepSpeed changes it to one of this rank's parts.
        stage: stage of ZeRO, 2 or 3.
        clip: largest norm of the gradient; None for none.
        local_rank: local rank of this process.
        precision: context of the forward pass; DeepSpeed itself does not use autocast.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        *,
        stage: int,
        clip: float | None,
        local_rank: int,
        precision: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        import deepspeed

        self._module, self._optimizer, self._precision = module, optimizer, precision
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        self._in_3 = stage == 3
        settings = {
            "train_micro_batch_size_per_gpu": 1,  # not used: the data module makes the batches
            "gradient_clipping": clip or 0.0,
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
            "zero_allow_untested_optimizer": True,
        }
        unlock_compiler()
        # DeepSpeed reads it. It is removed later, because Lightning takes it for a sign of another launcher.
        self._lent_rank = LOCAL_RANK not in os.environ
        os.environ.setdefault(LOCAL_RANK, str(local_rank))
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, dist_init_required=False, config=settings
        )
        if self._in_3:
            inside = {id(weight) for block in blocks_of(module) for weight in block.parameters()}
            self._keep([weight for weight in module.parameters() if id(weight) not in inside])
        for name in RUNS:
            if hasattr(module, name):
                setattr(module, name, self._through_engine(getattr(module, name)))

    def _keep(self, weights: list[Any]) -> None:
        """Keep weights gathered, as DeepSpeed does with small ones."""
        kept = self._engine.optimizer.parameter_offload.persistent_parameters
        for weight in weights:
            weight.ds_persist = weight.is_external_param = True
        kept.extend(weights)
        if kept:
            kept[0].all_gather(kept)

    def _through_engine(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, run as a forward pass of the engine, which DeepSpeed hooks."""

        def run(*arguments: Any) -> Any:
            with self._precision():
                return method(*arguments)

        def forward(*arguments: Any) -> Any:
            self._module.forward = run
            try:
                return self._engine(*arguments)
            finally:
                del self._module.forward

        return forward

    def exchange(self, last: bool) -> None:
        """Exchange gradients in the next backward pass if it is the last of a step."""
        self._engine.set_gradient_accumulation_boundary(last)

    def backward(self, loss: Tensor) -> None:
        """Average gradients over ranks; each rank keeps its part."""
        self._engine.backward(loss)

    def step(self) -> Tensor:
        """Clip and update, unless the gradient is not finite.

        Returns:
            Norm of the gradient over all ranks before clipping, a scalar; NaN if the step was skipped.
        """
        self._engine.step()
        norm = self._engine.get_global_grad_norm() if self._engine.was_step_applied() else math.nan
        return torch.as_tensor(norm)

    def optimizer_state(self) -> dict[str, Any]:
        """The `state_dict` of a plain optimizer, gathered on the CPU of every rank; all ranks must call it."""
        from deepspeed.utils import safe_get_full_optimizer_state

        example: dict[str, Any] = next(iter(self._optimizer.state.values()), {})
        self._link()
        weights = [weight for group in self._groups for weight in group]
        state = {
            number: {
                key: safe_get_full_optimizer_state(weight, key).cpu() if _by_weight(value) else value.cpu()
                for key, value in example.items()
            }
            for number, weight in enumerate(weights)
        }
        return {"state": state if example else {}, "param_groups": self._numbered()}

    def load_optimizer_state(self, saved: dict[str, Any]) -> None:
        """Shard the state of a plain optimizer."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        for group, old in zip(self._optimizer.param_groups, saved["param_groups"], strict=True):
            group.update({key: value for key, value in old.items() if key != "params"})
        if not saved["state"]:
            return
        example = saved["state"][0]
        zero = self._engine.optimizer
        parts = zero.fp32_partitioned_groups_flat if self._in_3 else zero.single_partition_of_fp32_groups
        for part in parts:
            self._optimizer.state[part] = {
                key: torch.zeros_like(part) if _by_weight(value) else value.clone() for key, value in example.items()
            }
        self._link()
        weights = [weight for group in self._groups for weight in group]
        for number, weight in enumerate(weights):
            for key, value in saved["state"][number].items():
                if _by_weight(value) and self._in_3:
                    safe_set_local_optimizer_state(weight, _part(value, weight.ds_tensor.ds_numel), key)
                elif _by_weight(value):
                    safe_set_full_optimizer_state(weight, value, key)

    def _link(self) -> None:
        """Make the links by which stage 2 finds the states of a weight; DeepSpeed omits those of later groups."""
        if not self._in_3:
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _numbered(self) -> list[dict[str, Any]]:
        numbered, first = [], 0
        for group, weights in zip(self._optimizer.param_groups, self._groups, strict=True):
            numbers = list(range(first, first := first + len(weights)))
            numbered.append({**{k: v for k, v in group.items() if k != "params"}, "params": numbers})
        return numbered

    def close(self) -> None:
        """Gather all weights on every rank, and release the module."""
        for name in RUNS:
            self._module.__dict__.pop(name, None)
        self._engine.destroy()
        gather(self._module)
        if self._lent_rank:
            del os.environ[LOCAL_RANK]


def unlock_compiler() -> None:
    """Remove the lock of a process that was killed while DeepSpeed compiled a part; torch would wait for it forever."""
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR", get_default_build_root()))
    for lock in root.glob("**/deepspeed_*/lock"):
        with suppress(OSError):  # another rank may have removed it
            if time.time() - lock.stat().st_mtime > KILLED_SECONDS:
                lock.unlink()
                log.warning("%s: removed; left by a killed process", lock)


def _by_weight(value: Any) -> bool:
    """Whether an entry of a state has one number per weight; others are counts."""
    return isinstance(value, Tensor) and value.dim() > 0


def _part(value: Tensor, size: int) -> Tensor:
    """This rank's part with `size` numbers, padded with zeros on the last ranks."""
    first = torch.distributed.get_rank() * size
    part = value.flatten()[first : first + size]
    return nn.functional.pad(part, (0, size - len(part)))
