"""Keys of `objective.interchange`: what is swapped between inputs, and from which source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from potstill.runtime.ranges import SIZE, SOME, Section, Unless, option, within

SWAPPING = Unless("mapping", None)


@dataclass
class SwapConfig(Section):
    """Options of an intervention: the states that are swapped between inputs, and their positions."""

    mapping: Any = option(
        None,
        "what is swapped: a layout, a `.nm` file or a list, see [Variable mappings](#variable-mappings); "
        "with `objective=kd` only agreement is measured, with `benchmark.interchange` models are compared "
        "with the first one",
    )
    proportion: float = within(
        0.3, SOME, "share of the shorter of two sequences that is swapped, rounded down", SWAPPING
    )
    max_tokens: int | None = within(None, SIZE, "most swapped positions of a sequence", SWAPPING)
    positions: str = option(
        "consecutive",
        "`consecutive` (a span), `free`, or `masked` (a share of the masked positions, which take values at free "
        "positions of the source; all of them with `proportion=1`); never padding",
        SWAPPING,
        choices=("consecutive", "free", "masked"),
    )
    read_site: str = option(
        "block_output",
        "`block_output`; `block_input`: read one block earlier, as the published code does",
        SWAPPING,
        choices=("block_output", "block_input"),
    )


@dataclass
class InterchangeConfig(SwapConfig):
    """The same, and from which source."""

    pairing: str = option(
        "in_batch",
        "`in_batch`: the source is another sequence of the micro-batch; `dataset`: a second sequence of "
        "similar length is drawn; `shuffled`: one permutation of the training sequences pairs them for the whole "
        "run, as published; sources of a corpus are cut to the length of their base",
        SWAPPING,
        choices=("in_batch", "dataset", "shuffled"),
    )
    crossway: bool = option(False, "swap in both directions at the same positions in one step", SWAPPING)
    data_augment: bool = option(False, "swap input tokens instead of states", SWAPPING)
