"""Means over an evaluation set."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torchmetrics import Metric


class Means(Metric):
    """Means by name over an evaluation set and all ranks; a name without a count has no mean.

    Args:
        names: names of the means.
    """

    full_state_update = False
    totals: Tensor
    counts: Tensor

    def __init__(self, names: Iterable[str]):
        super().__init__()
        self.names = sorted({*names})
        for state in ("totals", "counts"):
            self.add_state(state, torch.zeros(len(self.names)), dist_reduce_fx="sum")

    def reset(self) -> None:
        """Start a new set; a rank without a batch adds nothing."""
        super().reset()
        self.update(self.names[0], 0.0, 0.0)

    def update(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Add a sum over `count` units."""
        place = self.names.index(name)
        self.totals[place] += total
        self.counts[place] += count

    def compute(self) -> dict[str, float]:
        """The mean of each name that has a count."""
        sums = zip(self.names, self.totals.tolist(), self.counts.tolist(), strict=True)
        return {name: total / count for name, total, count in sums if count}
