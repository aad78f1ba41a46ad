"""Weights, gradients and optimizer states shared out over ranks, of student and teacher alike (torch's FSDP2).

Each block is a unit: its weights are gathered when it runs and given back afterwards. What is left (embeddings, norms,
heads, projections) is gathered once per step, because backbones, tied gradients and the fused vocabulary losses read
those weights directly. A backbone runs no `forward` of a whole model, so the module's own methods stand for it.

Source: Zhao et al. 2023, PyTorch FSDP (arXiv:2304.11277); Rajbhandari et al. 2020, ZeRO (arXiv:1910.02054).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

RUNS = ("share_alone", "validation_step", "test_step")  # what reads weights: gathered before, hooked after


def shard(module: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh, *, keep: bool) -> None:
    """Share the weights of a LightningModule with `student` and `teacher` out over ranks; once.

    Args:
        module: in place; every rank has the same weights.
        blocks: of its submodules, that are gathered by themselves.
        mesh: of one dimension.
        keep: blocks stay gathered from their forward to their backward pass, which halves the communication of a
            block (gradients and optimizer states are shared out all the same: ZeRO 2 instead of 3).
    """
    if isinstance(module, FSDPModule):
        return
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=not keep)
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    for name in RUNS:
        if hasattr(module, name):
            register_fsdp_forward_method(module, name)


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """The largest submodules that come in a list: blocks of encoders and decoders, of the student and its teachers."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList) and name not in ("teacher", "_registered"):
            yield from (block for block in child if any(True for _ in block.parameters()))
        elif name != "projections":
            yield from blocks_of(child)


def whole(tensor: Any) -> Any:
    """A shared tensor put together, on every rank, which all have to ask for it; anything else as it is.

    Args:
        tensor: FSDP2's, or a parameter itself (not its detached data), which may be DeepSpeed's.
    """
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    if hasattr(tensor, "ds_id") and tensor.shape != tensor.ds_shape:
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor


def as_shared(value: Any, like: Tensor) -> Any:
    """A whole tensor shared out as another of its shape is; anything else as it is."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def load_whole(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Put whole weights, the same on every rank, into a module that may be shared out.

    Raises:
        RuntimeError: a name that is missing or unknown.
    """
    own = module.state_dict()
    module.load_state_dict({name: as_shared(value, own.get(name, value)) for name, value in state.items()})


@torch.no_grad()
def gather(module: nn.Module) -> None:
    """Make a shared module a plain one, on the CPU of every rank; it is not trained any more.

    Args:
        module: in place; weights that are tied stay tied.
    """
    if not any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in module.parameters()):
        return
    plain: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if id(parameter) not in plain:
                plain[id(parameter)] = nn.Parameter(
                    whole(parameter).detach().cpu(), requires_grad=parameter.requires_grad
                )
            setattr(part, name, plain[id(parameter)])


def rest(module: nn.Module) -> None:
    """After a run without a backward pass: give back the weights outside blocks, so that a step gathers new ones."""
    if isinstance(module, FSDPModule):
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def exchange(module: nn.Module, last: bool) -> None:
    """Whether the next backward pass exchanges gradients: that of a step's last micro-batch."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
        module.set_is_last_backward(last)
