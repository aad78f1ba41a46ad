"""Features of a model's run that losses compare, and how they are read from an ordinary (transformers) model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import ConfigError
from potstill.models.backbone import Backbone
from potstill.objectives.interchange import Hidden, Interchange, Micro, bases_of, hidden_states
from potstill.objectives.matching import KEY, Place

PARTS = ("query", "key", "value")
PROBE_TOKENS = 2


@dataclass(frozen=True)
class Wanted:
    """Features that the active terms read of one model.

    Attributes:
        hidden: hidden states, by layer (0 for the embeddings, k for block k) or by the name of a submodule.
        causal_hidden: layers of the counterfactual run.
        attention: attention scores, by block, counted from 1.
        relations: (block, `query`, `key` or `value`).
        end: whether the base run goes to the last block.
        causal: whether the counterfactual run is read.
        logits: whether predictions are read.
        last: whether the last hidden states are compared.
    """

    hidden: frozenset[Place] = frozenset()
    causal_hidden: frozenset[int] = frozenset()
    attention: frozenset[int] = frozenset()
    relations: frozenset[tuple[int, str]] = frozenset()
    end: bool = False
    causal: bool = False
    logits: bool = False
    last: bool = False

    @property
    def modules(self) -> frozenset[str]:
        """Names of submodules."""
        return frozenset(place for place in self.hidden if isinstance(place, str))

    @property
    def vectors(self) -> frozenset[tuple[int, str]]:
        """Queries, keys and values of blocks."""
        return self.relations | {(block, part) for block in self.attention for part in ("query", "key")}

    @property
    def keep(self) -> frozenset[int]:
        """Layers that the base run has to reach."""
        return frozenset(place for place in self.hidden if isinstance(place, int)) | {k for k, _ in self.vectors}


@dataclass(frozen=True)
class Features:
    """Features of one model's run on one micro-batch; only what is read is there.

    Attributes:
        logits: (predictions, labels) each; several if a model answers several questions.
        labels: (predictions,) for each tensor of logits; -100 for no label.
        losses: the model's own, (examples,) each, or sums over them.
        last: (tokens, width), the last hidden states that are compared.
        hidden: (batch, length, width), by layer or name.
        attention: (batch, heads, length, length), scores before the softmax, by block or name.
        vectors: (batch, length, width), by block and part.
        mask: (batch, length) nonzero at real tokens; None: all positions count.
        by_example: whether a user's own module makes one prediction per example, not one per position.
        rows: (batch,), numbers of the examples of a user's own data.
        kept: (batch, positions) for each tensor of logits of a user's own module, the positions of its predictions;
            None for one per example.
    """

    logits: tuple[Tensor, ...] = ()
    labels: tuple[Tensor, ...] = ()
    losses: tuple[Tensor, ...] = ()
    last: Tensor | None = None
    hidden: Mapping[Place, Tensor] = field(default_factory=dict)
    attention: Mapping[Place, Tensor] = field(default_factory=dict)
    vectors: Mapping[tuple[int, str], Tensor] = field(default_factory=dict)
    mask: Tensor | None = None
    by_example: bool = False
    rows: Tensor | None = None
    kept: tuple[Tensor | None, ...] = ()


def observed(
    backbone: Backbone, side: str, micro: Micro, exchange: Interchange | None, wanted: Wanted
) -> tuple[Hidden, list[Features], list[Features]]:
    """Run one model as `hidden_states` does, and read the features of each base and of each counterfactual run."""
    with capturing(backbone, wanted) as captured:
        end = wanted.end or bool(wanted.modules)  # a submodule may be anywhere
        layers = {"keep": wanted.keep, "causal_keep": wanted.causal_hidden}
        hidden = hidden_states(backbone, side, micro, exchange, whole=end, **layers)
    found, parts = [], bases_of(micro, exchange)
    for number, (own, part) in enumerate(zip(hidden.layers, parts, strict=False)):
        # The base runs are the first calls.
        vectors = {key: captured[key][number] for key in wanted.vectors}
        states: dict[Place, Tensor] = {layer: own[layer] for layer in own}
        states |= {name: captured[name][number] for name in wanted.modules}
        attention: dict[Place, Tensor] = {
            block: scores(vectors[block, "query"], vectors[block, "key"], backbone.heads) for block in wanted.attention
        }
        found.append(Features(hidden=states, attention=attention, vectors=vectors, mask=part.attention_mask))
    causal = [
        Features(hidden={layer: own[layer] for layer in own}, mask=part.attention_mask)
        for own, part in zip(hidden.causal_layers, parts, strict=False)
    ]
    return hidden, found, causal


@contextmanager
def capturing(backbone: Backbone, wanted: Wanted) -> Iterator[dict[Any, list[Tensor]]]:
    """Collect the outputs of the wanted submodules, in the order of their calls."""
    captured: dict[Any, list[Tensor]] = {}
    blocks: Any = backbone.model.base_model.get_submodule(backbone.view.blocks)
    modules: dict[Any, nn.Module] = {name: find_module(backbone, name) for name in sorted(wanted.modules)}
    for block, part in sorted(wanted.vectors):
        name = backbone.view.vectors[PARTS.index(part)]
        modules[block, part] = blocks[block - 1].get_submodule(name)
    handles = []
    try:
        for key, module in modules.items():
            outputs = captured.setdefault(key, [])
            handles.append(module.register_forward_hook(lambda _, __, output, own=outputs: own.append(_first(output))))
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def find_module(backbone: Backbone, name: str, side: str = "model") -> nn.Module:
    """A submodule by its name in the base model (`encoder.layer.3.output`).

    Raises:
        ConfigError: there is no such submodule.
    """
    try:
        return backbone.model.base_model.get_submodule(name)
    except AttributeError:
        some = ", ".join(
            own for own, _ in backbone.model.base_model.named_modules() if own.startswith(f"{backbone.view.blocks}.0.")
        )
        raise ConfigError(f"{KEY}: the {side} has no submodule {name}; those of its first block: {some}") from None


@torch.no_grad()
def module_widths(backbone: Backbone, names: frozenset[str], side: str) -> dict[str, int]:
    """Widths of the outputs of submodules, by a run over two tokens.

    Raises:
        ConfigError: a submodule does not exist, is not called, or does not return one state per token.
    """
    for name in names:
        find_module(backbone, name, side=side)
    ids = torch.zeros(1, PROBE_TOKENS, dtype=torch.long, device=backbone.model.device)
    modes = {module: module.training for module in backbone.model.modules()}
    backbone.model.eval()
    try:
        with capturing(backbone, Wanted(hidden=frozenset(names))) as captured:
            backbone.blocks(backbone.embed(ids))
    finally:
        for module, mode in modes.items():
            module.training = mode
    widths = {}
    for name in names:
        output = next(iter(captured[name]), None)
        if not isinstance(output, Tensor) or output.ndim != 3 or output.shape[:2] != ids.shape:
            found = tuple(output.shape) if isinstance(output, Tensor) else "nothing"
            raise ConfigError(
                f"{KEY}: the output of {name} in the {side} is {found}, not one state per token; choose a submodule "
                "within a block"
            )
        widths[name] = output.shape[-1]
    return widths


def scores(queries_BLD: Tensor, keys_BLD: Tensor, heads: int) -> Tensor:
    """Attention scores before the softmax and without a mask, (batch, heads, length, length).

    Args:
        queries_BLD: (batch, length, width), all heads side by side.
        keys_BLD: keys, (batch, length, width).
        heads: number of attention heads.
    """
    queries_BHLd, keys_BHLd = (
        vectors.unflatten(-1, (heads, -1)).transpose(1, 2) for vectors in (queries_BLD, keys_BLD)
    )
    return queries_BHLd @ keys_BHLd.transpose(-1, -2) / queries_BHLd.shape[-1] ** 0.5
