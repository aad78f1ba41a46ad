"""Digests of all that a teacher's outputs depend on: its weights and config, the data, and how tokens are masked."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from potstill.data.common.steps import BatchSettings
from potstill.data.common.store import canonical
from potstill.data.corpus.store import Corpus
from potstill.errors import ModelError
from potstill.runtime.json_text import read_json

# What a config says of how it was saved, not of what the model computes.
UNREAD_CONFIG = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype"})


def teacher_of_folder(folder: Path) -> dict[str, str]:
    """Digests of a saved model's weights and config.

    The weights are taken tensor by tensor in the order of their names, so sharding does not matter.

    Raises:
        ModelError: There is no readable safetensors file or no config.json.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"teacher.model: '{folder}' has no *.safetensors, which a cached teacher is known by; save the model with "
            "save_pretrained"
        )
    try:
        config = read_json(folder / "config.json")
        weights = weights_digest(_saved(files))
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"teacher.model: '{folder}' cannot be read ({error}); give a whole folder"
        ) from error
    return {"weights": weights, "config": config_digest(config)}


def teacher_of_model(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, str]:
    """Digests of a model in memory: its `state_dict()`, and its config as a dictionary."""
    return {
        "weights": weights_digest((name, state[name]) for name in sorted(state)),
        "config": config_digest(config),
    }


def weights_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 of tensors: names, dtypes, shapes and values, in the order in which they come.

    A tensor's name and dtype count, so a checkpoint and the model that was made of it may differ: digest the same of
    the two in both runs.
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(canonical([name, str(tensor.dtype), list(tensor.shape)]))
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def config_digest(config: Mapping[str, Any]) -> str:
    """sha256 of what a model's config says of its computation."""
    read = {key: value for key, value in config.items() if key not in UNREAD_CONFIG}
    return hashlib.sha256(canonical(read)).hexdigest()


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
    """What the masks of all training steps depend on, besides the corpus and the tokenizer.

    Masks are drawn for a step as a whole by a generator of the step's seed on the step's device. So a step's masks
    follow from which sequences it holds, which is settled by the size of the global batch and the grouping, however it
    is cut into micro-batches.

    Args:
        settings: How sequences become steps and masks.
        steps: How many optimizer steps the store covers, from the first of epoch 0.
        world: Number of processes.
        device: Type of the device that masks are drawn on ("cpu", "cuda"): generators differ.
    """
    times = settings.accumulate * world
    return {
        "seed": settings.seed,
        "steps": steps,
        "step_sequences": settings.batch_size * times,
        "step_tokens": settings.max_tokens * times if settings.max_tokens else None,
        "group_size": settings.group_size,
        "length_bin": settings.length_bin,
        # Pairs stay together in a step; drawn sources are masked along with it.
        "pairing": settings.interchange.pairing if settings.interchange else None,
        # A last step with too few sequences for the processes is left out.
        "world": world,
        "mlm_share": settings.mlm_share,
        "mlm_smoothing": settings.mlm_smoothing,
        "mlm_replace": list(settings.mlm_replace),
        "device": device,
    }


def _saved(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of safetensors files by name, one in memory at a time."""
    names: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            names |= dict.fromkeys(tensors.keys(), file)
    for name in sorted(names):
        with safe_open(names[name], framework="pt") as tensors:
            yield name, tensors.get_tensor(name)
