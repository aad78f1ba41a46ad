"""Keys of `objective`: a dataclass for each option, with the keys that it reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from omegaconf import MISSING

from potstill.runtime.ranges import (
    INNER,
    PATHS,
    POSITIVE,
    SHARE,
    SIZE,
    SOME,
    STEPS,
    STEPS_OR_NONE,
    TEMPERATURE,
    WEIGHT,
    Range,
    Section,
    Unless,
    When,
    option,
    within,
)

_SWAPPING = Unless("mapping", None)
_SCHEDULED = Unless("temperature_schedule", "constant")


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


_MLM = "cross entropy of the masked tokens"
_CLM = "cross entropy of the next tokens"
_LABEL = "task models: cross entropy of the labels, or squared error of the scores"
_CE = (
    "KL(teacher ‖ student) · T², nats, or the loss that `objective.soft_target` names; with "
    "`benchmark.multi_label` over the two outcomes of each label, mean over labels; of answers the mean of both ends, "
    "which TextBrewer adds up (there a weight of 2)"
)
_MSE = "squared distance of the logits, summed over the vocabulary"
_COS = "1 - cosine of the last hidden states"
_BETA = "for `jsd`: the teacher's share of the mixture; near 0 it is the forward KL times beta, near 1 the reverse one"
_CAUSAL_CE = "as `ce`, of the counterfactual runs, over the positions that the swap reaches"
_CAUSAL_COS = "as `cos`, of the counterfactual runs"


@dataclass
class MlmTerms(TermsConfig):
    """The term of a masked language model."""

    mlm: TermConfig = option(TermConfig, _MLM)


@dataclass
class ClmTerms(TermsConfig):
    """The term of a causal language model."""

    clm: TermConfig = option(TermConfig, _CLM)


@dataclass
class LabelTerms(TermsConfig):
    """The term of a task model."""

    label: TermConfig = option(TermConfig, _LABEL)


@dataclass
class CustomTerms(LabelTerms):
    """The terms on features of adaptors."""

    ce: TermConfig = option(TermConfig, _CE)
    mse: TermConfig = option(TermConfig, _MSE)


@dataclass
class ComparingTerms(TermsConfig):
    """The terms that compare two transformers."""

    ce: TermConfig = option(TermConfig, _CE)
    mse: TermConfig = option(TermConfig, _MSE)
    cos: TermConfig = option(TermConfig, _COS)
    causal_ce: TermConfig = option(TermConfig, _CAUSAL_CE)
    causal_cos: TermConfig = option(TermConfig, _CAUSAL_COS)


@dataclass
class TaskTerms(ComparingTerms):
    """The terms of a task model with teachers."""

    label: TermConfig = option(TermConfig, _LABEL)


@dataclass
class GenerativeTerms(TermsConfig):
    """The terms of a decoder that learns completions from a teacher."""

    ce: TermConfig = option(TermConfig, _CE)
    mse: TermConfig = option(TermConfig, _MSE)
    cos: TermConfig = option(TermConfig, _COS)
    clm: TermConfig = option(TermConfig, _CLM)


@dataclass
class EmbedTerms(TermsConfig):
    """The terms of a sentence encoder that follows a teacher's vectors."""

    mse: TermConfig = option(TermConfig, "squared distance of the vectors, summed over their width; mean over texts")
    cos: TermConfig = option(TermConfig, "1 - cosine of the vectors; mean over texts")
    similarity: TermConfig = option(
        TermConfig,
        "squared difference of the cosine similarities of two texts, mean over all pairs of texts of an optimizer step",
    )
    contrastive: TermConfig = option(
        TermConfig,
        "`data=text_pairs`: cross entropy of a query's positive among the positives and negatives of all rows of an "
        "optimizer step (InfoNCE), mean over rows, nats; needs no teacher",
    )
    margin_mse: TermConfig = option(
        TermConfig,
        "`data=text_pairs` with negatives: squared difference of the margins (inner product of query and positive less "
        "that of query and negative) of student and teacher, or scores of the rows; mean over negatives",
    )


@dataclass
class LanguageTerms(ComparingTerms):
    """The terms of a language model with a teacher."""

    mlm: TermConfig = option(TermConfig, _MLM)
    clm: TermConfig = option(TermConfig, _CLM)
    uld: TermConfig = option(
        TermConfig,
        "causal language models of different tokenizers, with `teacher.tokenizer`: distance of the sorted "
        "probabilities at T, 0 to 2, without T²; see [Teachers of another "
        "tokenizer](#teachers-of-another-tokenizer)",
    )


@dataclass
class AllTerms(LanguageTerms, TaskTerms):
    """The terms of either."""


@dataclass
class SwapConfig(Section):
    """Options of an intervention: the states that are swapped between inputs, and their positions."""

    mapping: Any = option(
        None,
        "what is swapped: a layout, a `.nm` file or a list, see [Variable mappings](#variable-mappings); "
        "with `objective=kd` only agreement is measured, with `benchmark.interchange` models are compared "
        "with the first one",
    )
    proportion: float = within(
        0.3, SOME, "share of the shorter of two sequences that is swapped, rounded down", _SWAPPING
    )
    max_tokens: int | None = within(None, SIZE, "most swapped positions of a sequence", _SWAPPING)
    positions: str = option(
        "consecutive",
        "`consecutive` (a span), `free`, or `masked` (a share of the masked positions, which take values at free "
        "positions of the source; all of them with `proportion=1`); never padding",
        _SWAPPING,
        choices=("consecutive", "free", "masked"),
    )
    read_site: str = option(
        "block_output",
        "`block_output`; `block_input`: read one block earlier, as the published code does",
        _SWAPPING,
        choices=("block_output", "block_input"),
    )


@dataclass
class InterchangeConfig(SwapConfig):
    """The same, and from which source."""

    pairing: str = option(
        "in_batch",
        "`in_batch`: the source is another sequence of the micro-batch; `dataset`: a second sequence of "
        "similar length is drawn; `shuffled`: one permutation of the training sequences pairs them for the whole "
        "run, as published; sources of a corpus are cut to the length of their base",
        _SWAPPING,
        choices=("in_batch", "dataset", "shuffled"),
    )
    crossway: bool = option(False, "swap in both directions at the same positions in one step", _SWAPPING)
    data_augment: bool = option(False, "swap input tokens instead of states", _SWAPPING)


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
class MlmConfig(LossConfig):
    """Masked language modelling."""

    terms: MlmTerms = field(default_factory=MlmTerms)


@dataclass
class ClmConfig(LossConfig):
    """Causal language modelling."""

    terms: ClmTerms = field(default_factory=ClmTerms)


@dataclass
class FinetuneConfig(LossConfig):
    """Fine-tuning on labels."""

    trains_task = True

    terms: LabelTerms = field(default_factory=LabelTerms)


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
    beta: float = within(0.5, INNER, _BETA, When("soft_target", "jsd"))
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
class TransformersConfig(TaughtConfig):
    """Terms that compare two transformers, also under interventions."""

    terms: ComparingTerms = field(default_factory=ComparingTerms)
    interchange: InterchangeConfig = field(default_factory=InterchangeConfig)


@dataclass
class DivergingConfig(TaughtConfig):
    """Terms that compare the next tokens of two language models by a divergence."""

    divergence: str = option(
        "forward_kl",
        "language models, `ce` and `causal_ce` · T²: `forward_kl`, KL(teacher ‖ student); `reverse_kl`, KL(student ‖ "
        "teacher), which seeks the teacher's modes; or `jsd`, between the two, with `objective.beta`",
        choices=("forward_kl", "reverse_kl", "jsd"),
    )
    beta: float = within(0.5, INNER, _BETA, When("divergence", "jsd"))


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


@dataclass
class EmbedConfig(MatchingConfig):
    """Distillation of sentence encoders."""

    cacheable = True
    trains_task = False

    terms: EmbedTerms = field(default_factory=EmbedTerms)
    pooling: str | None = option(
        None,
        "how token states become a vector, where the teacher's folder has no modules.json: `mean`, `cls`, `last`, "
        "`weighted` by place, `max` or `mean_sqrt_len`; null: as modules.json says",
        choices=("mean", "cls", "last", "weighted", "max", "mean_sqrt_len"),
    )
    prompt: str | None = option(
        None,
        "text before every training text: the name of one of the teacher's prompts, or the text itself; null: the "
        "teacher's default prompt, if it has one",
    )
    query_prompt: str | None = option(
        None,
        "the same before queries of `data=text_pairs`; null: the teacher's prompt `query`, else its default prompt",
    )
    document_prompt: str | None = option(
        None,
        "the same before positives and negatives; null: the teacher's prompt `document`, `passage` or `corpus`, else "
        "its default prompt",
    )
    scale: float = within(20.0, POSITIVE, "factor of the cosines of `contrastive`, 1 / temperature")
    margin_scale: float = within(1.0, POSITIVE, "factor of the rows' scores of `margin_mse`")
    projection: str | None = option(
        None,
        "if the vectors' widths differ: `teacher`, the teacher's vectors are reduced to their first principal "
        "components, as wide as the student; `student`, the student gets a linear layer to the teacher's width, which "
        "is saved with it; null: `teacher` for a narrower student, else `student`",
        choices=("teacher", "student"),
    )
    widths: list[int] | None = within(
        None,
        SIZE,
        "widths below the full one at which the first numbers of a vector are to be a vector, too (Matryoshka); each "
        "term is the mean over them and the full width",
    )


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


@dataclass
class DiitoConfig(KdConfig, TaskKdConfig):
    """Distillation with interventions, of language models or, with a benchmark, of task models."""

    cacheable = False
    trains_task = None

    beta: float = within(0.5, INNER, _BETA)
    terms: AllTerms = field(default_factory=AllTerms)


@dataclass
class CustomObjectiveConfig(SoftTargetsConfig):
    """Distillation of modules of the user's own."""

    cacheable = True

    terms: CustomTerms = field(default_factory=CustomTerms)


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


OBJECTIVES: dict[str, type[ObjectiveConfig]] = {
    "mlm": MlmConfig,
    "clm": ClmConfig,
    "kd": KdConfig,
    "diito": DiitoConfig,
    "gkd": GkdConfig,
    "embed": EmbedConfig,
    "finetune": FinetuneConfig,
    "task_kd": TaskKdConfig,
    "step_by_step": StepByStepConfig,
    "custom": CustomObjectiveConfig,
}


def step_by_step_of(config: Any) -> StepByStepConfig:
    """The objective of a run of step-by-step distillation."""
    assert isinstance(config.objective, StepByStepConfig)
    return config.objective


def generative_of(config: Any) -> GkdConfig:
    """The objective of a run of generative distillation."""
    assert isinstance(config.objective, GkdConfig)
    return config.objective


def embedding_of(config: Any) -> EmbedConfig:
    """The objective of a run that distils a sentence encoder."""
    assert isinstance(config.objective, EmbedConfig)
    return config.objective


def exchange_of(objective: ObjectiveConfig) -> InterchangeConfig:
    """The intervention of an objective; one that swaps nothing where it compares no transformers."""
    return objective.interchange if isinstance(objective, TransformersConfig) else InterchangeConfig()


def matches_of(objective: ObjectiveConfig) -> Any:
    """`objective.matches`; None where the objective has no teacher."""
    return objective.matches if isinstance(objective, MatchingConfig) else None
