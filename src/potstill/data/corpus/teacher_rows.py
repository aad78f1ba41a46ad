"""Numbers of the items of a teacher cache, one per token that the teacher reads.

They follow the order in which outputs are computed: in order of length for little padding, and for masked training
step by step, since each step has other masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from potstill.data.common.ragged import Ints, starts_of
from potstill.data.common.steps import TrainSteps


class Units(Protocol):
    """Item numbers of a set of sequences."""

    @property
    def count(self) -> int:
        """Number of items."""

    def starts(self, sequences: Ints, lengths: Ints, at: tuple[int, int]) -> Ints:
        """Number of the first item of each sequence of a step.

        Args:
            sequences: `(n,)` numbers of the sequences.
            lengths: `(n,)` their tokens.
            at: Epoch and step in training.
        """


def by_length(lengths: NDArray[np.integer]) -> tuple[Ints, Ints]:
    """Stable order of sequences by length, and the start of each in this order."""
    order = np.argsort(lengths, kind="stable")
    starts = np.empty(len(lengths), dtype=np.int64)
    starts[order] = starts_of(lengths[order])
    return order, starts


class SequenceUnits:
    """One item per token of the sequences, of their `(n,)` lengths."""

    def __init__(self, lengths: NDArray[np.integer]) -> None:
        self.order, self._starts = by_length(lengths)
        self.count = int(lengths.sum(dtype=np.int64))

    def starts(self, sequences: Ints, lengths: Ints, at: tuple[int, int]) -> Ints:
        """See `Units`."""
        return self._starts[sequences]


class StepUnits:
    """One item per token of the first `count` steps, which may span several epochs."""

    def __init__(self, steps: TrainSteps, count: int) -> None:
        self.steps, self._steps_per_epoch, self.covered = steps, len(steps.plan(0)), count
        sizes: list[Ints] = []
        for epoch in range(-(-count // self._steps_per_epoch)):
            plan = steps.plan(epoch)
            tokens = np.cumsum(steps.sequences.lengths[plan.order], dtype=np.int64)
            sizes.append(np.diff(np.append(0, tokens[plan.bounds[1:] - 1])))
        self._offsets = np.append(0, np.cumsum(np.concatenate(sizes)[:count]))
        self.count = int(self._offsets[-1])

    def items(self) -> Iterator[dict[str, Any]]:
        """All steps, in their order."""
        for number in range(self.covered):
            yield self.steps[divmod(number, self._steps_per_epoch)]

    def starts(self, sequences: Ints, lengths: Ints, at: tuple[int, int]) -> Ints:
        """See `Units`.

        Raises:
            IndexError: The step is not covered.
        """
        number = at[0] * self._steps_per_epoch + at[1]
        if number >= self.covered:
            raise IndexError(f"step {at[1]} of epoch {at[0]} is beyond {self.covered} steps")
        return int(self._offsets[number]) + by_length(lengths)[1]


def run_steps(steps_per_epoch: int, *, max_steps: int, max_epochs: int | None) -> int:
    """Optimizer steps of a run, limited by `max_steps` (if above 0) and `max_epochs`; one epoch without limits."""
    bounds = [max_steps] if max_steps > 0 else []
    if max_epochs is not None:
        bounds.append(max_epochs * steps_per_epoch)
    return min(bounds, default=steps_per_epoch)
