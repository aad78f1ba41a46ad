"""The sequences of each optimizer step, and the cut of a step into micro-batches.

The sequences, masks and dropout of a step are functions of (seed, epoch, step). So the same global batch gives the same
update for any number of micro-batches or ranks, and a run can resume at any step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

IGNORED = -100  # label of a token that is not predicted
_ORDER, _STEP = 0, 1  # random streams


@dataclass(frozen=True)
class EpochPlan:
    """One epoch: ordered sequence ids, cut into optimizer steps.

    Attributes:
        order: `(sequences,)` ids of sequences.
        bounds: `(steps + 1,)` start of each step in `order`, and the end.
    """

    order: Ints
    bounds: Ints

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def step(self, index: int) -> Ints:
        """The ids of the sequences of a step."""
        return self.order[self.bounds[index] : self.bounds[index + 1]]


def derive_seed(seed: int, epoch: int, step: int, purpose: int = _STEP) -> int:
    """A 63-bit seed that is a function of its arguments."""
    words = np.random.SeedSequence([seed, epoch, step, purpose]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def plan_epoch(
    lengths: NDArray[np.integer],
    *,
    seed: int,
    epoch: int,
    sequences: int,
    tokens: int | None = None,
    group_size: int | None = None,
    length_bin: int = 4,
    unit: int = 1,
) -> EpochPlan:
    """Shuffle sequences, group them by length, and shuffle the groups.

    Bins of 4 tokens are those of DistilBERT's grouped batch sampler (Sanh et al. 2019). Every sequence occurs once;
    only the last step of an epoch may be smaller.

    Args:
        lengths: `(n,)` tokens of each sequence.
        seed: Seed of the run.
        epoch: Epoch, from 0.
        sequences: Sequences of an optimizer step, over all micro-batches and ranks.
        tokens: Padded tokens of an optimizer step; replaces `sequences`.
        group_size: Sequences of similar length drawn together; a step joins several groups. None for a whole step.
        length_bin: Width of a bin in tokens; 0 for no grouping by length.
        unit: Minimum number of sequences of a step of `tokens`.

    Returns:
        The plan; its number of steps does not depend on the epoch.
    """
    rng = np.random.default_rng(derive_seed(seed, epoch, 0, _ORDER))
    order = rng.permutation(len(lengths))
    if length_bin:
        order = order[np.argsort(lengths[order] // length_bin, kind="stable")]
    if tokens is not None:
        # Each sequence counts with the upper end of its bin, so that all epochs have equally many steps.
        width = max(length_bin, 1)
        upper = ((lengths[order] // width + 1) * width - 1).astype(np.int64)
        return _shuffle_groups(order, _bounds(upper, sequences, tokens, unit), rng)
    group = min(group_size or sequences, sequences)
    grouped = _shuffle_groups(order, _even_bounds(len(order), group), rng) if length_bin else EpochPlan(order, order)
    return EpochPlan(grouped.order, _even_bounds(len(order), sequences))


def _even_bounds(count: int, size: int) -> Ints:
    return np.append(np.arange(0, count, size), count)


def _bounds(widths: Ints, sequences: int, tokens: int | None, unit: int) -> Ints:
    """Cut ascending widths into parts of whole units; a remainder belongs to the last unit."""
    ends = widths[unit - 1 :: unit]
    if tokens is None:
        bounds = _even_bounds(len(ends), max(sequences // unit, 1))
    else:
        bounds = _budget_bounds(ends, tokens // unit)
    return np.append(bounds[:-1] * unit, len(widths))


def _budget_bounds(widths: Ints, tokens: int) -> Ints:
    """Cut ascending widths so that (sequences x largest width) of each part is at most `tokens`."""
    bounds, start = [0], 0
    while start < len(widths):
        end = min(start + max(tokens // int(widths[start]), 1), len(widths))
        end = min(end, start + max(tokens // int(widths[end - 1]), 1))
        bounds.append(end)
        start = end
    return np.array(bounds, dtype=np.int64)


def _shuffle_groups(order: Ints, bounds: Ints, rng: np.random.Generator) -> EpochPlan:
    """Shuffle groups; the last one, which may be smaller, stays last."""
    groups = np.split(order, bounds[1:-1])
    shuffled = [groups[i] for i in rng.permutation(len(groups) - 1)] + groups[-1:]
    sizes = np.array([len(group) for group in shuffled], dtype=np.int64)
    return EpochPlan(np.concatenate(shuffled), np.append(0, np.cumsum(sizes)))


class StepSampler:
    """(epoch, step) pairs of the current epoch, from the current position.

    Args:
        steps: Steps per epoch.
        done: Returns the number of finished steps. It is called when iteration begins, since Lightning may build the
            loader before it restores a checkpoint.
    """

    def __init__(self, steps: int, done: Callable[[], int]):
        self.steps, self.done = steps, done

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, start = divmod(self.done(), self.steps)
        for step in range(start, self.steps):
            yield epoch, step

    def __len__(self) -> int:
        return self.steps


def micro_batches(
    lengths: Ints, *, sequences: int, tokens: int | None, rank: int = 0, world: int = 1, unit: int = 1
) -> list[Ints]:
    """Cut a step into this rank's micro-batches of similar lengths.

    Args:
        lengths: `(n,)` tokens of the step's sequences.
        sequences: Maximum number of sequences of a micro-batch.
        tokens: Maximum number of padded tokens of a micro-batch; replaces `sequences`.
        rank: Rank of this process.
        world: Number of processes; each takes every `world`-th unit in order of length.
        unit: Sequences, neighbours in order of length, that stay together.

    Returns:
        Indices within the step, one array per micro-batch; at least one array, which may be empty.
    """
    order = np.argsort(lengths, kind="stable")
    unit_of = np.minimum(np.arange(len(order)) // unit, max(len(order) // unit - 1, 0))
    mine = order[unit_of % world == rank]
    return np.split(mine, _bounds(lengths[mine], sequences, tokens, unit)[1:-1])


def length_groups(lengths: Ints, share: float = 0.25, tokens: int = 256) -> list[Ints]:
    """Cut sequences into groups that have much less padding one by one than together.

    Args:
        lengths: `(n,)` tokens of each sequence, ascending.
        share: Share of the padded tokens that a cut saves at least.
        tokens: Tokens that it saves at least.

    Returns:
        Indices of the sequences of each group, ascending.
    """
    count = np.arange(1, len(lengths))
    together = len(lengths) * int(lengths[-1])
    saved = together - count * lengths[:-1] - (len(lengths) - count) * lengths[-1]
    if not len(saved) or saved.max() < max(share * together, tokens):
        return [np.arange(len(lengths))]
    cut = int(saved.argmax()) + 1
    upper = length_groups(lengths[cut:], share, tokens)
    return [*length_groups(lengths[:cut], share, tokens), *(cut + group for group in upper)]
