"""Keys of `data`: where text and rows come from, and how they are masked and batched."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from potstill.ranges import (
    COUNT,
    LENGTH,
    NODES,
    PART,
    SEED,
    SHARE,
    SIZE,
    SOME,
    STEPS,
    WORKERS,
    Range,
    within,
)


@dataclass
class SourceConfig:
    """One source of text: exactly one of `files`, `hub`, `folder`, `docstrings` is given."""

    files: list[str] | None = None  # plain or .gz text files
    unit: str | None = None  # line | paragraph; null: data.unit
    hub: str | None = None  # a data set of the hub: `Salesforce/wikitext`
    config: str | None = None
    revision: str | None = None
    folder: str | None = None  # a `save_to_disk` folder
    split: str | None = "train"
    column: str = "text"
    docstrings: bool = False
    packages: list[str] | None = None  # docstrings of these only


@dataclass
class AugmentConfig:
    """How the training rows of a task change from epoch to epoch."""

    share: float = within(0.0, SHARE)  # of the rows that change at all
    mask: float = within(0.1, SHARE)  # probability for a token of such a row; the same for delete
    delete: float = within(0.0, SHARE)
    ngram: float = within(0.0, SHARE)  # probability that each text of such a row is cut down to an n-gram
    ngram_size: int = within(5, SIZE)  # of 1 to this many tokens
    disorder: float = within(0.0, SHARE)  # probability that the tokens of such a row are moved
    disorder_distance: int = within(3, SIZE)  # by up to this many places


@dataclass
class GeneratedConfig:
    """Of data=arithmetic: rows of each part, and how hard their problems are."""

    train: int = within(4000, Range(1, 10**7))
    valid: int = within(500, SIZE)
    test: int = within(1000, SIZE)
    people: int = within(1, Range(1, 8))  # of a problem
    events: int = within(3, Range(1, 20))  # most sentences in which somebody gets or loses some
    largest: int = within(10, Range(4, 1000))  # number of things
    seed: int = within(0, SEED)  # of the problems, whatever the run's


@dataclass
class DataConfig:
    """Where text comes from, how it is binarized, and how it is masked and batched."""

    name: str = MISSING
    train_files: list[str] | None = None  # take the place of `train`
    eval_files: list[str] | None = None  # take the place of `eval`
    train: list[SourceConfig] = field(default_factory=list)
    eval: list[SourceConfig] = field(default_factory=list)
    eval_share: float = within(0.01, PART)  # without `eval`: this share of the texts of `train` is held out
    unit: str = "line"
    skip: str | None = None  # regular expression: lines of text files to leave out
    max_examples: int | None = within(None, COUNT)  # texts read of each source
    tokenizer: str | None = None  # folder or hub id; null: the teacher's or student's, else one trained here
    vocabulary_size: int = within(8192, Range(100, 10**7))  # of a tokenizer trained here
    max_length: int | None = within(None, LENGTH)  # tokens, special ones counted; null: what the models allow
    min_length: int = within(12, SIZE)
    max_unknown: float = within(0.5, SOME)
    num_proc: int | None = within(None, NODES)  # binarizing processes; null: a process a core
    engine: str = "local"  # whose processes binarize: local | ray (Ray Data); the store is the same
    cache: str = '${oc.env:POTSTILL_CACHE,"~/.cache/potstill"}'  # stores, trained tokenizers, extracted text
    batch_size: int = within(32, SIZE)  # sequences of a micro-batch on one device
    # padded tokens of a micro-batch; takes the place of batch_size
    max_tokens: int | None = within(None, STEPS)
    eval_batch_size: int = within(32, SIZE)
    length_bin: int = within(4, Range(0, 10**6))  # like lengths: within this many tokens; 0: no grouping
    # sequences of like length drawn together; null: an optimizer step's
    group_size: int | None = within(None, SIZE)
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # of tasks
    mlm_share: float = within(0.15, SOME)
    mlm_smoothing: float = within(0.7, Range(0, 5))
    mlm_replace: list[float] = within([0.8, 0.1, 0.1], SHARE)  # mask, random, kept
    # processes that read batches; memory-mapped reads take microseconds, so 0 is fine
    num_workers: int = within(0, WORKERS)
    # Of objective=step_by_step and benchmark=step_by_step:
    set: str | None = (
        None  # cqa | svamp | esnli | anli1 | arithmetic; of own files: how labels are compared; null: as texts
    )
    folder: str | None = None  # of all sets, laid out as published
    generated: GeneratedConfig = field(default_factory=GeneratedConfig)  # of set=arithmetic
    rationales: str | None = "palm"  # palm | gpt | the path of a file with an output a row; null: none
    labels: str = "gt"  # gt | llm: whose labels are learnt
    share: float = within(1.0, SOME)  # of the training rows
    more_sets: list[str] = field(default_factory=list)  # sets whose training rows are added: asdiv to svamp
    test_files: list[str] | None = None  # of own data: what is reported on
    allow_partial: bool = False  # where outputs and rows differ in number, use what there is of both
    max_unparsed: float = within(0.05, SHARE)  # largest share of outputs without a rationale or a label
    # null: "predict: " (mode=standard: none) and "explain: "; in evaluate.py those of the student
    predict_prefix: str | None = None
    explain_prefix: str | None = None
    max_input_length: int = within(1024, LENGTH)  # tokens, prefix and end token counted
    max_target_length: int = within(256, Range(2, 10**6))
    generation_max_length: int = within(64, SIZE)  # tokens of what a student writes
    output_rationale: bool = False  # have the student write rationales too where it is judged
    restricted_decoding: bool = False  # also judge the likeliest of a row's choices
