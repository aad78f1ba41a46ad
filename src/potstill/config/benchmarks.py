"""Keys of `benchmark`: what a task model is trained for, and what a model is judged on."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from potstill.config.learning import SwapConfig
from potstill.ranges import LENGTH, SIZE, THRESHOLD, Range, within


@dataclass
class PartConfig:
    """A part of a benchmark: its split on the hub, its file in `benchmark.folder`."""

    split: str | None = None
    file: str | None = None  # less its suffix: .tsv .txt .csv .jsonl .json, plain or .gz


@dataclass
class FurtherConfig(PartConfig):
    """An evaluation set beside `benchmark.eval`; its metrics end in its name: `accuracy_mismatched`."""

    name: str = MISSING
    test_split: str | None = None  # of the test set beside `benchmark.test`
    test_file: str | None = None


@dataclass
class LayoutConfig:
    """Where a row has its texts and its label: names of columns, or numbers where a file has no header."""

    texts: list[str] = field(default_factory=list)
    label: str | None = None


@dataclass
class BenchmarkConfig:
    """What a task model is trained for, and what a model is judged on: data, head, metrics, which metric decides."""

    name: str = MISSING
    # language_model | classification | regression | tokens | spans | efficiency | rationales
    task: str = "language_model"
    hub: str | None = None  # a data set of the hub: `nyu-mll/glue`
    config: str | None = None
    revision: str | None = None
    folder: str | None = None  # of the task's own files; takes the place of the hub
    subfolder: str | None = None  # of `folder`, where that holds a folder a task
    train_file: str | None = None  # takes the place of the folder's, like the two below
    eval_file: str | None = None  # of a language model: takes the place of data.eval_files
    test_file: str | None = None  # may be without labels
    part: str | None = None  # what evaluate.py judges: eval | test; null: test where a test_file is named
    train: PartConfig = field(default_factory=PartConfig)
    eval: PartConfig = field(default_factory=PartConfig)
    test: PartConfig = field(default_factory=PartConfig)
    further: list[FurtherConfig] = field(default_factory=list)
    layouts: list[LayoutConfig] = field(default_factory=list)  # the first whose columns a file has is taken
    text_columns: list[str] | None = None  # take the place of `layouts`, with label_column
    label_column: str | None = None
    labels: list[str] | None = (
        None  # by number; null: the training file's, or those of the model that is judged
    )
    # Of a classification: rows have any number of labels; null: where JSON rows have lists as labels.
    multi_label: bool | None = None
    label_separator: str | None = None  # with multi_label: between the labels of a row in text; null: a comma
    aliases: list[str] = field(default_factory=list)  # other spellings: `contradictory=contradiction`
    more_train_files: list[str] = field(default_factory=list)  # mixed into what is trained on
    token_column: str | None = (
        None  # of tokens: numbers in files, from 0 (null: 0 and the last), names on the hub
    )
    tag_column: str | None = None  # `none` where a file has no tags
    scheme: str | None = None  # of the tags that are learnt: BIO | BIOES; null: the training file's
    too_long: str = "split"  # sentences of tokens: split | cut
    # of spans: tokens of a window where data.max_length is null
    max_length: int | None = within(None, LENGTH)
    stride: int = within(128, SIZE)  # of spans: tokens from the start of a window to that of the next
    max_question_length: int = within(64, SIZE)
    max_answer_length: int = within(30, SIZE)
    n_best: int = within(20, Range(1, 1000))  # answers that are kept of each question
    answer_metric: str = "squad"  # whose script: squad | squad_v2 | cmrc
    # no answer where that scores better by more; null: always answer
    null_threshold: float | None = within(None, THRESHOLD)
    skip_broken: bool = False  # leave out rows with a wrong number of columns instead of refusing the file
    metrics: list[str] = field(default_factory=list)
    positions: str = "all"  # of benchmark=interchange: all | masked
    interchange: SwapConfig = field(default_factory=SwapConfig)  # with a mapping: compared with the first
    batches: list[int] = within([], SIZE)  # of benchmark=efficiency: sequences of a pass,
    lengths: list[int] = within([], SIZE)  # and tokens of each
    depth: int = within(2, Range(0, 1000))  # of the tree of parameters
    monitor: str = MISSING
    mode: str = MISSING  # min | max


def own_metrics(multi_label: bool | None) -> list[str]:
    """The metrics of a classification of the user's own, the one that decides first."""
    return ["f1_micro", "f1_macro", "accuracy"] if multi_label else ["accuracy", "f1_macro"]
