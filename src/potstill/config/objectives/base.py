"""What objectives of several methods have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from potstill.config.objectives.interchange import InterchangeConfig
from potstill.config.objectives.terms import CE, COS, MSE, TermConfig, TermsConfig
from potstill.runtime.ranges import (
    INNER,
    PATHS,
    STEPS,
    TEMPERATURE,
    WEIGHT,
    Range,
    Section,
    Unless,
    When,
    option,
    within,
)

BETA = "for `jsd`: the teacher's share of the mixture; near 0 it is the forward KL times beta, near 1 the reverse one"
_SCHEDULED = Unless("temperature_schedule", "constant")
_CAUSAL_CE = "as `ce`, of the counterfactual runs, over the positions that the swap reaches"
_CAUSAL_COS = "as `cos`, of the counterfactual runs"


@dataclass
class ComparingTerms(TermsConfig):
    """The terms that compare two transformers."""

    ce: TermConfig = option(TermConfig, CE)
    mse: TermConfig = option(TermConfig, MSE)
    cos: TermConfig = option(TermConfig, COS)
    causal_ce: TermConfig = option(TermConfig, _CAUSAL_CE)
    causal_cos: TermConfig = option(TermConfig, _CAUSAL_COS)


@dataclass
class ObjectiveConfig(Section):
    """What every objective has.

    Attributes:
        taught: whether it compares the student with a teacher model.
        cacheable: whether stored outputs can take the teacher's place.
        trains_task: whether it trains a task model; None: where a benchmark is given.
    """

    taught: ClassVar[bool] = False
    cacheable: ClassVar[bool] = False
    trains_task: ClassVar[bool | None] = False

    name: str = option(MISSING, "name of the objective")
    method: str | None = option(
        None, "dotted path of a class of `potstill.methods.Method`; null: the method of the objective"
    )
    options: dict[str, Any] = option({}, "keys of a method of your own, which checks them", Unless("method", None))


@dataclass
class LossConfig(ObjectiveConfig):
    """A sum of weighted terms."""

    terms: TermsConfig = field(default_factory=TermsConfig)
    gradient_shares_every: int | None = within(
        None,
        STEPS,
        "steps between measurements of each term's share of the gradient norm, "
        "`train/gradient_share_<term>`; costs one more backward pass per term",
    )


@dataclass
class MatchingConfig(LossConfig):
    """Terms and matches that compare student and teacher."""

    taught = True

    matches: Any = option(None, "what is compared inside the models, see [Matches](#matches)")


@dataclass
class TaughtConfig(MatchingConfig):
    """Terms that compare predictions of student and teacher, softened."""

    temperature: float = within(2.0, TEMPERATURE, "T of `ce` and `causal_ce`, or of the LLM's label probabilities")
    hard_weight: float = within(
        0.0, WEIGHT, "weight of `mlm`, `clm` or `label`, whichever applies, if its own weight is null"
    )


@dataclass
class SoftTargetsConfig(TaughtConfig):
    """Soft targets over the labels of rows."""

    soft_target: str = option(
        "kl",
        "task models, `ce` and `causal_ce`: `kl` · T²; `cross_entropy` without T², as TextBrewer; `mse` of "
        "logits / T, mean over labels, or over an answer's tokens; `reverse_kl` · T²; `jsd` · T²; or [a function of "
        "your own](#matches)",
        choices=("kl", "cross_entropy", "mse", "reverse_kl", "jsd", PATHS),
    )
    beta: float = within(0.5, INNER, BETA, When("soft_target", "jsd"))
    temperature_schedule: str = option(
        "constant",
        "task models: `constant`, or `flsw` (not with `benchmark.multi_label`) or `cwsm`: one temperature "
        "per row, lower if the student is uncertain or far from the teacher; or [a function of your own](#matches)",
        choices=("constant", "flsw", "cwsm", PATHS),
    )
    temperature_strength: float = within(
        1.0, Range(0, 1000, above=True), "how far a schedule moves the temperature from T", _SCHEDULED
    )
    temperature_gamma: float = within(
        1.0, Range(0, 100, above=True), "exponent of `flsw`", When("temperature_schedule", "flsw")
    )
    probability_shift: bool = option(
        False, "task models: if a teacher is wrong, swap its highest logit and that of the label"
    )


@dataclass
class DivergingConfig(TaughtConfig):
    """Terms that compare the next tokens of two language models by a divergence."""

    divergence: str = option(
        "forward_kl",
        "language models, `ce` and `causal_ce` · T²: `forward_kl`, KL(teacher ‖ student); `reverse_kl`, KL(student ‖ "
        "teacher), which seeks the teacher's modes; or `jsd`, between the two, with `objective.beta`",
        choices=("forward_kl", "reverse_kl", "jsd"),
    )
    beta: float = within(0.5, INNER, BETA, When("divergence", "jsd"))


@dataclass
class TransformersConfig(TaughtConfig):
    """Terms that compare two transformers, also under interventions."""

    terms: ComparingTerms = field(default_factory=ComparingTerms)
    interchange: InterchangeConfig = field(default_factory=InterchangeConfig)


def matches_of(objective: ObjectiveConfig) -> Any:
    """`objective.matches`; None where the objective has no teacher."""
    return objective.matches if isinstance(objective, MatchingConfig) else None


def exchange_of(objective: ObjectiveConfig) -> InterchangeConfig:
    """The intervention of an objective; one that swaps nothing where it compares no transformers."""
    return objective.interchange if isinstance(objective, TransformersConfig) else InterchangeConfig()
