"""Keys of `objective` for language models: `mlm`, `clm` and `kd`."""

from __future__ import annotations

from dataclasses import dataclass, field

from potstill.config.objectives.base import ComparingTerms, DivergingConfig, LossConfig, TransformersConfig
from potstill.config.objectives.terms import CLM, TermConfig, TermsConfig
from potstill.runtime.ranges import option

MLM = "cross entropy of the masked tokens"


@dataclass
class MlmTerms(TermsConfig):
    """The term of a masked language model."""

    mlm: TermConfig = option(TermConfig, MLM)


@dataclass
class ClmTerms(TermsConfig):
    """The term of a causal language model."""

    clm: TermConfig = option(TermConfig, CLM)


@dataclass
class LanguageTerms(ComparingTerms):
    """The terms of a language model with a teacher."""

    mlm: TermConfig = option(TermConfig, MLM)
    clm: TermConfig = option(TermConfig, CLM)
    uld: TermConfig = option(
        TermConfig,
        "causal language models of different tokenizers, with `teacher.tokenizer`: distance of the sorted "
        "probabilities at T, 0 to 2, without T²; see [Teachers of another "
        "tokenizer](#teachers-of-another-tokenizer)",
    )


@dataclass
class MlmConfig(LossConfig):
    """Masked language modelling."""

    terms: MlmTerms = field(default_factory=MlmTerms)


@dataclass
class ClmConfig(LossConfig):
    """Causal language modelling."""

    terms: ClmTerms = field(default_factory=ClmTerms)


@dataclass
class KdConfig(DivergingConfig, TransformersConfig):
    """Distillation of language models."""

    cacheable = True

    terms: LanguageTerms = field(default_factory=LanguageTerms)
    positions: str = option(
        "all",
        "positions of `ce`, `mse`, `cos` and the causal terms: `all` real tokens, or the `masked` ones; of "
        "conversations always those of completions",
        choices=("all", "masked"),
    )
