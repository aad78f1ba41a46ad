"""What every objective has: weights of named terms, which of them read the teacher, and what a step adds up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

SOFT = ("ce", "mse", "cos")  # terms that compare teacher and student on the base run
CAUSAL = ("causal_ce", "causal_cos")  # terms that compare teacher and student on the counterfactual run


class TermSums(NamedTuple):
    """What one micro-batch adds to a step.

    Attributes:
        loss: scalar with gradient, the micro-batch's share of the step's weighted loss.
        terms: each active term, detached, its share of the step's mean (unweighted).
    """

    loss: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class WeightedTerms:
    """Named terms and their weights.

    Attributes:
        kind: of model or of task; it decides what the hard term is.
        weights: by term; absent or 0 is not computed.
        temperature: T of `ce` and `causal_ce`.
    """

    kind: str
    weights: Mapping[str, float]
    temperature: float = 1.0

    @property
    def active(self) -> tuple[str, ...]:
        """Terms with a weight."""
        return tuple(term for term, weight in self.weights.items() if weight)

    @property
    def needs_teacher(self) -> bool:
        """Whether any active term reads the teacher."""
        return self._any(SOFT + CAUSAL)

    def _any(self, terms: Sequence[str]) -> bool:
        return any(self.weights.get(term) for term in terms)
