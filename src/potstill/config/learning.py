"""Keys of what learns from whom: `objective`, `teacher`, `tasks`, `student`, `adapted`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from potstill.ranges import (
    INNER,
    PART,
    POSITIVE,
    SHARE,
    SIZE,
    SOME,
    STEPS,
    STEPS_OR_NONE,
    TEMPERATURE,
    WEIGHT,
    Range,
    within,
)

OWN = "own"  # teacher.tokenizer: that of the teacher's own folder


@dataclass
class TermConfig:
    """A named term of the loss; weight 0 costs nothing, null (mlm, clm, label) is hard_weight where it applies."""

    weight: float | None = within(0.0, WEIGHT)
    schedule: str = "constant"  # of the weight: constant | linear | cosine | torch's: ExponentialLR ...
    start: float | None = within(None, WEIGHT)  # weight at the first step; null: `weight`
    end: float | None = within(None, WEIGHT)  # weight that a schedule goes to
    steps: int = within(0, STEPS_OR_NONE)  # optimizer steps until then
    schedule_args: dict[str, Any] = field(default_factory=dict)  # of a torch schedule


@dataclass
class TermsConfig:
    """The terms of an objective; mlm, clm and uld are of language models, label of task models."""

    label: TermConfig = field(default_factory=TermConfig)
    ce: TermConfig = field(default_factory=TermConfig)
    mlm: TermConfig = field(default_factory=TermConfig)
    clm: TermConfig = field(default_factory=TermConfig)
    mse: TermConfig = field(default_factory=TermConfig)
    cos: TermConfig = field(default_factory=TermConfig)
    uld: TermConfig = field(default_factory=TermConfig)
    causal_ce: TermConfig = field(default_factory=TermConfig)
    causal_cos: TermConfig = field(default_factory=TermConfig)


@dataclass
class SwapConfig:
    """What is swapped between inputs: which states, and at which positions."""

    mapping: Any = None  # a layout, a .nm file, or a list of {teacher: [...], student: [...]}; null: nothing
    proportion: float = within(0.3, SOME)
    max_tokens: int | None = within(None, SIZE)
    positions: str = "consecutive"  # consecutive | free | masked
    read_site: str = "block_output"  # block_output | block_input


@dataclass
class InterchangeConfig(SwapConfig):
    """The same, and from which source."""

    pairing: str = "in_batch"  # in_batch | dataset
    crossway: bool = False
    data_augment: bool = False


@dataclass
class ObjectiveConfig:
    """Which terms make the loss, and their weights."""

    name: str = MISSING
    temperature: float = within(2.0, TEMPERATURE)
    positions: str = "all"  # of ce, mse, cos and the causal terms: all | masked
    # of mlm, clm or label, whichever applies, where its own weight is null
    hard_weight: float = within(0.0, WEIGHT)
    terms: TermsConfig = field(default_factory=TermsConfig)
    matches: Any = None  # a preset's name, or a list of {teacher: 12, student: 3, loss: hidden_mse}
    soft_target: str = "kl"  # of task models: kl | cross_entropy | mse | reverse_kl | jsd
    beta: float = within(0.5, INNER)  # the teacher's share of the mixture of jsd
    temperature_schedule: str = "constant"  # of task models: constant | flsw | cwsm
    # how far a schedule moves temperatures from the base
    temperature_strength: float = within(1.0, Range(0, 1000, above=True))
    temperature_gamma: float = within(1.0, Range(0, 100, above=True))  # of flsw
    probability_shift: bool = False  # of task models: a wrong teacher is put right
    # optimizer steps between measurements of each term's share
    gradient_shares_every: int | None = within(None, STEPS)
    interchange: InterchangeConfig = field(default_factory=InterchangeConfig)
    mode: str = "task_prefix"  # of step_by_step: task_prefix | standard (labels alone)
    # of step_by_step: weight of prediction; 1 - alpha is that of explanation
    alpha: float = within(0.5, SHARE)
    # of step_by_step: the share of an LLM's label probabilities in prediction
    soft_weight: float = within(0.0, SHARE)


@dataclass
class CacheConfig:
    """Whether a teacher's outputs are computed once and read from the disk, and in which form."""

    enabled: bool = False
    folder: str | None = None  # of the stores; null: below data.cache, named by what they hold
    form: str = "top"  # of a vocabulary: top | sampled
    k: int = within(64, SIZE)  # of top: the likeliest tokens that are kept
    precision: str = "float16"  # of their log-probabilities: float16 | float32
    # of top: T that runs may have; null: objective.temperature
    temperatures: list[float] | None = within(None, TEMPERATURE)
    samples: int = within(50, Range(1, 2048))  # of sampled: draws a position
    power: float = within(1.0, Range(0.5, 1.5))  # tokens are drawn from p ** power
    systematic: bool = True  # one random number a position instead of one a draw


@dataclass
class TeacherConfig:
    """The model that is learned from."""

    model: str | None = None  # folder or hub id
    models: list[str] | None = None  # several of one task; take the place of `model`
    weights: list[float] | None = within(None, POSITIVE)  # a number a teacher; null: all alike
    tokenizer: str | None = (
        None  # own: a teacher reads its own tokens; a folder: of its tokenizer; null: the student's
    )
    average: str = "logits"  # of several teachers: logits | probabilities
    attention: str = "sdpa"
    cache: CacheConfig = field(default_factory=CacheConfig)


@dataclass
class SharedTaskConfig:
    """One of several tasks that a student learns, of objective=task_kd."""

    benchmark: str | None = None  # an option of `benchmark`
    teacher: str | None = None  # folder or hub id of a model that is fine-tuned on it
    name: str | None = None  # of the student's folder and in metrics; null: the benchmark's
    options: dict[str, Any] = field(default_factory=dict)  # keys of the benchmark: {folder: <folder>}
    matches: Any = None  # in place of objective.matches


@dataclass
class MixingConfig:
    """How several tasks share the steps of a run, and what says which student is best."""

    # a task's probability is its number of examples to this power; 0: all alike
    exponent: float = within(1.0, Range(0, 10))
    monitor: str = (
        "mean"  # mean of the tasks' monitored metrics, or the name of the task whose metric decides
    )


@dataclass
class StudentConfig:
    """The model that learns: pretrained, made of the teacher's layers, or from scratch."""

    model: str | None = None  # folder or hub id
    config: dict[str, Any] = field(default_factory=dict)  # from scratch: arguments of its transformers config
    # of the teacher's; null: half of them, first and last included
    layers: list[int] | None = within(None, Range(0, 1000))
    architecture: str | None = None  # of a student of teacher layers; null: the teacher's
    vocab_transform: bool = True  # copy the teacher's head transform too
    freeze_positions: bool = False
    freeze_token_types: bool = False
    # every dropout while training; null: as in the model's own config
    dropout: float | None = within(None, PART)
    checkpointing: str | None = (
        None  # selective | full: what the backward pass makes again instead of keeping it
    )
    attention: str = "sdpa"


def _target() -> dict[str, Any]:
    return {"_target_": None}


@dataclass
class AdaptedConfig:
    """Modules of the user's own, of objective=adapted; dotted paths, found from the working directory too."""

    teacher: dict[str, Any] = field(default_factory=_target)  # what makes an nn.Module, and its arguments
    student: dict[str, Any] = field(default_factory=_target)
    # what makes a LightningDataModule, or (training loader, validation loader or None)
    data: dict[str, Any] = field(default_factory=_target)
    adaptor: str | None = None  # (batch, outputs) -> {logits: ..., hidden: [...], ...}
    teacher_adaptor: str | None = None  # null: adaptor
    forward: str | None = None  # (model, batch) -> outputs; null: by the form of the batch
