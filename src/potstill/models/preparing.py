"""Preparation of models for training or teaching: frozen parts, dropout, checkpointing, precision, groups."""

from __future__ import annotations

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


def freeze(model: PreTrainedModel, *, positions: bool, token_types: bool) -> None:
    """Keep position or token-type embeddings as they are; what is false is left alone.

    Raises:
        ModelError: the architecture has no such embeddings.
    """
    view = view_of(model)
    wanted = (("position", positions, view.positions), ("token-type", token_types, view.token_types))
    for what, chosen, name in wanted:
        if chosen and name is None:
            raise ModelError(
                f"{model.config.model_type} has no {what} embeddings to freeze; "
                "expected the setting to be false"
            )
        if chosen and name is not None:
            model.base_model.get_submodule(name).requires_grad_(False)


def set_dropout(model: PreTrainedModel, probability: float) -> None:
    """One probability for every dropout of the model; its configuration, which is what is saved, stays as it is.

    Args:
        model: changed in place.
        probability: of dropping, in [0, 1).
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        # Llama-style attention keeps a number.
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = probability  # type: ignore[assignment]
        elif isinstance(getattr(module, "dropout", None), float):  # T5's
            module.dropout = probability  # type: ignore[assignment]


def set_checkpointing(model: PreTrainedModel, mode: str) -> None:
    """Compute parts of every block again in the backward pass instead of keeping them; gradients stay the same.

    Args:
        model: changed in place; it takes effect in training mode.
        mode: `selective` keeps the outputs of linear layers and makes the rest again (norms, activations, dropout,
            attention): little time, and about half of the memory. `full` keeps each block's input alone.

    Source: Chen et al. 2016 (arXiv:1604.06174); Korthikanti et al. 2022 (arXiv:2205.05198), section 5, for what is
    cheap to make again.
    """
    arguments: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        kept = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
        arguments["context_fn"] = partial(create_selective_checkpoint_contexts, kept)
    with warnings.catch_warnings():
        # The name is another one in the later releases of transformers 5, and this one works in all of them.
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)


def halve_products(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Keep the weights of a frozen model's linear layers in the dtype that autocast casts them to at every step.

    The products are the same to the bit; embeddings, norms and the bias of the vocabulary projection stay in float32.

    Args:
        model: changed in place; only to be run under autocast to `dtype` from now on.
        dtype: a half-precision one.
    """
    output = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D):
            for name, part in list(module.named_parameters(recurse=False)):
                # A new parameter: a decoder's weight is also that of the embeddings.
                if module is not output or name == "weight":
                    setattr(module, name, nn.Parameter(part.detach().to(dtype), requires_grad=False))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters: biases and norms are not decayed (DistilBERT's recipe).

    Args:
        model: any module; shared parameters are counted once.
        weight_decay: of all other parameters.

    Returns:
        Up to two groups, `{"params": [...], "weight_decay": ...}`, decayed first; none of them is empty.

    Raises:
        ModelError: nothing trains.
    """
    norms = {id(p) for m in model.modules() if _is_norm(m) for p in m.parameters(recurse=False)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ModelError(f"{type(model).__name__} has no parameter that trains")
    undecayed = [p for p in trainable if p.ndim < 2 or id(p) in norms]
    decayed = [p for p in trainable if p.ndim >= 2 and id(p) not in norms]
    groups = ({"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def _is_norm(module: nn.Module) -> bool:
    # Architectures bring their own RMSNorm classes, with no common base but the name.
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")
