"""Keys of `objective=diito`, of language models and of task models."""

from __future__ import annotations

from dataclasses import dataclass, field

from potstill.config.objectives.base import BETA
from potstill.config.objectives.language import KdConfig, LanguageTerms
from potstill.config.objectives.task import TaskKdConfig, TaskTerms
from potstill.runtime.ranges import INNER, within


@dataclass
class AllTerms(LanguageTerms, TaskTerms):
    """The terms of either."""


@dataclass
class DiitoConfig(KdConfig, TaskKdConfig):
    """Distillation with interventions, of language models or, with a benchmark, of task models."""

    cacheable = False
    trains_task = None

    beta: float = within(0.5, INNER, BETA)
    terms: AllTerms = field(default_factory=AllTerms)
