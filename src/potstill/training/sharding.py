"""Weights, gradients and optimizer states of student and teacher sharded over ranks (torch's FSDP2).

The weights of each block are gathered when it runs, and resharded afterwards. The other weights (embeddings, norms,
heads, projections) are gathered once per step, because backbones, tied gradients and the fused vocabulary losses read
them directly. Backbones do not call the `forward` of a whole model, so FSDP hooks methods of the LightningModule.

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

RUNS = ("share_alone", "validation_step", "test_step")  # methods that read weights


def shard(module: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh, *, keep: bool) -> None:
    """Shard the weights of a LightningModule with `student` and `teacher`, once.

    Args:
        module: sharded in place; every rank has the same weights.
        blocks: submodules that are gathered by themselves.
        mesh: one-dimensional mesh of the ranks.
        keep: whether blocks stay gathered from their forward to their backward pass, which halves the communication of
            a block (gradients and optimizer states are still sharded: ZeRO 2 instead of 3).
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
    """Blocks of encoders and decoders, of the student and its teachers: the largest submodules in a ModuleList."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList) and name not in ("teacher", "_registered"):
            yield from (block for block in child if any(True for _ in block.parameters()))
        elif name != "projections":
            yield from blocks_of(child)


def whole(tensor: Any) -> Any:
    """The whole of a sharded tensor; all ranks must call it. Other values are returned unchanged.

    Args:
        tensor: a tensor of FSDP2, or a parameter (not its detached data) that may be sharded by DeepSpeed.
    """
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    if hasattr(tensor, "ds_id") and tensor.shape != tensor.ds_shape:
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor


def as_shared(value: Any, like: Tensor) -> Any:
    """A whole tensor sharded like another one of its shape; other values are returned unchanged."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def load_whole(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load whole weights, the same on every rank, into a module that may be sharded.

    Raises:
        RuntimeError: a missing or unknown name.
    """
    own = module.state_dict()
    module.load_state_dict({name: as_shared(value, own.get(name, value)) for name, value in state.items()})


@torch.no_grad()
def gather(module: nn.Module) -> None:
    """Replace sharded weights by whole ones on the CPU of every rank, after training.

    Args:
        module: changed in place; tied weights stay tied.
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
    """Reshard all weights after a run without a backward pass, so that the next step gathers new ones."""
    if isinstance(module, FSDPModule):
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def exchange(module: nn.Module, last: bool) -> None:
    """Exchange gradients in the next backward pass if it is that of the last micro-batch of a step."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
        module.set_is_last_backward(last)
