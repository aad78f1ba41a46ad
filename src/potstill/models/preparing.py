"""Preparation of models for training: frozen parts, dropout, checkpointing, precision, parameter groups."""

from __future__ import annotations

import re
import warnings
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from potstill.errors import ModelError
from potstill.models.views import view_of

MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # what autocast computes in, by trainer.precision
# Names of embeddings in the architectures of transformers.
_EMBEDDINGS = re.compile(r"(^|\.)(embed\w*|rel_embeddings|encoder\.LayerNorm|wte|wpe|shared)\.")


def freeze(model: PreTrainedModel, *, positions: bool, token_types: bool) -> None:
    """Freeze position or token-type embeddings.

    Raises:
        ModelError: the architecture has no such embeddings.
    """
    if not (positions or token_types):
        return
    view = view_of(model)
    wanted = (
        ("positions", "position", positions, view.positions),
        ("token_types", "token-type", token_types, view.token_types),
    )
    for key, what, chosen, name in wanted:
        if chosen and name is None:
            raise ModelError(f"student.freeze_{key}=true: {model.config.model_type} has no {what} embeddings")
        if chosen and name is not None:
            model.base_model.get_submodule(name).requires_grad_(False)


def set_dropout(model: PreTrainedModel, probability: float) -> None:
    """Set one probability for every dropout of the model; its configuration, which is saved, stays as it is.

    Args:
        model: changed in place.
        probability: of dropping, in [0, 1).
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        # Llama-style attention keeps a number.
        elif isinstance(getattr(module, "attention_dropout", None), float | int):
            module.attention_dropout = probability  # type: ignore[assignment]
        elif isinstance(getattr(module, "dropout", None), float):  # T5's
            module.dropout = probability  # type: ignore[assignment]


def set_checkpointing(model: PreTrainedModel, mode: str) -> None:
    """Recompute parts of every block in the backward pass instead of storing them; gradients stay the same.

    Args:
        model: changed in place; takes effect in training mode.
        mode: `selective` stores the outputs of linear layers and recomputes the rest (norms, activations, dropout,
            attention): little time, and about half of the memory. `full` stores each block's input only.

    Source: Chen et al. 2016 (arXiv:1604.06174); Korthikanti et al. 2022 (arXiv:2205.05198), section 5, for the parts
    that are cheap to recompute.
    """
    arguments: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        kept = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
        arguments["context_fn"] = partial(create_selective_checkpoint_contexts, kept)
    with warnings.catch_warnings():
        # Later releases of transformers 5 prefer another name; this one works in all of them.
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)


def halve_products(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Convert the weights of a frozen model's linear layers to the dtype that autocast casts them to at every step.

    The products are equal to the bit; embeddings, norms and the bias of the vocabulary projection stay in float32.

    Args:
        model: changed in place; run it only under autocast to `dtype` afterwards.
        dtype: a half-precision one.
    """
    output = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D):
            for name, part in list(module.named_parameters(recurse=False)):
                # A new parameter: a decoder's weight is also that of the embeddings.
                if module is not output or name == "weight":
                    setattr(module, name, nn.Parameter(part.detach().to(dtype), requires_grad=False))


def parameter_groups(
    model: nn.Module, weight_decay: float, *, lr: float | None = None, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Split the trainable parameters: biases and norms are not decayed (DistilBERT's recipe).

    Args:
        model: any module; shared parameters are counted once.
        weight_decay: of all other parameters.
        lr: learning rate of the head; None: that of the optimizer, for all.
        layer_decay: factor of the learning rate from each block to the one below it; the embeddings are below the first
            block (Clark et al. 2020, ELECTRA, arXiv:2003.10555, appendix A).

    Returns:
        `{"params": [...], "weight_decay": ...}`, with `lr` if it is given; those of the head first, decayed before
        undecayed; empty ones are omitted.

    Raises:
        ModelError: no parameter is trainable, or `layer_decay` is below 1 and the model has no list of blocks.
    """
    norms = {id(p) for m in model.modules() if _is_norm(m) for p in m.parameters(recurse=False)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ModelError(f"{type(model).__name__} has no trainable parameter")
    below = {} if layer_decay == 1 else _places_below_head(model)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter in trainable:
        undecayed = parameter.ndim < 2 or id(parameter) in norms
        groups.setdefault((below.get(id(parameter), 0), undecayed), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": 0.0 if undecayed else weight_decay}
        | ({} if lr is None else {"lr": lr * layer_decay**place})
        for (place, undecayed), parameters in sorted(groups.items())
    ]


def _places_below_head(model: nn.Module) -> dict[int, int]:
    """How many layers each parameter, by its id, is below the head; one that is shared counts as its lowest."""
    lists = {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    blocks = {name: size for name, size in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}
    if not blocks:
        raise ModelError(f"optimizer.layer_decay: {type(model).__name__} has no list of blocks; null")
    found: dict[int, int] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        own = next((one for one in blocks if name.startswith(f"{one}.")), None)
        place = max(blocks.values()) + 1 if _EMBEDDINGS.search(name) else 0
        if own is not None:
            place = blocks[own] - int(name[len(own) + 1 :].partition(".")[0])
        found[id(parameter)] = max(found.get(id(parameter), 0), place)
    return found


def _is_norm(module: nn.Module) -> bool:
    # The RMSNorm classes of the architectures have no common base, only a common name.
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")
