"""Keys of `objective=gkd`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from potstill.config.objectives.base import DivergingConfig
from potstill.config.objectives.terms import CE, CLM, COS, MSE, TermConfig, TermsConfig
from potstill.runtime.ranges import SHARE, SIZE, SOME, Range, Section, Unless, option, within


@dataclass
class GenerativeTerms(TermsConfig):
    """The terms of a decoder that learns completions from a teacher."""

    ce: TermConfig = option(TermConfig, CE)
    mse: TermConfig = option(TermConfig, MSE)
    cos: TermConfig = option(TermConfig, COS)
    clm: TermConfig = option(TermConfig, CLM)


@dataclass
class SamplingConfig(Section):
    """How completions are sampled, by the student in training and by the teacher before it."""

    temperature: float = within(
        1.0, Range(0.01, 100, apart=0), "temperature of the samples; 0: the likeliest token each time (greedy)"
    )
    top_p: float = within(
        1.0, SOME, "tokens are drawn from the smallest set of likeliest ones with this mass", Unless("temperature", 0)
    )
    max_new_tokens: int = within(
        128, SIZE, "most tokens of a completion; prompts that leave less of the models' positions get shorter ones"
    )
    batch_size: int | None = within(
        None, SIZE, "most prompts that are completed at a time; null: those of an optimizer step on one device"
    )


@dataclass
class GkdConfig(DivergingConfig):
    """Distillation of decoders on completions that the student, or the teacher, writes."""

    trains_task = False

    terms: GenerativeTerms = field(default_factory=GenerativeTerms)
    on_policy: float = within(
        0.5, SHARE, "share of the optimizer steps whose completions the student samples; the others have given ones"
    )
    sequence_kd: bool = option(
        False,
        "the teacher writes the completions of the training prompts once, before training, and they take the place of "
        "the given ones; stored in `data.cache`",
    )
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


def generative_of(config: Any) -> GkdConfig:
    """The objective of a run of generative distillation."""
    assert isinstance(config.objective, GkdConfig)
    return config.objective
