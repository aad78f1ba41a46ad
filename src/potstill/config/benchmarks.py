"""Keys of `benchmark`: the data of training and evaluation, the head, the metrics."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from potstill.config.learning import SwapConfig
from potstill.runtime.ranges import LENGTH, SIZE, THRESHOLD, Range, option, within


@dataclass
class PartConfig:
    """A part of a benchmark: its split on the hub, its file in `benchmark.folder`."""

    split: str | None = option(None, "split on the hub")
    file: str | None = option(
        None,
        "file in `benchmark.folder` without its suffix: `.tsv` `.txt` `.csv` `.jsonl` `.json`, plain or gzip",
    )


@dataclass
class FurtherConfig(PartConfig):
    """An evaluation set beside `benchmark.eval`; its metrics end in its name: `accuracy_mismatched`."""

    name: str = option(MISSING, "name of the set; its metrics end in it, `val/accuracy_mismatched`")
    test_split: str | None = option(None, "split of the test set beside `benchmark.test`")
    test_file: str | None = option(None, "file of the test set beside `benchmark.test`")


@dataclass
class LayoutConfig:
    """Where a row has its texts and its label: names of columns, or numbers where a file has no header."""

    texts: list[str] = option([], "columns of the text or texts: names, or numbers if the file has no header")
    label: str | None = option(None, "column of the label")


@dataclass
class BenchmarkConfig:
    """A task to train for or a benchmark to evaluate on: data, head, metrics, and the metric that decides."""

    name: str = option(MISSING, "name in reports")
    task: str = option(
        "language_model",
        "`language_model`, `classification`, `regression`, `tokens` (named entities), `spans` (extractive "
        "answers), `efficiency` (reads no data) or `rationales` (students of `objective=step_by_step`)",
    )
    evaluator: str | None = option(
        None, "dotted path of a class of `potstill.methods.Evaluator`; null: the evaluator of the task"
    )
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
    eval_file: str | None = option(
        None, "an evaluation file of your own; with `mlm` and `clm` text, which replaces `data.eval_files`"
    )
    test_file: str | None = option(None, "a test file of your own; may have no labels")
    part: str | None = option(
        None,
        "part that `evaluate.py` reads: `eval` or `test`; a test part may have no labels (for GLUE, "
        "`submission/` holds the files for its server); null: `test` if there is a `benchmark.test_file`",
    )
    train: PartConfig = field(default_factory=PartConfig)
    eval: PartConfig = field(default_factory=PartConfig)
    test: PartConfig = field(default_factory=PartConfig)
    further: list[FurtherConfig] = option([], "more evaluation sets beside `benchmark.eval`; see below")
    layouts: list[LayoutConfig] = option(
        [], "possible columns of the files; the first whose columns a file has is used; see below"
    )
    text_columns: list[str] | None = option(
        None,
        "columns of the text or of the pair, `[a,b]`: names, or numbers from 0 if the file has no header; "
        "with `benchmark.label_column` they replace `benchmark.layouts`",
    )
    label_column: str | None = option(
        None, "column of the label; a column named here must exist, in an evaluation too"
    )
    labels: list[str] | None = option(
        None,
        "labels by number; null: those of the training file or of the evaluated model. A label in a file "
        "is a name or, if this key gives the order, its number; the mapping is logged. Spellings of one "
        "number (`1`, `1.0`, `+1`, `01`) are one label",
    )
    multi_label: bool | None = option(
        None,
        "for classification: true if a row has any number of labels, false if it has one; null: true if "
        "JSON rows have lists. Must agree with `problem_type` in the model's config.json",
    )
    label_separator: str | None = option(
        None,
        "with `multi_label`: separator of the labels of a row in text files; null: a comma; blank text "
        "means no label",
    )
    aliases: list[str] = option([], "other spellings of labels in files, `contradictory=contradiction`")
    more_train_files: list[str] = option([], "files of the same kind added to the training data")
    token_column: str | None = option(
        None,
        "for tokens: column of the token; a number from 0 (negative: from the last) in files separated by "
        "tabs or, without tabs, by spaces; a name in JSON and on the hub; null: the first",
    )
    tag_column: str | None = option(
        None, "for tokens: column of the tag; null: the last; `none` if there are no tags"
    )
    scheme: str | None = option(
        None,
        "for tokens: scheme of the tags that the model learns, `BIO` or `BIOES`; null: that of the "
        "training file. Files may be in IOB1, BIO, BIOES, BMES or BILOU",
    )
    too_long: str = option(
        "split",
        "for tokens: sentences longer than `data.max_length` are `split` between words, or `cut` (what is "
        "cut off counts as missed)",
    )
    max_length: int | None = within(None, LENGTH, "tokens of a window if `data.max_length` is null")
    stride: int = within(128, SIZE, "for spans: tokens from the start of one window to the start of the next")
    max_question_length: int = within(64, SIZE, "for spans: tokens of a question")
    max_answer_length: int = within(30, SIZE, "for spans: tokens of an answer")
    n_best: int = within(20, Range(1, 1000), "for spans: answers kept per question")
    answer_metric: str = option(
        "squad", "for spans: evaluation script to follow, `squad`, `squad_v2` or `cmrc`"
    )
    null_threshold: float | None = within(
        None,
        THRESHOLD,
        "for spans: predict no answer if its score exceeds the best answer's by more than this; null: "
        "always answer",
    )
    skip_broken: bool = option(
        False, "leave out rows with a wrong number of columns instead of rejecting the file"
    )
    metrics: list[str] = option(
        [],
        "classification: `accuracy` `f1` (of the second of two labels) `f1_macro` `matthews`, with "
        "`multi_label` `f1_micro` (the default `benchmark.monitor` of `text_classification`) `f1_macro` "
        "`accuracy` (of whole sets); regression: `pearson` `spearman` `mse`; tokens: `f1` `precision` "
        "`recall` (of whole entities) `accuracy` (of tags; the only one for plain tags such as `NOUN`); "
        "spans: `em` `f1`",
    )
    positions: str = option(
        "all", "for `benchmark=interchange`: `all` real tokens that a swap reaches, or only the `masked` ones"
    )
    interchange: SwapConfig = field(default_factory=SwapConfig)
    batches: list[int] = within(
        [],
        SIZE,
        "for `benchmark=efficiency`: batch sizes that are timed; operations and memory are measured with "
        "the first",
    )
    lengths: list[int] = within(
        [], SIZE, "for `benchmark=efficiency`: tokens per sequence, one run per length"
    )
    depth: int = within(2, Range(0, 1000), "for `benchmark=efficiency`: levels of the tree of parameters")
    monitor: str = option(MISSING, "the metric that decides")
    mode: str = option(MISSING, "whether the best is the `min` or the `max`")


def own_metrics(multi_label: bool | None) -> list[str]:
    """The metrics of a classification of the user's own, the one that decides first."""
    return ["f1_micro", "f1_macro", "accuracy"] if multi_label else ["accuracy", "f1_macro"]
