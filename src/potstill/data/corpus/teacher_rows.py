"""Which outputs of a stored teacher belong to which tokens: numbers of units, without a table of all of them.

A unit is a token that the teacher reads. Units are numbered in the order in which outputs are computed: in order of
length, so that batches are hardly padded; of masked training step by step, since masks are another in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from potstill.data.common.batching import Ints
from potstill.data.common.steps import TrainSteps


class Units(Protocol):
    """Numbers of the units of a set of sequences."""

    @property
    def count(self) -> int:
        """Units of the whole set."""

    def starts(self, sequences: Ints, lengths: Ints, at: tuple[int, int]) -> Ints:
        """Number of the first unit of each sequence of an item.

        Args:
            sequences: (n,) their numbers.
            lengths: (n,) their tokens.
            at: epoch and step of a training item.
        """


def by_length(lengths: NDArray[np.integer]) -> tuple[Ints, Ints]:
    """The order of sequences by length (ties as they come), and where each starts if they lie in this order."""
    order = np.argsort(lengths, kind="stable")
    sizes = lengths[order].astype(np.int64)
    starts = np.empty(len(lengths), dtype=np.int64)
    starts[order] = np.cumsum(sizes) - sizes
    return order, starts


class SequenceUnits:
    """Of sequences that a teacher reads alike in every epoch: a unit a token of the corpus."""

    def __init__(self, lengths: NDArray[np.integer]) -> None:
        """Number the tokens of sequences of the given `(n,)` lengths."""
        self.order, self._starts = by_length(lengths)
        self.count = int(lengths.sum(dtype=np.int64))

    def starts(self, sequences: Ints, lengths: Ints, at: tuple[int, int]) -> Ints:
        """As `Units.starts`; neither lengths nor the step matter."""
        return self._starts[sequences]


class StepUnits:
    """Of sequences that are masked anew in every step: a unit a token of a step."""

    def __init__(self, steps: TrainSteps, count: int) -> None:
        """Number the tokens of the first `count` steps; they go through as many epochs as that takes."""
        self.steps, self._an_epoch, self.covered = steps, len(steps.plan(0)), count
        sizes: list[Ints] = []
        for epoch in range(-(-count // self._an_epoch)):
            plan = steps.plan(epoch)
            tokens = np.cumsum(steps.sequences.lengths[plan.order], dtype=np.int64)
            sizes.append(np.diff(np.append(0, tokens[plan.bounds[1:] - 1])))
        self._offsets = np.append(0, np.cumsum(np.concatenate(sizes)[:count]))
        self.count = int(self._offsets[-1])

    def items(self) -> Iterator[dict[str, Any]]:
        """The items of all steps, in their order."""
        for number in range(self.covered):
            yield self.steps[divmod(number, self._an_epoch)]

    def starts(self, sequences: Ints, lengths: Ints, at: tuple[int, int]) -> Ints:
        """As `Units.starts`.

        Raises:
            IndexError: the step is beyond those that are covered.
        """
        number = at[0] * self._an_epoch + at[1]
        if number >= self.covered:
            raise IndexError(f"step {at[1]} of epoch {at[0]} of {self.covered} steps")
        return int(self._offsets[number]) + by_length(lengths)[1]


def run_steps(an_epoch: int, *, max_steps: int, max_epochs: int | None) -> int:
    """Optimizer steps of a run of at most so many steps (0 or less: no bound) and epochs; an epoch without bounds."""
    bounds = [max_steps] if max_steps > 0 else []
    if max_epochs is not None:
        bounds.append(max_epochs * an_epoch)
    return min(bounds, default=an_epoch)


def token_units(starts: Ints, lengths: Ints) -> Ints:
    """Numbers of the units of all tokens of sequences, end to end, of where each sequence starts."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(int(lengths.sum()))
