"""What a model costs: parameters, size on disk and time of a forward pass."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from potstill.errors import ModelError

# Formats in the order of preference: a folder that holds the same weights in two of them counts one.
WEIGHT_PATTERNS = ("*.safetensors", "*.bin")
LATENCY_BUDGET_SECONDS = 3.0


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Number of parameters, each tied one counted once.

    Returns:
        `total`, and `without_embeddings`: less the weights of all embedding modules (words, positions, types) and so
        less an output projection that is tied to one.
    """
    embedded = {
        id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()
    }
    parameters = list(model.parameters())
    return {
        "total": sum(p.numel() for p in parameters),
        "without_embeddings": sum(p.numel() for p in parameters if id(p) not in embedded),
    }


def parameter_tree(model: nn.Module, depth: int) -> list[tuple[int, str, int]]:
    """Parameters by module, down to a depth; a tied one counts where it comes first.

    Returns:
        (depth, name, parameters) of the whole model, whose name is its class, and of each module below it in the
        model's own order; modules without parameters of their own or below are left out.
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
    """Arithmetic of one forward pass on random ids, in 10^9 operations; a multiplication and an addition are two.

    Raises:
        ModelError: as `latency_ms`.
    """
    with FlopCounterMode(display=False) as counter, _judged(model, batch, length) as run:
        run()
    return counter.get_total_flops() / 1e9


def forward_peak_mb(model: nn.Module, batch: int, length: int) -> float:
    """Most memory that tensors of one forward pass take at a time, the weights left out, in MB (10^6 bytes).

    Raises:
        ModelError: as `latency_ms`.
    """
    with _judged(model, batch, length) as run:
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
    """Size of the weights that a saved model's folder holds, in MB (10^6 bytes).

    Raises:
        ModelError: the folder holds no weights.
    """
    for pattern in WEIGHT_PATTERNS:
        if files := list(Path(folder).glob(pattern)):
            return sum(file.stat().st_size for file in files) / 1e6
    raise ModelError(f"{folder} holds no weights; a folder written by save_pretrained has *.safetensors")


def latency_ms(
    model: nn.Module, batch: int, length: int, repeats: int = 30, warmup: int = 3, seed: int = 0
) -> dict[str, float]:
    """Time of one forward pass of the whole model on random ids, in milliseconds.

    Measured on the model's device in evaluation and inference mode; the model's mode is put back. A slow model gets
    fewer repeats: no pass starts after `LATENCY_BUDGET_SECONDS`, a third of which may go into warming up.

    Args:
        model: takes ids (batch, length) as its first argument; an encoder-decoder gets the same ids for its decoder.
        batch: sequences in a pass.
        length: ids in a sequence.
        repeats: passes to measure, at most.
        warmup: passes before that, at most.
        seed: of the ids.

    Returns:
        `p50` and `p95` over the repeats.

    Raises:
        ModelError: the model embeds no ids, or `length` exceeds its positions.
    """
    times: list[float] = []
    with _judged(model, batch, length, seed) as run:
        started = time.perf_counter()
        for _ in range(warmup):
            run()
            if time.perf_counter() - started > LATENCY_BUDGET_SECONDS / 3:
                break
        for _ in range(repeats):
            begun = time.perf_counter()
            run()
            times.append((time.perf_counter() - begun) * 1e3)
            if time.perf_counter() - started > LATENCY_BUDGET_SECONDS:
                break
    p50, p95 = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.5, 0.95]).double()).tolist()
    return {"p50": p50, "p95": p95}


@contextmanager
def _judged(model: nn.Module, batch: int, length: int, seed: int = 0) -> Iterator[Callable[[], None]]:
    """A forward pass on random ids that returns when the device is done; the model's mode is put back."""
    device = next(model.parameters()).device
    ids = _random_ids(model, batch, length, seed).to(device)
    is_seq2seq = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    arguments = {"decoder_input_ids": ids} if is_seq2seq else {}

    def run() -> None:
        model(ids, **arguments)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield run
    finally:
        model.train(was_training)


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """What the profiler's library writes past Python, that it begins and ends, goes nowhere."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _random_ids(model: nn.Module, batch: int, length: int, seed: int) -> Tensor:
    """Ids (batch, length) drawn from the model's vocabulary."""
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ModelError(f"latency: length {length} exceeds the model's {positions} positions")
    embedding: Any
    if isinstance(model, PreTrainedModel):
        embedding = model.get_input_embeddings()
    else:
        embedding = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    if embedding is None:
        raise ModelError(f"latency: {type(model).__name__} embeds no ids")
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(embedding.weight.shape[0], (batch, length), generator=generator)
