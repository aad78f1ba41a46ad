"""Hidden states of base and counterfactual runs; each block runs once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from potstill.interchange.intervene import Run, Swap, blocks_read, counterfactual_run, run, swap_tokens
from potstill.interchange.mappings import InterchangeMapping, Site
from potstill.models.backbone import Backbone
from potstill.models.views import Flow


@dataclass(frozen=True)
class Interchange:
    """Swaps of the causal terms.

    Attributes:
        mappings: one is drawn per step.
        read_site: `block_output`, or `block_input` for parity with the published code.
        crossway: whether sources drawn from the data set are bases, too (within a batch the plan decides).
        data_augment: whether input tokens are swapped instead of states; mappings are not read.
    """

    mappings: tuple[InterchangeMapping, ...]
    read_site: str = "block_output"
    crossway: bool = False
    data_augment: bool = False


class Micro(Protocol):
    """A micro-batch of a corpus or of a task; one of a task may have `token_type_ids` too."""

    input_ids: Tensor
    attention_mask: Tensor
    swap: Swap | None
    sources: Any


@dataclass(frozen=True)
class Hidden:
    """Hidden states of one model, (batch, length, width) for each of `bases_of`; only those that are read.

    Attributes:
        base: the last ones of the base run.
        causal: the last ones of the counterfactual run.
        layers: the requested ones of the base run, by number: 0 after the embeddings, k after block k, counted
            from 1; the last ones after the final norm.
        causal_layers: the same of the counterfactual run.
    """

    base: list[Tensor] = field(default_factory=list)
    causal: list[Tensor] = field(default_factory=list)
    layers: list[dict[int, Tensor]] = field(default_factory=list)
    causal_layers: list[dict[int, Tensor]] = field(default_factory=list)


def bases_of(micro: Any, exchange: Interchange | None) -> list[Any]:
    """The micro-batches that are bases: with `crossway` drawn sources, too."""
    if exchange is None or not exchange.crossway or micro.sources is None:
        return [micro]
    return [micro, micro.sources]


def hidden_states(
    backbone: Backbone,
    side: str,
    micro: Micro,
    exchange: Interchange | None,
    *,
    whole: bool,
    keep: Collection[int] = (),
    causal_keep: Collection[int] = (),
) -> Hidden:
    """Run one model as far as terms read it.

    Args:
        backbone: the model.
        side: `teacher` or `student`: selects the sites of a mapping.
        micro: sequences and swaps.
        exchange: states that are swapped; None if no term reads the counterfactual run.
        whole: whether the last states of the base run are read.
        keep: layers of the base run that are read, numbered as in `Hidden`.
        causal_keep: the same of the counterfactual run.
    """
    swap, bases = micro.swap, bases_of(micro, exchange)
    kept, causal_kept = ({layer - 1 for layer in layers} for layers in (keep, causal_keep))
    if exchange is None or swap is None:
        runs = [run(backbone, _embed(backbone, part), kept, whole=whole) for part in bases if whole or kept]
        return Hidden(_ends(runs), [], _layers(backbone, runs, keep))
    ways = (swap, swap.reverse())
    inputs = [micro] if micro.sources is None else [micro, micro.sources]
    if exchange.data_augment:
        swapped = [
            swap_tokens(part.input_ids, other.input_ids, way)
            for part, other, way in zip(bases, inputs[::-1], ways, strict=False)
        ]
        runs = [run(backbone, _embed(backbone, part), kept, whole=whole) for part in bases if whole or kept]
        causal = [run(backbone, _embed(backbone, *own), causal_kept) for own in zip(bases, swapped, strict=True)]
        return _hidden(backbone, runs, causal, keep, causal_keep)
    sites: tuple[Site, ...] = getattr(exchange.mappings[swap.draw % len(exchange.mappings)], side)
    before = {block for block in causal_kept if block < sites[0].block}
    first, read = {sites[0].block} | kept | before, blocks_read(sites, exchange.read_site)
    mutual = len(bases) == len(inputs)  # each is base and source
    runs = [run(backbone, _embed(backbone, micro), first | read if mutual else first, whole=whole)]
    if micro.sources is not None:
        theirs = first | read if mutual else read
        runs.append(run(backbone, _embed(backbone, micro.sources), theirs, whole=whole and mutual))
    causal = [
        counterfactual_run(backbone, base, source, sites, way, exchange.read_site, causal_kept)
        for base, source, way in zip(runs[: len(bases)], runs[::-1], ways, strict=False)
    ]
    return _hidden(backbone, runs[: len(bases)], causal, keep, causal_keep)


def _hidden(
    backbone: Backbone, runs: list[Run], causal: list[Run], keep: Collection[int], causal_keep: Collection[int]
) -> Hidden:
    layers, causal_layers = _layers(backbone, runs, keep), _layers(backbone, causal, causal_keep)
    return Hidden(_ends(runs), _ends(causal), layers, causal_layers)


def _embed(backbone: Backbone, micro: Any, input_ids_BL: Tensor | None = None) -> Flow:
    ids = micro.input_ids if input_ids_BL is None else input_ids_BL
    types = getattr(micro, "token_type_ids", None)  # of tasks; teacher or student may not use them
    return backbone.embed(ids, micro.attention_mask, types if backbone.token_types > 1 else None)


def _ends(runs: list[Run]) -> list[Tensor]:
    return [r.last_BLD for r in runs if r.last_BLD is not None]


def _layers(backbone: Backbone, runs: list[Run], keep: Collection[int]) -> list[dict[int, Tensor]]:
    return [{layer: _layer(backbone, r, layer) for layer in keep} for r in runs]


def _layer(backbone: Backbone, base: Run, layer: int) -> Tensor:
    if layer < backbone.depth:
        return base.state(layer - 1)
    return backbone.finish(base.state(layer - 1)) if base.last_BLD is None else base.last_BLD
