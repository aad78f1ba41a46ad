"""Keys of `data`: where text and rows come from, and how they are masked and batched."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from potstill.runtime.ranges import (
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
    option,
    within,
)


@dataclass
class SourceConfig:
    """One source of text: exactly one of `files`, `hub`, `folder`, `docstrings` is given."""

    files: list[str] | None = option(None, "text files, plain or gzip")
    unit: str | None = option(None, "a sequence is a `line` or a `paragraph`; null: `data.unit`")
    hub: str | None = option(None, "data set on the hub, `Salesforce/wikitext`")
    config: str | None = option(None, "its configuration")
    revision: str | None = option(None, "its revision")
    folder: str | None = option(None, "a folder written by `save_to_disk`")
    split: str | None = option("train", "split of `hub` or `folder`")
    column: str = option("text", "column of `hub` or `folder`")
    docstrings: bool = option(False, "docstrings of the installed libraries")
    packages: list[str] | None = option(None, "use only the docstrings of these packages")


@dataclass
class AugmentConfig:
    """How the training rows of a task change from epoch to epoch."""

    share: float = within(0.0, SHARE, "share of the training rows that change in an epoch")
    mask: float = within(0.1, SHARE, "probability that a token of such a row is replaced by the mask token")
    delete: float = within(
        0.0, SHARE, "probability that a token of such a row is deleted; each text keeps at least one"
    )
    ngram: float = within(
        0.0, SHARE, "probability that each text of such a row is cut down to one of its n-grams"
    )
    ngram_size: int = within(5, SIZE, "largest size of the n-gram, from 1")
    disorder: float = within(0.0, SHARE, "probability that the tokens of such a row are moved")
    disorder_distance: int = within(3, SIZE, "places by which a token moves at most")


@dataclass
class GeneratedConfig:
    """Of data=arithmetic: rows of each part, and how hard their problems are."""

    train: int = within(
        4000, Range(1, 10**7), "for `data=arithmetic`: training rows; no problem is in two parts"
    )
    valid: int = within(500, SIZE, "validation rows")
    test: int = within(1000, SIZE, "test rows")
    people: int = within(1, Range(1, 8), "people of a problem")
    events: int = within(3, Range(1, 20), "most sentences in which somebody gets or loses something")
    largest: int = within(10, Range(4, 1000), "largest number of things")
    seed: int = within(0, SEED, "seed of the problems, independent of the run's `seed`")


@dataclass
class DataConfig:
    """Where text comes from, how it is binarized, and how it is masked and batched."""

    name: str = option(MISSING, "name of the text in reports")
    train_files: list[str] | None = option(
        None,
        "text files, plain or gzip; replace `data.train`. With rationales: JSON lines (or a JSON list, or "
        "CSV) of `input`, `label`, `rationale` and optionally `llm_label`, `choices` and "
        "`label_probabilities` (an object of choices)",
    )
    eval_files: list[str] | None = option(
        None,
        "text files; replace `data.eval`. With rationales: rows that the student is selected on; null: a "
        "tenth of the training rows",
    )
    train: list[SourceConfig] = option([], "list of training sources, see below")
    eval: list[SourceConfig] = option([], "list of evaluation sources")
    eval_share: float = within(
        0.01, PART, "share of the training texts that is held out if there is no evaluation text"
    )
    unit: str = option("line", "a sequence is a `line` or a `paragraph`")
    skip: str | None = option(
        None,
        "regular expression: lines of text files, and of a task's TSV, CSV and JSON-lines files, to leave "
        "out; comments by `\"data.skip='^#'\"`, with both kinds of quotes",
    )
    max_examples: int | None = within(
        None, COUNT, "texts read from each source; with rationales, rows of each part"
    )
    tokenizer: str | None = option(
        None, "folder or hub id; null: the teacher's or student's, else one trained on the text"
    )
    vocabulary_size: int = within(8192, Range(100, 10**7), "of a tokenizer that is trained here")
    max_length: int | None = within(
        None, LENGTH, "tokens of a sequence with special tokens; null: what the models allow, at most 512"
    )
    min_length: int = within(12, SIZE, "shorter sequences are dropped")
    max_unknown: float = within(
        0.5,
        SOME,
        "sequences with a larger share of unknown tokens are dropped; a corpus that loses most of its "
        "sequences, and rows of a task above the share, are rejected",
    )
    num_proc: int | None = within(None, NODES, "binarizing processes; null: one per core")
    engine: str = option(
        "local",
        "processes that binarize: `local`, or `ray` (Ray Data, on the cluster of `RAY_ADDRESS` or on this "
        "machine)",
    )
    cache: str = option(
        '${oc.env:POTSTILL_CACHE,"~/.cache/potstill"}',
        "folder of stores, trained tokenizers and extracted text",
    )
    batch_size: int = within(32, SIZE, "sequences of a micro-batch on one device")
    max_tokens: int | None = within(None, STEPS, "padded tokens of a micro-batch; replaces `data.batch_size`")
    eval_batch_size: int = within(32, SIZE, "sequences of an evaluation batch")
    length_bin: int = within(
        4,
        Range(0, 10**6),
        "sequences whose lengths differ by at most this many tokens are grouped; 0: no grouping",
    )
    group_size: int | None = within(
        None, SIZE, "sequences of similar length drawn together; null: those of an optimizer step"
    )
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mlm_share: float = within(0.15, SOME, "share of the positions that are masked")
    mlm_smoothing: float = within(
        0.7,
        Range(0, 5),
        "positions are masked in proportion to token count to this negative power; 0: uniformly",
    )
    mlm_replace: list[float] = within(
        [0.8, 0.1, 0.1], SHARE, "shares of masked positions: mask token, random token, unchanged"
    )
    num_workers: int = within(0, WORKERS, "processes that read batches")
    set: str | None = option(
        None,
        "`cqa` `svamp` `esnli` `anli1` `arithmetic` (generated); with files of your own, how labels are "
        "compared (`svamp`: by value); null: as texts",
    )
    folder: str | None = option(None, "folder of all sets, as published")
    generated: GeneratedConfig = field(default_factory=GeneratedConfig)
    rationales: str | None = option(
        "palm",
        "whose outputs: `palm` (`<set>/llm/<split>_CoT_<i>.json`), `gpt` (`gpt-neox/<set>/<split>.json`), "
        "a file with one output per row, or a folder of such files; `{split}` in a path stands for the "
        "part; null: none. Thoughts of a reasoning model are left out; outputs are matched to rows by "
        "order, and fields that an output repeats from its row (`id`, `input`, `question`, ...) must "
        "agree. Not read by `objective.mode=standard` with gold labels and without soft labels",
    )
    labels: str = option(
        "gt",
        "labels to learn: `gt`, the gold labels, or `llm`, those of the LLM, whose accuracy is logged; "
        "validation and test use gold labels",
    )
    share: float = within(
        1.0, SOME, "share of the training rows; with the same seed a smaller share is part of a larger one"
    )
    more_sets: list[str] = option([], "sets whose training rows are added, `[asdiv]`")
    test_files: list[str] | None = option(
        None, "rows that are reported on; with a published set, each file key replaces its own part only"
    )
    allow_partial: bool = option(False, "if outputs and rows differ in number, use the rows that have both")
    max_unparsed: float = within(
        0.05,
        SHARE,
        "largest permitted share of outputs without a rationale or a label; such outputs are counted and "
        "not trained on",
    )
    predict_prefix: str | None = option(
        None,
        "prefix of prediction; null: `predict: ` (none with `objective.mode=standard`), in `evaluate.py` "
        "that of the student's config.json (`task_specific_params`)",
    )
    explain_prefix: str | None = option(
        None, "prefix of explanation; null: `explain: `, in `evaluate.py` that of the student"
    )
    max_input_length: int = within(
        1024, LENGTH, "tokens of an input with prefix and end token; longer inputs are cut and counted"
    )
    max_target_length: int = within(
        256, Range(2, 10**6), "tokens of a target; longer targets are cut and counted"
    )
    generation_max_length: int = within(64, SIZE, "tokens that the student generates in an evaluation")
    output_rationale: bool = option(
        False,
        "generate rationales in an evaluation too: `rouge_l`, `consistency` (label and rationale agree), "
        "samples; not with `objective.mode=standard`",
    )
    restricted_decoding: bool = option(
        False,
        "also evaluate the likeliest of each row's choices, `accuracy_restricted`; needs rows with choices",
    )
