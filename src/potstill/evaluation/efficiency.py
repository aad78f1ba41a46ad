"""What a model costs: parameters, size on disk and time of a forward pass."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
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
    device = next(model.parameters()).device
    ids = _random_ids(model, batch, length, seed).to(device)
    is_seq2seq = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    arguments = {"decoder_input_ids": ids} if is_seq2seq else {}
    was_training = model.training
    model.eval()
    times: list[float] = []
    started = time.perf_counter()
    try:
        with torch.inference_mode():
            for _ in range(warmup):
                _timed_pass(model, ids, arguments, device)
                if time.perf_counter() - started > LATENCY_BUDGET_SECONDS / 3:
                    break
            for _ in range(repeats):
                times.append(_timed_pass(model, ids, arguments, device))
                if time.perf_counter() - started > LATENCY_BUDGET_SECONDS:
                    break
    finally:
        model.train(was_training)
    p50, p95 = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.5, 0.95]).double()).tolist()
    return {"p50": p50, "p95": p95}


def _timed_pass(model: nn.Module, ids: Tensor, arguments: dict[str, Tensor], device: torch.device) -> float:
    """Milliseconds until the device is done."""
    start = time.perf_counter()
    model(ids, **arguments)
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return (time.perf_counter() - start) * 1e3


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
