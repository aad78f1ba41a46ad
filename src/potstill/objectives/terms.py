"""Base of all objectives: weights of named terms, what they read, and the sums of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

from torch import Tensor

from potstill.objectives.features import Wanted
from potstill.objectives.matches import Matches
from potstill.objectives.schedules import WeightSchedule

SOFT = ("ce", "mse", "cos")  # terms that compare teacher and student on the base run
ALIGNED = ("uld",)  # terms that compare models of different tokenizers where both have read the same text
CAUSAL = ("causal_ce", "causal_cos")  # terms that compare teacher and student on the counterfactual run
LABEL = "label"  # the term on the labels of a task
HARD = {"masked": "mlm", "causal": "clm"}  # the term on the tokens of a language model, by its kind


class TermSums(NamedTuple):
    """Contribution of one micro-batch to a step.

    Attributes:
        loss: scalar with gradient, the micro-batch's share of the step's weighted loss.
        terms: for each active term, detached, its share of the step's mean (unweighted).
    """

    loss: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class WeightedTerms:
    """Named terms and their weights.

    Attributes:
        kind: kind of model or of task; it decides which term reads the data's own labels.
        weights: by term, those of the matches included; a term without a weight is not computed.
        temperature: T of `ce` and `causal_ce`.
        schedules: schedules of the terms whose weight changes; `weights` has their highest weight.
        matches: matches of features within teacher and student; None for none.
    """

    kind: str
    weights: Mapping[str, float]
    temperature: float = 1.0
    schedules: Mapping[str, WeightSchedule] = field(default_factory=dict, kw_only=True)
    matches: Matches | None = field(default=None, kw_only=True)

    @property
    def active(self) -> tuple[str, ...]:
        """Terms with a weight."""
        return tuple(term for term, weight in self.weights.items() if weight)

    @property
    def hard(self) -> str:
        """The term on the data's own labels."""
        return HARD.get(self.kind, LABEL)

    @property
    def needs_teacher(self) -> bool:
        """Whether any active term reads the teacher."""
        return self._any(SOFT + CAUSAL + ALIGNED + self.matched)

    @property
    def needs_counterfactual(self) -> bool:
        """Whether any active term reads the counterfactual run."""
        return self.wanted(None).causal

    @property
    def matched(self) -> tuple[str, ...]:
        """The terms that are matches."""
        return () if self.matches is None else self.matches.terms

    def at(self, step: int, total: int) -> Self:
        """The objective with the weights of an optimizer step, counted from 0, of a run of `total` steps."""
        if not self.schedules:
            return self
        moved = {term: own(step, total) for term, own in self.schedules.items()}
        return replace(self, weights={**self.weights, **moved})

    def only(self, term: str) -> Self:
        """The objective with one of its terms, at its weight."""
        return replace(self, weights={term: self.weights[term]})

    def wanted(self, teacher: int | None) -> Wanted:
        """Features that the active terms read of a teacher (by its index) or of the student (None)."""
        features = Wanted() if self.matches is None else self.matches.wanted(teacher, self.active)
        student = teacher is None
        return replace(
            features,
            end=self._any((*SOFT, *ALIGNED, self.hard) if student else SOFT),
            # Interventions run in the first teacher.
            causal=(self._any(CAUSAL) or bool(features.causal_hidden)) and teacher in (None, 0),
            logits=self._any(("ce", "mse", "causal_ce", *((self.hard,) if student else ()))),
            last=self._any(("cos", "causal_cos")),
        )

    def counted(self, counts: Mapping[str, int], step: Any) -> dict[str, float]:
        """Denominator of each active term, at least 1.

        Args:
            counts: units of the whole step by term, without those of matches.
            step: counts tokens, pairs and sequences for the matches.
        """
        matched = {} if self.matches is None else self.matches.counts(step)
        return {term: float(max({**counts, **matched}[term], 1)) for term in self.active}

    def _any(self, terms: Sequence[str]) -> bool:
        return any(self.weights.get(term) for term in terms)
