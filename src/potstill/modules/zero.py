"""Optimizer states, gradients and, in stage 3, weights shared out over ranks by DeepSpeed.

The step stays the module's own; DeepSpeed reduces, clips and updates. In stage 3 blocks are gathered as units, and what
is left (embeddings, norms, heads, projections) stays gathered, because trunks, tied gradients and the fused vocabulary
losses read those weights directly.

Source: Rajbhandari et al. 2020, ZeRO (arXiv:1910.02054).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from potstill.modules.sharding import blocks_of

WEIGHTS = 3  # the stage in which weights are shared out, too


class Zero:
    """A LightningModule in DeepSpeed's hands.

    Args:
        module: with all weights on this rank's device; every rank has the same.
        optimizer: over its trained parameters, without states.
        stage: of ZeRO, 2 or 3.
        clip: largest norm of the gradient; None for none.
    """

    def __init__(self, module: nn.Module, optimizer: Optimizer, *, stage: int, clip: float | None) -> None:
        import deepspeed

        self._module, self._optimizer, self._stage = module, optimizer, stage
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        if stage == WEIGHTS:
            for block in blocks_of(module):
                deepspeed.utils.set_z3_leaf_module(block, True)
        self.engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 1,  # counts only; batches are the data module's
                "gradient_clipping": clip or 0.0,
                "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": None,
            },
        )
        if stage == WEIGHTS:
            self._keep([p for p in module.parameters() if not _in_blocks(p, module)])

    def _keep(self, weights: list[nn.Parameter]) -> None:
        """DeepSpeed keeps what is small; the same for these."""
        kept = self.engine.optimizer.parameter_offload.persistent_parameters
        for weight in weights:
            weight.ds_persist = weight.is_external_param = True  # type: ignore[attr-defined]
            kept.append(weight)
        if kept:
            kept[0].all_gather(kept)

    def exchange(self, last: bool) -> None:
        """Whether the next backward pass is the last of its step."""
        self.engine.set_gradient_accumulation_boundary(last)

    def norm(self) -> Tensor:
        """Of the gradient over all ranks, before clipping; a scalar, NaN where it is no number."""
        norm = torch.as_tensor(self.engine.optimizer.scaled_global_norm())
        return torch.where(norm < 0, math.nan, norm)  # DeepSpeed says -1 for no number

    def whole(self, weight: Tensor) -> Tensor:
        """A weight put together, on the CPU of every rank, which all have to ask for it."""
        import deepspeed

        shared = self._stage == WEIGHTS and isinstance(weight, nn.Parameter)
        with deepspeed.zero.GatheredParameters([weight]) if shared else contextlib.nullcontext():
            return weight.detach().cpu().clone()
