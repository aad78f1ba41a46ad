"""The swaps of a step: drawn for the whole step as a function of (seed, epoch, step), then cut for each micro-batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from potstill.data.common.batching import Ints, derive_seed, micro_batches
from potstill.errors import DataError
from potstill.interchange.intervene import Swap
from potstill.interchange.plans import (
    PAIR,
    Bools,
    PlanSettings,
    Swaps,
    cut_swaps,
    draw_swaps,
    partners,
    reached_tokens,
    swappable,
)

NEIGHBOURS = 512  # sources are drawn among this many neighbours in order of length on either side
EVALUATION = 2**32 - 1  # stands for the epoch in evaluation, whose masks and swaps are always the same
_SWAPS, _SOURCES = 2, 3  # random streams, beside those of masks and order


@dataclass(frozen=True)
class Exchange:
    """The swaps of one step, over all its micro-batches and ranks.

    Attributes:
        swaps: Swaps between rows of the step.
        reached: `(tokens,)` real tokens of bases, then of drawn sources, that the swaps can change.
        seed: Seed of the step.
    """

    swaps: Swaps
    reached: Bools
    seed: int

    def cut(self, rows: Ints, width: int, device: torch.device | str, source_width: int | None = None) -> Swap:
        """The swaps of one micro-batch.

        Args:
            rows: `(batch,)` rows of the step in the micro-batch.
            width: Padded length.
            device: Device of the micro-batch.
            source_width: Padded length of drawn sources; None if sources are in the batch.
        """
        own = {} if source_width is None else {"source_rows": rows, "source_width": source_width}
        places = cut_swaps(self.swaps, rows, width, **own)  # type: ignore[arg-type]
        base, source = (torch.from_numpy(indices).to(device) for indices in places)
        return Swap(base, source, self.seed)


def training_exchange(
    plan: PlanSettings, lengths: Ints, bases: int, seed: int, *, causal: bool, masked: list[Ints] | None = None
) -> Exchange:
    """Draw the swaps of a training step.

    Args:
        plan: Settings of the interventions.
        lengths: `(rows,)` real tokens of the bases, then of their drawn sources, if any.
        bases: Number of bases.
        seed: Seed of the step.
        causal: Whether a swap reaches later positions only.
        masked: Columns of the masked positions of each row; required for `positions="masked"`.
    """
    rng = np.random.default_rng([seed, _SWAPS])
    if plan.pairing == "in_batch":
        swaps = _within(lengths, np.argsort(lengths, kind="stable"), plan, rng, masked)
    else:
        swaps = draw_swaps(lengths[:bases], np.arange(bases), plan, rng, source_lengths=lengths[bases:], masked=masked)
    reached = [reached_tokens(lengths[:bases], swaps.base_row, swaps.base_column, causal=causal)]
    if bases < len(lengths):
        reached.append(reached_tokens(lengths[bases:], swaps.source_row, swaps.source_column, causal=causal))
    return Exchange(swaps, np.concatenate(reached), seed)


def evaluation_exchange(
    plan: PlanSettings, lengths: Ints, sequences: Ints, seed: int, *, causal: bool, masked: list[Ints] | None = None
) -> Exchange:
    """Draw the swaps of an evaluation batch.

    Sources are always in the batch, and the positions of a pair are a function of the seed and the pair, so an
    agreement does not depend on the batch size.

    Args:
        plan: Settings of the interventions; pairing and crossway are ignored.
        lengths: `(rows,)` real tokens.
        sequences: `(rows,)` numbers of the sequences in the data set.
        seed: Seed of the run.
        causal: See `training_exchange`.
        masked: See `training_exchange`.
    """
    own = replace(plan, pairing="in_batch", crossway=False)
    parts = []
    for unit in micro_batches(lengths, sequences=PAIR, tokens=None, unit=PAIR):
        rng = np.random.default_rng(derive_seed(seed, EVALUATION, int(sequences[unit[0]]), _SWAPS))
        parts.append(_within(lengths, unit, own, rng, masked))
    swaps = Swaps(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    reached = reached_tokens(lengths, swaps.base_row, swaps.base_column, causal=causal)
    return Exchange(swaps, reached, int(sequences[0]))


class Sources(Protocol):
    """Draws a source from the data set for each base."""

    def sources(self, bases: Ints, epoch: int, step: int) -> Ints:
        """`(bases,)` ids of the sources, a function of (seed, epoch, step)."""


class Shuffled:
    """One permutation of the data set, in which the source of a sequence has the sequence's place.

    It is the same in every epoch, and a sequence may be its own source, as in the published code of Wu et al. 2022
    (`LmSeqsDataset.prepare_causal_batch`).

    Args:
        count: Number of sequences.
        seed: Seed of the run.
    """

    def __init__(self, count: int, seed: int):
        self._order = np.random.default_rng(derive_seed(seed, 0, 0, _SOURCES)).permutation(count)

    def sources(self, bases: Ints, epoch: int, step: int) -> Ints:
        """See `Sources`."""
        return self._order[bases]


class Neighbours:
    """Draws another sequence of similar length from the data set for each base.

    Args:
        lengths: `(sequences,)` tokens of each sequence.
        seed: Seed of the run.
    """

    def __init__(self, lengths: NDArray[np.integer], seed: int):
        self.seed = seed
        self._by_length = np.argsort(lengths, kind="stable")
        self._rank = np.argsort(self._by_length)

    def sources(self, bases: Ints, epoch: int, step: int) -> Ints:
        """See `Sources`."""
        rng = np.random.default_rng(derive_seed(self.seed, epoch, step, _SOURCES))
        count = len(self._rank)
        offsets = rng.integers(1, min(NEIGHBOURS, count // 2) + 1, len(bases)) * rng.choice([-1, 1], len(bases))
        ranks = self._rank[bases]
        outside = (ranks + offsets < 0) | (ranks + offsets >= count)
        return self._by_length[ranks + np.where(outside, -offsets, offsets)]


def sources_of_plan(plan: PlanSettings, lengths: NDArray[np.integer], seed: int) -> Sources | None:
    """What draws the sources of training; None if they are in the batch.

    Args:
        plan: Settings of the interventions.
        lengths: `(sequences,)` tokens of each sequence.
        seed: Seed of the run.
    """
    if plan.pairing == "in_batch":
        return None
    return Neighbours(lengths, seed) if plan.pairing == "dataset" else Shuffled(len(lengths), seed)


def check_swappable(plan: PlanSettings, lengths: NDArray[np.integer]) -> None:
    """Check that a sequence is long enough to swap a token.

    Raises:
        DataError: All sequences are too short.
    """
    if len(lengths) < PAIR:
        raise DataError(f"objective.interchange: {len(lengths)} sequences, but a swap needs {PAIR}; use more text")
    if plan.positions != "masked" and not swappable(lengths.astype(np.int64), plan):
        raise DataError(
            f"objective.interchange.proportion={plan.proportion}: all {len(lengths):,} sequences are too short to "
            f"swap one token (the longest has {lengths.max()}); use a larger proportion or longer sequences"
        )


def _within(
    lengths: Ints, rows: Ints, plan: PlanSettings, rng: np.random.Generator, masked: list[Ints] | None
) -> Swaps:
    """Swaps among some rows of a step, which are in order of their lengths."""
    swaps = draw_swaps(
        lengths[rows],
        partners(len(rows), crossway=plan.crossway),
        plan,
        rng,
        masked=[masked[row] for row in rows] if masked else None,
    )
    return swaps._replace(base_row=rows[swaps.base_row], source_row=rows[swaps.source_row])
