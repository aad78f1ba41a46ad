"""Optimizer states, gradients and, in stage 3, weights shared out over ranks by DeepSpeed.

The step stays the module's own; DeepSpeed exchanges gradients, clips and updates. In stage 3 the modules within blocks
are gathered as they run, and what is left (embeddings, norms, heads, projections) stays gathered, because backbones,
tied gradients and the fused vocabulary losses read those weights directly.

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
KILLED_SECONDS = 600  # no part of DeepSpeed takes so long to compile

log = logging.getLogger(__name__)


class Zero:
    """A LightningModule in DeepSpeed's hands, from its construction to `close`.

    Args:
        module: with all its weights, the same on every rank.
        optimizer: over the trained ones, without states; DeepSpeed makes it one over this rank's parts.
        stage: of ZeRO, 2 or 3.
        clip: largest norm of the gradient; None for none.
        local_rank: of this process, on its machine.
        precision: context that a forward pass runs in; DeepSpeed itself runs it without autocast.
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
            "train_micro_batch_size_per_gpu": 1,  # it only counts; batches are the data module's
            "gradient_clipping": clip or 0.0,
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
            "zero_allow_untested_optimizer": True,
        }
        unlock_compiler()
        # DeepSpeed reads it; it does not stay, because to Lightning it is a sign of another launcher.
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
        """DeepSpeed leaves small weights gathered; these too."""
        kept = self._engine.optimizer.parameter_offload.persistent_parameters
        for weight in weights:
            weight.ds_persist = weight.is_external_param = True
        kept.extend(weights)
        if kept:
            kept[0].all_gather(kept)

    def _through_engine(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method as a forward pass of the engine, which is what DeepSpeed hooks."""

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
        """Whether the next micro-batch is the last of its step."""
        self._engine.set_gradient_accumulation_boundary(last)

    def backward(self, loss: Tensor) -> None:
        """Gradients averaged over ranks, each rank keeping its part."""
        self._engine.backward(loss)

    def step(self) -> Tensor:
        """Clip and update; left out where the gradient is no number.

        Returns:
            Norm of the gradient over all ranks before clipping, a scalar; NaN where the step was left out.
        """
        self._engine.step()
        norm = self._engine.get_global_grad_norm() if self._engine.was_step_applied() else math.nan
        return torch.as_tensor(norm)

    def optimizer_state(self) -> dict[str, Any]:
        """As the plain optimizer's `state_dict`, put together on the CPU of every rank; all ranks have to ask."""
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
        """Share a plain optimizer's state out."""
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
                key: torch.zeros_like(part) if _by_weight(value) else value.clone()
                for key, value in example.items()
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
        """Stage 2 finds a weight's states by links, which DeepSpeed makes when only the first group has states."""
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
        """Every rank has all weights again, and the module is its own."""
        for name in RUNS:
            self._module.__dict__.pop(name, None)
        self._engine.destroy()
        gather(self._module)
        if self._lent_rank:
            del os.environ[LOCAL_RANK]


def unlock_compiler() -> None:
    """Remove the lock of a process that was killed while DeepSpeed compiled a part; torch waits for it for ever."""
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR", get_default_build_root()))
    for lock in root.glob("**/deepspeed_*/lock"):
        with suppress(OSError):  # another rank may have been first
            if time.time() - lock.stat().st_mtime > KILLED_SECONDS:
                lock.unlink()
                log.warning("%s: left by a process that was killed; removed", lock)


def _by_weight(value: Any) -> bool:
    """Whether an entry of a state has a number a weight; the others are counts."""
    return isinstance(value, Tensor) and value.dim() > 0


def _part(value: Tensor, size: int) -> Tensor:
    """This rank's part, of `size` numbers; the last ranks' are filled up with zeros."""
    first = torch.distributed.get_rank() * size
    part = value.flatten()[first : first + size]
    return nn.functional.pad(part, (0, size - len(part)))
