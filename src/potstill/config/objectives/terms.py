"""Terms of an objective: their weights and schedules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from potstill.runtime.ranges import STEPS_OR_NONE, WEIGHT, Section, option, within

CLM = "cross entropy of the next tokens"
LABEL = "task models: cross entropy of the labels, or squared error of the scores"
CE = (
    "KL(teacher ‖ student) · T², nats, or the loss that `objective.soft_target` names; with "
    "`benchmark.multi_label` over the two outcomes of each label, mean over labels; of answers the mean of both ends, "
    "which TextBrewer adds up (there a weight of 2)"
)
MSE = "squared distance of the logits, summed over the vocabulary"
COS = "1 - cosine of the last hidden states"


@dataclass
class TermConfig(Section):
    """A named term of the loss; weight 0 costs nothing, null (mlm, clm, label) is hard_weight where it applies."""

    weight: float | None = within(
        0.0,
        WEIGHT,
        "0: the term is not computed; null (`mlm`, `clm`, `label`): `objective.hard_weight` if the term applies",
    )
    schedule: str = option(
        "constant",
        "schedule of the weight: `constant`, `linear`, `cosine`, or one of torch's: `StepLR` `MultiStepLR` "
        "`ConstantLR` `LinearLR` `ExponentialLR` `PolynomialLR` `CosineAnnealingLR` "
        "`CosineAnnealingWarmRestarts`; or [a function of your own](#matches)",
    )
    start: float | None = within(
        None,
        WEIGHT,
        "weight at the first step; null: `weight`. torch's schedules scale it and have no `end` or `steps`",
    )
    end: float | None = within(None, WEIGHT, "weight after `steps`")
    steps: int = within(0, STEPS_OR_NONE, "optimizer steps of the schedule; 0: those of the run")
    schedule_args: dict[str, Any] = option({}, "arguments of a torch schedule, `{gamma: 0.999}`")

    @property
    def given(self) -> bool:
        """Whether the term is computed at some step."""
        return bool(self.weight) or self.schedule != "constant"


@dataclass
class TermsConfig(Section):
    """The terms of an objective."""

    def items(self) -> Iterator[tuple[str, TermConfig]]:
        """The terms by name."""
        return ((own.name, getattr(self, own.name)) for own in fields(self))

    def values(self) -> Iterator[TermConfig]:
        """The terms in their order."""
        return (term for _, term in self.items())

    def given(self, *names: str) -> dict[str, TermConfig]:
        """Those of the named terms that the objective has and computes at some step."""
        return {name: term for name, term in self.items() if name in names and term.given}


@dataclass
class LabelTerms(TermsConfig):
    """The term of a task model."""

    label: TermConfig = option(TermConfig, LABEL)
