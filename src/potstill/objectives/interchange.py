"""What causal terms read: last hidden states of base and counterfactual runs, each block run once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from potstill.interchange.intervene import Swap, blocks_read, counterfactual, run, swap_tokens
from potstill.interchange.mappings import InterchangeMapping, Site
from potstill.models.trunk import Trunk
from potstill.models.views import Flow


@dataclass(frozen=True)
class Interchange:
    """What the causal terms swap.

    Attributes:
        mappings: one is drawn a step.
        read_site: `block_output`, or `block_input` for parity with the published code.
        crossway: both directions where sources are drawn from the data set (in a batch the plan sees to it).
        data_augment: swap input tokens instead of states; no mapping is read.
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


class Hidden(NamedTuple):
    """One model's last hidden states, (batch, length, width) for each of `bases_of`; empty where nobody reads them."""

    base: list[Tensor]
    causal: list[Tensor]


def bases_of(micro: Any, exchange: Interchange | None) -> list[Any]:
    """The micro-batches that are bases: drawn sources are too where the exchange goes both ways."""
    if exchange is None or not exchange.crossway or micro.sources is None:
        return [micro]
    return [micro, micro.sources]


def hidden_states(
    trunk: Trunk, side: str, micro: Micro, exchange: Interchange | None, *, whole: bool
) -> Hidden:
    """Run one model as far as terms read it.

    Args:
        trunk: the model.
        side: `teacher` or `student`: its sites of a mapping.
        micro: sequences, and what swaps.
        exchange: what the causal terms swap; None where no term reads the counterfactual run.
        whole: whether a term reads the end of the base run.
    """
    swap, bases = micro.swap, bases_of(micro, exchange)
    if exchange is None or swap is None:
        return Hidden([_end(trunk, _embed(trunk, part)) for part in bases] if whole else [], [])
    ways = (swap, swap.reverse())
    inputs = [micro] if micro.sources is None else [micro, micro.sources]
    if exchange.data_augment:
        swapped = [
            swap_tokens(part.input_ids, other.input_ids, way)
            for part, other, way in zip(bases, inputs[::-1], ways, strict=False)
        ]
        return Hidden(
            [_end(trunk, _embed(trunk, part)) for part in bases if whole],
            [_end(trunk, _embed(trunk, part, ids)) for part, ids in zip(bases, swapped, strict=True)],
        )
    sites: tuple[Site, ...] = getattr(exchange.mappings[swap.draw % len(exchange.mappings)], side)
    first, read = {sites[0].block}, blocks_read(sites, exchange.read_site)
    mutual = len(bases) == len(inputs)  # each is base and source
    runs = [run(trunk, _embed(trunk, micro), first | read if mutual else first, whole=whole)]
    if micro.sources is not None:
        keep = first | read if mutual else read
        runs.append(run(trunk, _embed(trunk, micro.sources), keep, whole=whole and mutual))
    causal = [
        counterfactual(trunk, base, source, sites, way, exchange.read_site)
        for base, source, way in zip(runs[: len(bases)], runs[::-1], ways, strict=False)
    ]
    ends = [r.last_BLD for r in runs[: len(bases)] if r.last_BLD is not None]
    return Hidden(ends, causal)


def _embed(trunk: Trunk, micro: Any, input_ids_BL: Tensor | None = None) -> Flow:
    ids = micro.input_ids if input_ids_BL is None else input_ids_BL
    types = getattr(micro, "token_type_ids", None)  # of a task; teacher and student may differ in having them
    return trunk.embed(ids, micro.attention_mask, types if trunk.token_types > 1 else None)


def _end(trunk: Trunk, flow: Flow) -> Tensor:
    last_BLD = run(trunk, flow).last_BLD
    assert last_BLD is not None
    return last_BLD
