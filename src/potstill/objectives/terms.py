"""Shared by all objectives: weights of named terms, the terms that read the teacher, and the sums of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

from torch import Tensor

from potstill.objectives.features import Features, Wanted
from potstill.objectives.matches import Matches
from potstill.objectives.schedules import Schedule

SOFT = ("ce", "mse", "cos")  # terms that compare teacher and student on the base run
ALIGNED = ("uld",)  # terms that compare models of different tokenizers where both have read the same text
CAUSAL = ("causal_ce", "causal_cos")  # terms that compare teacher and student on the counterfactual run


class TermSums(NamedTuple):
    """Contribution of one micro-batch to a step.

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
        weights: by term, those of the matches among them; absent or 0 is not computed.
        temperature: T of `ce` and `causal_ce`.
        schedules: of the terms whose weight changes from step to step; `weights` has their highest.
        matches: of features within teacher and student; None where there are none.
    """

    kind: str
    weights: Mapping[str, float]
    temperature: float = 1.0
    schedules: Mapping[str, Schedule] = field(default_factory=dict, kw_only=True)
    matches: Matches | None = field(default=None, kw_only=True)

    @property
    def active(self) -> tuple[str, ...]:
        """Terms with a weight."""
        return tuple(term for term, weight in self.weights.items() if weight)

    @property
    def needs_teacher(self) -> bool:
        """Whether any active term reads the teacher."""
        return self._any(SOFT + CAUSAL + ALIGNED + self.matched)

    @property
    def matched(self) -> tuple[str, ...]:
        """The terms that are matches."""
        return () if self.matches is None else self.matches.terms

    def at(self, step: int) -> Self:
        """The objective with the weights of an optimizer step, counted from 0."""
        if not self.schedules:
            return self
        return replace(
            self, weights={**self.weights, **{term: own(step) for term, own in self.schedules.items()}}
        )

    def only(self, term: str) -> Self:
        """The objective with one of its terms, at its weight."""
        return replace(self, weights={term: self.weights[term]})

    def wanted(self, teacher: int | None) -> Wanted:
        """Features that active matches read of a teacher (by its number) or of the student (None)."""
        return Wanted() if self.matches is None else self.matches.wanted(teacher, self.active)

    def matched_counts(self, step: Any) -> dict[str, int]:
        """Denominator of each match in a whole step."""
        return {} if self.matches is None else self.matches.counts(step)

    def matched_values(
        self,
        student: Sequence[Features],
        teachers: Sequence[Sequence[Features]],
        parts: Sequence[Any],
        denominators: Mapping[str, float],
    ) -> dict[str, Tensor]:
        """The share of each active match, with gradient; `parts` are the bases of a micro-batch."""
        if self.matches is None or not self._any(self.matched):
            return {}
        masks = [part.attention_mask for part in parts]
        return self.matches(student, teachers, masks, denominators, self.active)

    def _any(self, terms: Sequence[str]) -> bool:
        return any(self.weights.get(term) for term in terms)
