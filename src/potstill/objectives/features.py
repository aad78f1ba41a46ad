"""Features of a model's run that matches read: hidden states, queries, keys, values and outputs of submodules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import ConfigError
from potstill.models.backbone import Backbone
from potstill.objectives.interchange import Hidden, Interchange, Micro, hidden_states

PARTS = ("query", "key", "value")
PROBE_TOKENS = 2


@dataclass(frozen=True)
class Wanted:
    """Features that are read of one model.

    Attributes:
        layers: hidden states; 0 is the embeddings' output, k that of block k, counted from 1.
        vectors: (block, `query`, `key` or `value`), blocks counted from 1.
        modules: names of submodules, as `find_module` knows them.
    """

    layers: frozenset[int] = frozenset()
    vectors: frozenset[tuple[int, str]] = frozenset()
    modules: frozenset[str] = frozenset()

    @property
    def keep(self) -> frozenset[int]:
        """The layers that a run has to reach."""
        return self.layers | {block for block, _ in self.vectors}

    @property
    def whole(self) -> bool:
        """Whether the run has to go to the end: a submodule may be anywhere."""
        return bool(self.modules)


@dataclass
class Features:
    """Features of one run over one micro-batch, (batch, length, width) each."""

    layers: dict[int, Tensor] = field(default_factory=dict)
    vectors: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    modules: dict[str, Tensor] = field(default_factory=dict)


class Captured:
    """Outputs of hooked submodules, in the order of their calls."""

    def __init__(self) -> None:
        self.outputs: dict[Any, list[Tensor]] = {}

    def keep(self, key: Any, output: Any) -> None:
        """Remember an output; the first of several."""
        self.outputs.setdefault(key, []).append(output[0] if isinstance(output, tuple) else output)

    def of_bases(self, wanted: Wanted, layers: list[dict[int, Tensor]]) -> list[Features]:
        """Features of each base; the base runs are the first calls.

        Args:
            wanted: the requested features.
            layers: hidden states of each base.
        """
        return [
            Features(
                states,
                {key: self.outputs[key][number] for key in wanted.vectors},
                {name: self.outputs[name][number] for name in wanted.modules},
            )
            for number, states in enumerate(layers)
        ]


@contextmanager
def capturing(backbone: Backbone, wanted: Wanted) -> Iterator[Captured]:
    """Within, the outputs of the wanted submodules of a model are kept; nothing is hooked where none is."""
    captured, handles = Captured(), []
    blocks: Any = backbone.model.base_model.get_submodule(backbone.view.blocks)
    try:
        for block, part in sorted(wanted.vectors):
            name = backbone.view.vectors[PARTS.index(part)]
            handles.append(_hook(blocks[block - 1].get_submodule(name), (block, part), captured))
        for name in sorted(wanted.modules):
            handles.append(_hook(find_module(backbone, name), name, captured))
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def observed(
    backbone: Backbone, side: str, micro: Micro, exchange: Interchange | None, *, whole: bool, wanted: Wanted
) -> tuple[Hidden, list[Features]]:
    """Run one model as `hidden_states` does, and read its features on the way, those of each base run."""
    with capturing(backbone, wanted) as captured:
        hidden = hidden_states(backbone, side, micro, exchange, whole=whole or wanted.whole, keep=wanted.keep)
    return hidden, captured.of_bases(wanted, hidden.layers)


def _hook(module: nn.Module, key: Any, captured: Captured) -> Any:
    return module.register_forward_hook(lambda _module, _inputs, output: captured.keep(key, output))


def find_module(
    backbone: Backbone, name: str, key: str = "objective.matches", side: str = "model"
) -> nn.Module:
    """A submodule by its name in the base model (`encoder.layer.3.output`).

    Raises:
        ConfigError: there is none.
    """
    try:
        return backbone.model.base_model.get_submodule(name)
    except AttributeError:
        some = ", ".join(
            own
            for own, _ in backbone.model.base_model.named_modules()
            if own.startswith(f"{backbone.view.blocks}.0.")
        )
        raise ConfigError(
            f"{key}: the {side} has no submodule {name}; those of its first block: {some}"
        ) from None


@torch.no_grad()
def module_widths(backbone: Backbone, names: frozenset[str], side: str) -> dict[str, int]:
    """The width of what submodules give, by a run over two tokens.

    Raises:
        ConfigError: the submodule does not exist, is not called, or does not return a state of each token.
    """
    for name in names:
        find_module(backbone, name, side=side)
    ids = torch.zeros(1, PROBE_TOKENS, dtype=torch.long, device=backbone.model.device)
    modes = {module: module.training for module in backbone.model.modules()}
    backbone.model.eval()
    try:
        with capturing(backbone, Wanted(modules=names)) as captured:
            backbone.blocks(backbone.embed(ids))
    finally:
        for module, mode in modes.items():
            module.training = mode
    widths = {}
    for name in names:
        output = captured.outputs.get(name, [None])[0]
        if not isinstance(output, Tensor) or output.ndim != 3 or output.shape[:2] != ids.shape:
            found = tuple(output.shape) if isinstance(output, Tensor) else "nothing"
            raise ConfigError(
                f"objective.matches: the {side}'s {name} gives {found}, not a state of each token; "
                "choose one within a block"
            )
        widths[name] = output.shape[-1]
    return widths


def scores(queries_BLD: Tensor, keys_BLD: Tensor, heads: int) -> Tensor:
    """Attention scores before the softmax and without a mask, (batch, heads, length, length).

    Args:
        queries_BLD: (batch, length, width), all heads side by side.
        keys_BLD: of the keys.
        heads: of attention.
    """
    queries_BHLd, keys_BHLd = (
        vectors.unflatten(-1, (heads, -1)).transpose(1, 2) for vectors in (queries_BLD, keys_BLD)
    )
    return queries_BHLd @ keys_BHLd.transpose(-1, -2) / queries_BHLd.shape[-1] ** 0.5
