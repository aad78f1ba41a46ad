"""Cost of a model: parameters, size on disk, FLOPs and memory of a forward pass."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from potstill.errors import WeightsError
from potstill.evaluation.latency import forward_pass

# In order of preference, for folders that hold the same weights in both formats.
WEIGHT_PATTERNS = ("*.safetensors", "*.bin")


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Number of parameters; tied parameters count once.

    Returns:
        `total`, and `without_embeddings`: without the weights of embedding modules (words, positions, types) and of an
        output projection that is tied to one.
    """
    embedded = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    parameters = list(model.parameters())
    return {
        "total": sum(p.numel() for p in parameters),
        "without_embeddings": sum(p.numel() for p in parameters if id(p) not in embedded),
    }


def parameter_tree(model: nn.Module, depth: int) -> list[tuple[int, str, int]]:
    """Parameters per module, down to a depth; tied parameters count at their first module.

    Returns:
        (depth, name, parameters) of the whole model, by the name of its class, and of each module below it in the
        model's order; modules without parameters are left out.
    """
    seen: set[int] = set()
    own: dict[str, int] = {}
    for name, module in model.named_modules():
        fresh = {id(p): p.numel() for p in module.parameters(recurse=False) if id(p) not in seen}
        seen |= fresh.keys()
        own[name] = sum(fresh.values())
    rows = [(0, type(model).__name__, sum(own.values()))]
    for name in own:
        level = name.count(".") + 1
        below = sum(n for other, n in own.items() if other == name or other.startswith(f"{name}."))
        if name and level <= depth and below:
            rows.append((level, name, below))
    return rows


def forward_gflop(model: nn.Module, batch: int, length: int) -> float:
    """FLOPs of one forward pass on random ids, in 10^9; a multiply-add counts as two.

    Raises:
        ModelError: as `latency.forward_pass`.
    """
    with FlopCounterMode(display=False) as counter, forward_pass(model, batch, length) as run:
        run()
    return counter.get_total_flops() / 1e9


def forward_peak_mb(model: nn.Module, batch: int, length: int) -> float:
    """Peak memory of the tensors of one forward pass, without the weights, in MB (10^6 bytes).

    Raises:
        ModelError: as `latency.forward_pass`.
    """
    with forward_pass(model, batch, length) as run:
        device = next(model.parameters()).device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            run()
            return (torch.cuda.max_memory_allocated(device) - before) / 1e6
        with _quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            run()
    events = sorted(profiled.events() or (), key=lambda event: event.time_range.end)
    return max(accumulate((event.self_cpu_memory_usage for event in events), initial=0)) / 1e6


def size_mb(folder: str | Path) -> float:
    """Size of the weights in a model folder, or of a GGUF file, in MB (10^6 bytes).

    Raises:
        WeightsError: the folder holds no weights.
    """
    if (path := Path(folder)).is_file():
        return path.stat().st_size / 1e6
    for pattern in WEIGHT_PATTERNS:
        if files := list(path.glob(pattern)):
            files += path.glob(f"*_Dense/{pattern}")  # of a sentence encoder
            return sum(file.stat().st_size for file in files) / 1e6
    raise WeightsError(f"{folder}: holds no weights; expected one of {', '.join(WEIGHT_PATTERNS)}")


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Discard what the profiler's library writes to file descriptor 2."""
    sys.stderr.flush()
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
