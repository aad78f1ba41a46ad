"""Keys of `objective` for task models: `finetune` and `task_kd`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from potstill.config.objectives.base import ComparingTerms, LossConfig, SoftTargetsConfig, TransformersConfig
from potstill.config.objectives.terms import LABEL, LabelTerms, TermConfig
from potstill.runtime.ranges import option


@dataclass
class TaskTerms(ComparingTerms):
    """The terms of a task model with teachers."""

    label: TermConfig = option(TermConfig, LABEL)


@dataclass
class FinetuneConfig(LossConfig):
    """Fine-tuning on labels."""

    trains_task = True

    terms: LabelTerms = field(default_factory=LabelTerms)


@dataclass
class TaskKdConfig(TransformersConfig, SoftTargetsConfig):
    """Distillation of task models."""

    cacheable = True
    trains_task: ClassVar[bool | None] = True

    terms: TaskTerms = field(default_factory=TaskTerms)
    tokens: str = option(
        "first",
        "tagged words: `ce`, `mse` and `causal_ce` compare the `first` token of each word, which is evaluated, or "
        "`all` real tokens, as TextBrewer; `label` is always of the first",
        choices=("first", "all"),
    )
