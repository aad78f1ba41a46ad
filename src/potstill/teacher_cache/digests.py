"""Digests of everything that a teacher's outputs depend on: weights, config, data, and masks."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.data.common.steps import BatchSettings
from potstill.data.common.store import canonical
from potstill.data.corpus.store import Corpus

# Keys of a config that do not change the model's outputs.
UNREAD_CONFIG = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype"})


def teacher_digests(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, str]:
    """sha256 of a model's weights and of its config without keys that do not change its outputs.

    A checkpoint and the model loaded from it may have different digests, since names, dtypes and shapes count.

    Args:
        state: `state_dict()` of the model.
        config: Its config as a dictionary.
    """
    weights = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        weights.update(canonical([name, str(tensor.dtype), list(tensor.shape)]))
        weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    read = {key: value for key, value in config.items() if key not in UNREAD_CONFIG}
    return {"weights": weights.hexdigest(), "config": hashlib.sha256(canonical(read)).hexdigest()}


def corpus_digest(corpus: Corpus) -> str:
    """sha256 of a corpus: the keys of its stores, and the checksums of their files."""
    parts = [[store.index["key"], store.index["shards"], store.index["arrays"]] for store in corpus.stores]
    return hashlib.sha256(canonical(parts)).hexdigest()


def arrays_digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """sha256 of arrays, such as the token ids, types and lengths of a task's rows."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(canonical([name, array.dtype.str, list(array.shape)]))
        digest.update(array.tobytes())
    return digest.hexdigest()


def mask_settings(settings: BatchSettings, *, steps: int, world: int, device: str) -> dict[str, Any]:
    """Dependencies of the masks of all training steps, besides the corpus and the tokenizer.

    Masks are drawn for a whole step, so they depend on the global batch size and the grouping, but not on the cut into
    micro-batches.

    Args:
        settings: Settings of steps and masks.
        steps: Number of optimizer steps that the store covers.
        world: Number of processes.
        device: Type of the device of the masks' generator ("cpu", "cuda").
    """
    times = settings.accumulate * world
    return {
        "seed": settings.seed,
        "steps": steps,
        "step_sequences": settings.batch_size * times,
        "step_tokens": settings.max_tokens * times if settings.max_tokens else None,
        "group_size": settings.group_size,
        "length_bin": settings.length_bin,
        # Pairs stay together in a step; drawn sources are masked too.
        "pairing": settings.interchange.pairing if settings.interchange else None,
        # A last step with too few sequences for the processes is dropped.
        "world": world,
        "mlm_share": settings.mlm_share,
        "mlm_smoothing": settings.mlm_smoothing,
        "mlm_replace": list(settings.mlm_replace),
        "device": device,
    }
