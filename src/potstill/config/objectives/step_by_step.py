"""Keys of `objective=step_by_step`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from potstill.config.objectives.base import ObjectiveConfig
from potstill.runtime.ranges import SHARE, TEMPERATURE, Unless, option, within


@dataclass
class StepByStepConfig(ObjectiveConfig):
    """Labels and rationales as two tasks, or as one text."""

    temperature: float = within(
        1.0, TEMPERATURE, "T of `ce` and `causal_ce`, or of the LLM's label probabilities", Unless("soft_weight", 0)
    )
    mode: str = option(
        "task_prefix",
        "`task_prefix`, both tasks; `label_then_rationale`, one target of the label and then the rationale (Wadhwa et "
        "al. 2024), mean over all of its tokens; or `standard`, labels only",
        choices=("task_prefix", "label_then_rationale", "standard"),
    )
    alpha: float = within(
        0.5,
        SHARE,
        "alpha · predict + (1 - alpha) · explain, each a mean over its target tokens, nats; of `task_prefix`",
    )
    soft_weight: float = within(
        0.0,
        SHARE,
        "(1 - soft_weight) · hard + soft_weight · T² · cross entropy over the row's "
        "choices under the LLM's probabilities p^(1/T), mean over the rows that have them "
        "(`<split>_labels.json` beside the rationales, see `generation.logprobs`)",
    )


def step_by_step_of(config: Any) -> StepByStepConfig:
    """The objective of a run of step-by-step distillation."""
    assert isinstance(config.objective, StepByStepConfig)
    return config.objective
