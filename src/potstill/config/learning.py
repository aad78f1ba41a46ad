"""Keys of what learns from whom: `objective`, `teacher`, `tasks`, `student`, `adapted`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from potstill.runtime.ranges import (
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
    option,
    within,
)

ADAPTED = "adapted"  # objective.name of modules of the user's own
OWN = "own"  # teacher.tokenizer: that of the teacher's own folder


@dataclass
class TermConfig:
    """A named term of the loss; weight 0 costs nothing, null (mlm, clm, label) is hard_weight where it applies."""

    weight: float | None = within(
        0.0,
        WEIGHT,
        "0: the term is not computed; null (`mlm`, `clm`, `label`): `objective.hard_weight` if the term "
        "applies",
    )
    schedule: str = option(
        "constant",
        "schedule of the weight: `constant`, `linear`, `cosine`, or one of torch's: `StepLR` `MultiStepLR` "
        "`ConstantLR` `LinearLR` `ExponentialLR` `PolynomialLR` `CosineAnnealingLR` "
        "`CosineAnnealingWarmRestarts`",
    )
    start: float | None = within(
        None,
        WEIGHT,
        "weight at the first step; null: `weight`. torch's schedules scale it and have no `end` or `steps`",
    )
    end: float | None = within(None, WEIGHT, "weight after `steps`")
    steps: int = within(0, STEPS_OR_NONE, "optimizer steps of the schedule")
    schedule_args: dict[str, Any] = option({}, "arguments of a torch schedule, `{gamma: 0.999}`")


@dataclass
class TermsConfig:
    """The terms of an objective; mlm, clm and uld are of language models, label of task models."""

    label: TermConfig = option(
        TermConfig, "task models: cross entropy of the labels, or squared error of the scores"
    )
    ce: TermConfig = option(
        TermConfig,
        "KL(teacher ‖ student) · T², nats, or the loss that `objective.soft_target` names; with "
        "`benchmark.multi_label` over the two outcomes of each label, mean over labels",
    )
    mlm: TermConfig = option(TermConfig, "cross entropy of the masked tokens")
    clm: TermConfig = option(TermConfig, "cross entropy of the next tokens")
    mse: TermConfig = option(TermConfig, "squared distance of the logits, summed over the vocabulary")
    cos: TermConfig = option(TermConfig, "1 - cosine of the last hidden states")
    uld: TermConfig = option(
        TermConfig,
        "causal language models of different tokenizers, with `teacher.tokenizer`: distance of the sorted "
        "probabilities at T, 0 to 2, without T²; see [Teachers of another "
        "tokenizer](#teachers-of-another-tokenizer)",
    )
    causal_ce: TermConfig = option(
        TermConfig, "as `ce`, of the counterfactual runs, over the positions that the swap reaches"
    )
    causal_cos: TermConfig = option(TermConfig, "as `cos`, of the counterfactual runs")


@dataclass
class SwapConfig:
    """What is swapped between inputs: which states, and at which positions."""

    mapping: Any = option(
        None,
        "what is swapped: a layout, a `.nm` file or a list, see [Variable mappings](#variable-mappings); "
        "with `objective=kd` only agreement is measured, with `benchmark.interchange` models are compared "
        "with the first one",
    )
    proportion: float = within(
        0.3, SOME, "share of the shorter of two sequences that is swapped, rounded down"
    )
    max_tokens: int | None = within(None, SIZE, "most swapped positions of a sequence")
    positions: str = option(
        "consecutive",
        "`consecutive` (a span), `free`, or `masked` (a share of the masked positions); never padding",
    )
    read_site: str = option(
        "block_output", "`block_output`; `block_input`: read one block earlier, as the published code does"
    )


@dataclass
class InterchangeConfig(SwapConfig):
    """The same, and from which source."""

    pairing: str = option(
        "in_batch",
        "`in_batch`: the source is another sequence of the micro-batch; `dataset`: a second sequence of "
        "similar length is drawn",
    )
    crossway: bool = option(False, "swap in both directions at the same positions in one step")
    data_augment: bool = option(False, "swap input tokens instead of states")


@dataclass
class ObjectiveConfig:
    """Which terms make the loss, and their weights."""

    name: str = option(MISSING, "name of the objective")
    method: str | None = option(
        None, "dotted path of a class of `potstill.methods.Method`; null: the method of the objective"
    )
    temperature: float = within(2.0, TEMPERATURE, "T of `ce` and `causal_ce`")
    positions: str = option(
        "all", "positions of `ce`, `mse`, `cos` and the causal terms: `all` real tokens, or the `masked` ones"
    )
    hard_weight: float = within(
        0.0, WEIGHT, "weight of `mlm`, `clm` or `label`, whichever applies, if its own weight is null"
    )
    terms: TermsConfig = field(default_factory=TermsConfig)
    matches: Any = option(None, "what is compared inside the models, see [Matches](#matches)")
    soft_target: str = option(
        "kl",
        "task models, `ce` and `causal_ce`: `kl` · T²; `cross_entropy` without T², as TextBrewer; `mse` of "
        "logits / T, mean over labels (not for spans); `reverse_kl` · T²; `jsd` · T²",
    )
    beta: float = within(0.5, INNER, "for `jsd`: the teacher's share of the mixture")
    temperature_schedule: str = option(
        "constant",
        "task models: `constant`, or `flsw` (not with `benchmark.multi_label`) or `cwsm`: one temperature "
        "per row, lower if the student is uncertain or far from the teacher",
    )
    temperature_strength: float = within(
        1.0, Range(0, 1000, above=True), "how far a schedule moves the temperature from T"
    )
    temperature_gamma: float = within(1.0, Range(0, 100, above=True), "exponent of `flsw`")
    probability_shift: bool = option(
        False, "task models: if a teacher is wrong, swap its highest logit and that of the label"
    )
    gradient_shares_every: int | None = within(
        None,
        STEPS,
        "steps between measurements of each term's share of the gradient norm, "
        "`train/gradient_share_<term>`; costs one more backward pass per term",
    )
    interchange: InterchangeConfig = field(default_factory=InterchangeConfig)
    mode: str = option(
        "task_prefix", "for `step_by_step`: `task_prefix`, both tasks, or `standard`, labels only"
    )
    alpha: float = within(
        0.5,
        SHARE,
        "for `step_by_step`: alpha · predict + (1 - alpha) · explain, each a mean over its target tokens, "
        "nats",
    )
    soft_weight: float = within(
        0.0,
        SHARE,
        "for `step_by_step`: (1 - soft_weight) · hard + soft_weight · T² · cross entropy over the row's "
        "choices under the LLM's probabilities p^(1/T), mean over the rows that have them "
        "(`<split>_labels.json` beside the rationales, see `generation.logprobs`)",
    )


@dataclass
class CacheConfig:
    """Whether a teacher's outputs are computed once and read from the disk, and in which form."""

    enabled: bool = option(
        False, "compute the teacher's outputs once and read them from disk, see [Cached teachers](cache.md)"
    )
    folder: str | None = option(
        None,
        "folder of the stores, `train/` and for language models `eval/`; null: `teacher_outputs/` in "
        "`data.cache`",
    )
    form: str = option(
        "top",
        "form of a vocabulary: `top`, the likeliest tokens and the mass of the others, or `sampled`, "
        "tokens drawn without bias; labels of a task are stored whole",
    )
    k: int = within(64, SIZE, "for `top`: tokens per position")
    precision: str = option("float16", "for `top`: type of their log-probabilities, `float16` or `float32`")
    temperatures: list[float] | None = within(
        None,
        TEMPERATURE,
        "for `top`: temperatures of the runs that will read the store; null: `objective.temperature`",
    )
    samples: int = within(50, Range(1, 2048), "for `sampled`: draws per position")
    power: float = within(1.0, Range(0.5, 1.5), "for `sampled`: tokens are drawn from p ** power")
    systematic: bool = option(True, "for `sampled`: one random number per position instead of one per draw")


@dataclass
class TeacherConfig:
    """The model that is learned from."""

    model: str | None = option(None, "folder or hub id")
    models: list[str] | None = option(
        None,
        "several teachers of one task, `[a,b]`, in place of `teacher.model`; a student of layers is built "
        "from the first",
    )
    weights: list[float] | None = within(
        None, POSITIVE, "weights of their mean, one per teacher; null: equal"
    )
    tokenizer: str | None = option(
        None,
        "null: the teacher reads the student's tokens; `own`: those of its own tokenizer; or the folder of "
        "a tokenizer. See [Teachers of another tokenizer](#teachers-of-another-tokenizer)",
    )
    average: str = option("logits", "average the `logits` of several teachers, or their `probabilities` at T")
    attention: str = option(
        "sdpa",
        "attention implementation of transformers: `sdpa` `eager` `flex_attention` `flash_attention_2` to "
        "`_4`, or a kernel of the hub",
    )
    cache: CacheConfig = field(default_factory=CacheConfig)


@dataclass
class SharedTaskConfig:
    """One of several tasks that a student learns, of objective=task_kd."""

    benchmark: str | None = option(None, "an option of `benchmark`")
    teacher: str | None = option(None, "folder or hub id of a model that is fine-tuned on it")
    name: str | None = option(
        None,
        "name of the student's folder and suffix of its metrics: letters, digits and _; null: the "
        "benchmark's",
    )
    options: dict[str, Any] = option(
        {}, "keys of the benchmark: `{folder: <folder>}`, `{train_file: a.tsv, eval_file: b.tsv}`"
    )
    matches: Any = option(None, "replaces `objective.matches`; `[]`: none")


@dataclass
class MixingConfig:
    """How several tasks share the steps of a run, and what says which student is best."""

    exponent: float = within(
        1.0,
        Range(0, 10),
        "with `tasks`: a task is drawn in proportion to its number of training examples to this power; 0: "
        "uniformly",
    )
    monitor: str = option(
        "mean",
        "with `tasks`: `mean` keeps the student with the best mean of the tasks' monitored metrics, "
        "`val/mean`; or the name of the task whose metric decides",
    )


@dataclass
class StudentConfig:
    """The model that learns: pretrained, made of the teacher's layers, or from scratch."""

    model: str | None = option(None, "folder or hub id of an existing student")
    config: dict[str, Any] = option(
        {}, "a student from scratch: `model_type` and arguments of its transformers configuration"
    )
    layers: list[int] | None = within(
        None,
        Range(0, 1000),
        "teacher layers that the student is built from; null: half of them, first and last included",
    )
    architecture: str | None = option(
        None, "architecture of a student of layers; null: the teacher's; `distilbert` from a BERT"
    )
    vocab_transform: bool = option(True, "copy the transform of the teacher's head too")
    freeze_positions: bool = option(False, "do not train the position embeddings")
    freeze_token_types: bool = option(False, "do not train the token type embeddings")
    dropout: float | None = within(
        None,
        PART,
        "every dropout probability in training; null: as in the model's config, which is saved unchanged",
    )
    checkpointing: str | None = option(
        None,
        "activation checkpointing: `selective` keeps the outputs of linear layers (about half the memory, "
        "a little slower), `full` only the input of each block",
    )
    attention: str = option(
        "sdpa", "as `teacher.attention`; also for a student of the teacher's layers; a BiGRU has none"
    )


@dataclass
class AdaptedConfig:
    """Modules of the user's own, of objective=adapted; dotted paths, found from the working directory too."""

    teacher: dict[str, Any] = option(
        {"_target_": None},
        "`_target_`: a class or function that returns the teacher, an nn.Module with its weights, and its "
        "arguments; null if no term reads a teacher",
    )
    student: dict[str, Any] = option({"_target_": None}, "`_target_`: the same for the student")
    data: dict[str, Any] = option(
        {"_target_": None},
        "`_target_`: returns a LightningDataModule, or (training DataLoader, validation DataLoader or "
        "None); their batches are micro-batches, `data.*` is not read",
    )
    adaptor: str | None = option(None, "`(batch, outputs) -> dictionary` of features")
    teacher_adaptor: str | None = option(None, "adaptor of the teacher; null: `adapted.adaptor`")
    forward: str | None = option(
        None,
        "`(model, batch) -> outputs`; null: a dictionary is passed by name and a tuple by position, as far "
        "as the model's `forward` accepts them; anything else as it is",
    )
