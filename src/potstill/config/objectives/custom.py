"""Keys of `objective=custom`."""

from __future__ import annotations

from dataclasses import dataclass, field

from potstill.config.objectives.base import SoftTargetsConfig
from potstill.config.objectives.terms import CE, MSE, LabelTerms, TermConfig
from potstill.runtime.ranges import option


@dataclass
class CustomTerms(LabelTerms):
    """The terms on features of adaptors."""

    ce: TermConfig = option(TermConfig, CE)
    mse: TermConfig = option(TermConfig, MSE)


@dataclass
class CustomObjectiveConfig(SoftTargetsConfig):
    """Distillation of modules of the user's own."""

    cacheable = True

    terms: CustomTerms = field(default_factory=CustomTerms)
