"""Keys of `data`: where text and rows come from, and how they are masked and batched."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


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

    share: float = 0.0  # of the rows that change at all
    mask: float = 0.1  # probability of a token of such a row; likewise delete
    delete: float = 0.0
    ngram: float = 0.0  # probability that each text of such a row is cut down to an n-gram
    ngram_size: int = 5  # of 1 to this many tokens
    disorder: float = 0.0  # probability that the tokens of such a row are moved
    disorder_distance: int = 3  # by up to this many places


@dataclass
class GeneratedConfig:
    """Of data=arithmetic: rows of each part, and how hard their problems are."""

    train: int = 4000
    valid: int = 500
    test: int = 1000
    people: int = 1  # of a problem
    events: int = 3  # most sentences in which somebody gets or loses some
    largest: int = 10  # number of things
    seed: int = 0  # of the problems, whatever the run's


@dataclass
class DataConfig:
    """Where text comes from, how it is binarized, and how it is masked and batched."""

    name: str = MISSING
    train_files: list[str] | None = None  # take the place of `train`
    eval_files: list[str] | None = None  # take the place of `eval`
    train: list[SourceConfig] = field(default_factory=list)
    eval: list[SourceConfig] = field(default_factory=list)
    eval_share: float = 0.01  # without `eval`: this share of the texts of `train` is held out
    unit: str = "line"
    skip: str | None = None  # regular expression: lines of text files to leave out
    max_examples: int | None = None  # texts read of each source
    tokenizer: str | None = None  # folder or hub id; null: the teacher's or student's, else one trained here
    vocabulary_size: int = 8192  # of a tokenizer trained here
    max_length: int | None = None  # tokens, special ones counted; null: what the models allow
    min_length: int = 12
    max_unknown: float = 0.5
    num_proc: int | None = None  # binarizing processes; null: a process a core
    engine: str = "local"  # whose processes binarize: local | ray (Ray Data); the store is the same
    cache: str = '${oc.env:POTSTILL_CACHE,"~/.cache/potstill"}'  # stores, trained tokenizers, extracted text
    batch_size: int = 32  # sequences of a micro-batch on one device
    max_tokens: int | None = None  # padded tokens of a micro-batch; takes the place of batch_size
    eval_batch_size: int = 32
    length_bin: int = 4  # like lengths: within this many tokens; 0: no grouping
    group_size: int | None = None  # sequences of like length drawn together; null: an optimizer step's
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # of tasks
    mlm_share: float = 0.15
    mlm_smoothing: float = 0.7
    mlm_replace: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])  # mask, random, kept
    num_workers: int = 0  # processes that read batches; memory-mapped reads take microseconds, so 0 is fine
    # Of objective=step_by_step and benchmark=step_by_step:
    set: str | None = (
        None  # cqa | svamp | esnli | anli1 | arithmetic; of own files: how labels are compared; null: as texts
    )
    folder: str | None = None  # of all sets, laid out as published
    generated: GeneratedConfig = field(default_factory=GeneratedConfig)  # of set=arithmetic
    rationales: str | None = "palm"  # palm | gpt | the path of a file with an output a row; null: none
    labels: str = "gt"  # gt | llm: whose labels are learnt
    share: float = 1.0  # of the training rows
    more_sets: list[str] = field(default_factory=list)  # sets whose training rows are added: asdiv to svamp
    test_files: list[str] | None = None  # of own data: what is reported on
    allow_partial: bool = False  # where outputs and rows differ in number, use what there is of both
    max_unparsed: float = 0.05  # largest share of outputs without a rationale or a label
    # null: "predict: " (mode=standard: none) and "explain: "; in evaluate.py those of the student
    predict_prefix: str | None = None
    explain_prefix: str | None = None
    max_input_length: int = 1024  # tokens, prefix and end token counted
    max_target_length: int = 256
    generation_max_length: int = 64  # tokens of what a student writes
    output_rationale: bool = False  # have the student write rationales too where it is judged
    restricted_decoding: bool = False  # also judge the likeliest of a row's choices
