"""Digests of everything that a teacher's outputs depend on: weights, config, data, and masks."""

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

# Keys of a config that do not change the model's outputs.
UNREAD_CONFIG = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype"})


def teacher_of_folder(folder: Path) -> dict[str, str]:
    """Digests of a saved model's weights and config.

    The digest does not depend on the sharding of the weights.

    Raises:
        ModelError: There is no readable safetensors file or no config.json.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"teacher.model: '{folder}' has no *.safetensors, which a cached teacher needs; save the model with "
            "save_pretrained"
        )
    try:
        config = read_json(folder / "config.json")
        weights = weights_digest(_saved(files))
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"teacher.model: '{folder}' cannot be read ({error}); use a complete folder"
        ) from error
    return {"weights": weights, "config": config_digest(config)}


def teacher_of_model(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, str]:
    """Digests of a model in memory: its `state_dict()`, and its config as a dictionary."""
    return {
        "weights": weights_digest((name, state[name]) for name in sorted(state)),
        "config": config_digest(config),
    }


def weights_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 of tensors: names, dtypes, shapes and values, in their order.

    A checkpoint and the model loaded from it may have different digests, since names and dtypes count.
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(canonical([name, str(tensor.dtype), list(tensor.shape)]))
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def config_digest(config: Mapping[str, Any]) -> str:
    """sha256 of a model's config without keys that do not change its outputs."""
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


def _saved(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of safetensors files by name, one in memory at a time."""
    names: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            names |= dict.fromkeys(tensors.keys(), file)
    for name in sorted(names):
        with safe_open(names[name], framework="pt") as tensors:
            yield name, tensors.get_tensor(name)
