"""Keys of `benchmark`: a dataclass for each kind of option, with the keys that it reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from potstill.config.objectives.interchange import SWAPPING, SwapConfig
from potstill.runtime.ranges import LENGTH, SIZE, THRESHOLD, Range, Section, Unless, option, within

_EVAL_FILE = "an evaluation file of your own; of language models text, which replaces `data.eval_files`"
_PART = (
    "part that `evaluate.py` reads: `eval` or `test`; a test part may have no labels (for GLUE, `submission/` holds "
    "the files for its server); null: `test` for `step_by_step`, and if there is a `benchmark.test_file`"
)


@dataclass
class PartConfig(Section):
    """A part of a benchmark: its split on the hub, its file in `benchmark.folder`."""

    split: str | None = option(None, "split on the hub")
    file: str | None = option(
        None, "file in `benchmark.folder` without its suffix: `.tsv` `.txt` `.csv` `.jsonl` `.json`, plain or gzip"
    )


@dataclass
class FurtherConfig(PartConfig):
    """An evaluation set beside `benchmark.eval`; its metrics end in its name: `accuracy_mismatched`."""

    name: str = option(MISSING, "name of the set; its metrics end in it, `val/accuracy_mismatched`")
    test_split: str | None = option(None, "split of the test set beside `benchmark.test`")
    test_file: str | None = option(None, "file of the test set beside `benchmark.test`")


@dataclass
class LayoutConfig(Section):
    """Where a row has its texts and its label: names of columns, or numbers where a file has no header."""

    texts: list[str] = option([], "columns of the text or texts: names, or numbers if the file has no header")
    label: str | None = option(None, "column of the label")


@dataclass
class BenchmarkConfig(Section):
    """What every benchmark has."""

    name: str = option(MISSING, "name in reports")
    evaluator: str | None = option(
        None, "dotted path of a class of `potstill.methods.Evaluator`; null: the evaluator of the benchmark's kind"
    )
    options: dict[str, Any] = option(
        {}, "keys of an evaluator of your own, which checks them", Unless("evaluator", None)
    )
    monitor: str = option(MISSING, "the metric that decides; empty: the first of `metrics`")
    mode: str = option("max", "whether the best is the `min` or the `max`", choices=("min", "max"))


@dataclass
class ComparedSwapConfig(SwapConfig):
    """The same, and what the students are compared with."""

    random_control: bool = option(
        True,
        "also compare a model with random weights, one for each architecture among the students: the agreement of "
        "models that have nothing in common",
        SWAPPING,
    )
    untrained_layers: list[int] | None = within(
        None, Range(0, 1000), "also compare the student of these layers of the first model, untrained", SWAPPING
    )


@dataclass
class SwappingConfig(BenchmarkConfig):
    """A benchmark that can compare models with the first one under interventions."""

    interchange: ComparedSwapConfig = field(default_factory=ComparedSwapConfig)


@dataclass
class LanguageBenchmarkConfig(SwappingConfig):
    """Predictions of language models on text.

    Attributes:
        masked: whether the models are masked, or causal, language models; None: either.
    """

    masked: ClassVar[bool | None] = None

    eval_file: str | None = option(None, _EVAL_FILE)
    positions: str = option(
        "all", "`all` real tokens that a swap reaches, or only the `masked` ones", choices=("all", "masked")
    )


@dataclass
class MlmBenchmarkConfig(LanguageBenchmarkConfig):
    """Perplexity of masked language models."""

    masked = True


@dataclass
class ClmBenchmarkConfig(LanguageBenchmarkConfig):
    """Perplexity of causal language models."""

    masked = False


@dataclass
class GenerationBenchmarkConfig(BenchmarkConfig):
    """Completions that causal language models write."""

    eval_file: str | None = option(None, _EVAL_FILE)
    max_new_tokens: int = within(
        128, SIZE, "most tokens of a completion; prompts that leave less of the model's positions get shorter ones"
    )


@dataclass
class TaskBenchmarkConfig(BenchmarkConfig):
    """A task to train for or to evaluate on: its data and metrics.

    Attributes:
        kind: of the task, without `multi_label`.
    """

    kind: ClassVar[str]

    hub: str | None = option(None, "data set on the hub")
    config: str | None = option(None, "its configuration")
    revision: str | None = option(None, "its revision")
    folder: str | None = option(None, "folder of the task's own files; replaces the hub")
    subfolder: str | None = option(
        None, "folder of the task in `benchmark.folder` if that holds all of GLUE (`CoLA`, `SST-2`, ...)"
    )
    train_file: str | None = option(
        None,
        "a training file of your own: TSV (`.tsv` `.txt`, quotes are literal), CSV or JSON lines (`.jsonl` "
        "`.json`), plain or gzip; a label is text or a number, or with `multi_label` a list; for tokens: "
        'one token per line and a blank line after each sentence, or JSON lists, `{"tokens": [...], '
        '"tags": [...]}`; for spans: SQuAD\'s JSON',
    )
    eval_file: str | None = option(None, _EVAL_FILE)
    test_file: str | None = option(None, "a test file of your own; may have no labels")
    part: str | None = option(None, _PART, choices=("eval", "test"))
    train: PartConfig = field(default_factory=PartConfig)
    eval: PartConfig = field(default_factory=PartConfig)
    test: PartConfig = field(default_factory=PartConfig)
    further: list[FurtherConfig] = option([], "more evaluation sets beside `benchmark.eval`; see below")
    more_train_files: list[str] = option([], "files of the same kind added to the training data")
    max_length: int | None = within(None, LENGTH, "tokens of a window if `data.max_length` is null")
    metrics: list[str] = option(
        [],
        "classification (empty: by the labels): `accuracy` `f1` (of the second of two labels) `f1_macro` "
        "`matthews`, with `multi_label` `f1_micro` (the default `benchmark.monitor` of `text_classification`) "
        "`f1_macro` `accuracy` (of whole sets); regression: `pearson` `spearman` `mse`; vectors: `spearman` "
        "`pearson` `average_precision` (of scores 0 and 1); tokens: `f1` `precision` "
        "`recall` (of whole entities) `accuracy` (of tags; the only one for plain tags such as `NOUN`); "
        "spans: `em` `f1`",
    )


@dataclass
class RowsConfig(TaskBenchmarkConfig):
    """Rows of one or two texts."""

    layouts: list[LayoutConfig] = option(
        [], "possible columns of the files; the first whose columns a file has is used; see below"
    )
    text_columns: list[str] | None = option(
        None,
        "columns of the text or of the pair, `[a,b]`: names, or numbers from 0 if the file has no header; "
        "with `benchmark.label_column` they replace `benchmark.layouts`",
    )
    label_column: str | None = option(None, "column of the label; a column named here must exist, in an evaluation too")
    skip_broken: bool = option(False, "leave out rows with a wrong number of columns instead of rejecting the file")


@dataclass
class RegressionConfig(RowsConfig):
    """Rows with a score."""

    kind = "regression"


@dataclass
class SimilarityConfig(RegressionConfig):
    """Pairs of texts with a score, compared by their vectors."""


@dataclass
class RetrievalConfig(BenchmarkConfig):
    """Queries, and the documents that are most similar to them."""

    folder: str | None = option(
        None, "folder with `corpus.jsonl`, `queries.jsonl` and `qrels/<part>.tsv`, as those of BEIR, plain or gzip"
    )
    part: str = option("test", "name of the file in `qrels/`")
    query_prompt: str | None = option(
        None, "name of a prompt of the model, or text, before every query; null: the prompt `query`, or the default one"
    )
    document_prompt: str | None = option(
        None,
        "name of a prompt of the model, or text, before every document; null: the prompt `document`, `passage` or "
        "`corpus`, or the default one",
    )
    metrics: list[str] = option(
        [], "metrics of the first k documents: `ndcg@k` `recall@k` `precision@k` `mrr@k` `map@k`"
    )


@dataclass
class LabelledConfig(TaskBenchmarkConfig):
    """A task with labels of its own."""

    labels: list[str] | None = option(
        None,
        "labels by number; null: those of the training file or of the evaluated model. A label in a file "
        "is a name or, if this key gives the order, its number; the mapping is logged. Spellings of one "
        "number (`1`, `1.0`, `+1`, `01`) are one label",
    )


@dataclass
class ClassificationConfig(RowsConfig, LabelledConfig, SwappingConfig):
    """Rows with a label, or a set of labels."""

    kind = "classification"

    multi_label: bool | None = option(
        None,
        "true if a row has any number of labels, false if it has one; null: true if JSON rows have lists. Must agree "
        "with `problem_type` in the model's config.json",
    )
    label_separator: str | None = option(
        None,
        "with `multi_label`: separator of the labels of a row in text files; null: a comma; blank text means no label",
    )
    aliases: list[str] = option([], "other spellings of labels in files, `contradictory=contradiction`")


@dataclass
class TokensConfig(LabelledConfig, SwappingConfig):
    """Sentences with a tag per token."""

    kind = "tokens"

    token_column: str | None = option(
        None,
        "column of the token; a number from 0 (negative: from the last) in files separated by tabs or, without tabs, "
        "by spaces; a name in JSON and on the hub; null: the first",
    )
    tag_column: str | None = option(None, "column of the tag; null: the last; `none` if there are no tags")
    label_all_tokens: bool = option(
        False,
        "training rows: all tokens of a word have its tag, those after the first `I-` where the word begins an "
        "entity; otherwise the first token alone. Evaluated are first tokens",
    )
    scheme: str | None = option(
        None,
        "scheme of the tags that the model learns, `BIO` or `BIOES`; null: that of the training file. Files may be in "
        "IOB1, BIO, BIOES, BMES or BILOU",
        choices=("BIO", "BIOES"),
    )
    too_long: str = option(
        "split",
        "sentences longer than `data.max_length` are `split` between words, or `cut` (what is cut off counts as "
        "missed)",
        choices=("split", "cut"),
    )


@dataclass
class SpansConfig(SwappingConfig, TaskBenchmarkConfig):
    """Questions whose answers are spans of a paragraph."""

    kind = "spans"

    stride: int = within(128, SIZE, "tokens from the start of one window to the start of the next")
    max_question_length: int = within(64, SIZE, "tokens of a question")
    max_answer_length: int = within(30, SIZE, "tokens of an answer")
    n_best: int = within(20, Range(1, 1000), "answers kept per question")
    answer_metric: str = option(
        "squad", "evaluation script to follow, `squad`, `squad_v2` or `cmrc`", choices=("squad", "squad_v2", "cmrc")
    )
    null_threshold: float | None = within(
        None,
        THRESHOLD,
        "predict no answer if its score exceeds the best answer's by more than this; null: always answer",
    )


@dataclass
class EfficiencyConfig(BenchmarkConfig):
    """Costs of models, without data."""

    batches: list[int] = within(
        [], SIZE, "batch sizes that are timed; operations and memory are measured with the first"
    )
    lengths: list[int] = within([], SIZE, "tokens per sequence, one run per length")
    depth: int = within(2, Range(0, 1000), "levels of the tree of parameters")


@dataclass
class StepByStepBenchmarkConfig(BenchmarkConfig):
    """Labels and rationales of students of step-by-step distillation."""

    part: str | None = option(None, _PART, choices=("eval", "test"))


BENCHMARKS: dict[str, type[BenchmarkConfig]] = {
    "mlm": MlmBenchmarkConfig,
    "clm": ClmBenchmarkConfig,
    "generation": GenerationBenchmarkConfig,
    "interchange": LanguageBenchmarkConfig,
    "classification": ClassificationConfig,
    "regression": RegressionConfig,
    "similarity": SimilarityConfig,
    "retrieval": RetrievalConfig,
    "tokens": TokensConfig,
    "spans": SpansConfig,
    "efficiency": EfficiencyConfig,
    "step_by_step": StepByStepBenchmarkConfig,
}


def swaps_of(benchmark: BenchmarkConfig) -> ComparedSwapConfig:
    """The intervention of a benchmark; one that swaps nothing where it compares no models."""
    return benchmark.interchange if isinstance(benchmark, SwappingConfig) else ComparedSwapConfig()


def language_benchmark_of(benchmark: BenchmarkConfig) -> LanguageBenchmarkConfig:
    """The benchmark of an evaluation of language models."""
    assert isinstance(benchmark, LanguageBenchmarkConfig)
    return benchmark


def generation_benchmark_of(benchmark: BenchmarkConfig) -> GenerationBenchmarkConfig:
    """The benchmark of an evaluation of what models write."""
    assert isinstance(benchmark, GenerationBenchmarkConfig)
    return benchmark


def efficiency_of(benchmark: BenchmarkConfig) -> EfficiencyConfig:
    """The benchmark where costs are measured."""
    assert isinstance(benchmark, EfficiencyConfig)
    return benchmark


def rationale_part(benchmark: BenchmarkConfig) -> str:
    """The part that students of step-by-step distillation are evaluated on, `eval` or `test`."""
    assert isinstance(benchmark, StepByStepBenchmarkConfig)
    return benchmark.part or "test"


def own_metrics(multi_label: bool | None) -> list[str]:
    """The metrics of a classification that names none, the one that decides first."""
    return ["f1_micro", "f1_macro", "accuracy"] if multi_label else ["accuracy", "f1_macro"]
