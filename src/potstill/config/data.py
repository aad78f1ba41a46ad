"""Keys of `data`: a dataclass for each kind of data, with the keys that it reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

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
    Section,
    Unless,
    When,
    option,
    within,
)


@dataclass
class SourceConfig(Section):
    """One source of text: exactly one of `files`, `hub`, `folder`, `docstrings`, `pickle` is given."""

    files: list[str] | None = option(None, "text files, plain or gzip")
    unit: str | None = option(
        None,
        "a sequence is a `line`, a `paragraph` or a `sentence`; null: `data.unit`",
        choices=("line", "paragraph", "sentence"),
    )
    hub: str | None = option(None, "data set on the hub, `Salesforce/wikitext`")
    config: str | None = option(None, "its configuration")
    revision: str | None = option(None, "its revision")
    folder: str | None = option(None, "a folder written by `save_to_disk`")
    split: str | None = option("train", "split of `hub` or `folder`")
    column: str = option("text", "column of `hub` or `folder`")
    docstrings: bool = option(False, "docstrings of the installed libraries")
    packages: list[str] | None = option(None, "use only the docstrings of these packages")
    pickle: str | None = option(
        None,
        "token ids that `binarized_data.py` of DistilBERT or Causal-Distill has written, with the tokenizer of the "
        "run; no code is unpickled",
    )


_CHANGING = Unless("share", 0)


@dataclass
class AugmentConfig(Section):
    """How the training rows of a task change from epoch to epoch."""

    share: float = within(0.0, SHARE, "share of the training rows that change in an epoch")
    mask: float = within(0.1, SHARE, "probability that a token of such a row is replaced by the mask token", _CHANGING)
    delete: float = within(
        0.0, SHARE, "probability that a token of such a row is deleted; each text keeps at least one", _CHANGING
    )
    ngram: float = within(
        0.0, SHARE, "probability that each text of such a row is cut down to one of its n-grams", _CHANGING
    )
    ngram_size: int = within(5, SIZE, "largest size of the n-gram, from 1", _CHANGING)
    disorder: float = within(0.0, SHARE, "probability that the tokens of such a row are moved", _CHANGING)
    disorder_distance: int = within(3, SIZE, "places by which a token moves at most", _CHANGING)


@dataclass
class GeneratedConfig(Section):
    """The rows of each part of `data=arithmetic`, and the difficulty of their problems.

    A row is a function of `seed` and its number. Test rows come first, so they do not depend on the sizes of other
    parts.
    """

    train: int = within(4000, Range(1, 10**7), "training rows; no problem is in two parts")
    valid: int = within(500, SIZE, "validation rows")
    test: int = within(1000, SIZE, "test rows")
    people: int = within(1, Range(1, 8), "people of a problem")
    events: int = within(
        3,
        Range(1, 20),
        "most sentences in which somebody gets or loses something, one more if none is about the person of the "
        "question",
    )
    largest: int = within(10, Range(4, 1000), "largest number of things; a change is at most half of it")
    seed: int = within(0, SEED, "seed of the problems, independent of the run's `seed`")


@dataclass
class DataConfig(Section):
    """What every kind of data has: a name, a tokenizer, a cache and batches.

    Attributes:
        read_by: what reads data of this kind, for messages.
    """

    read_by: ClassVar[str] = "nothing"

    name: str = option(MISSING, "name of the data in reports")
    max_examples: int | None = within(None, COUNT, "texts or rows read from each source or part")
    tokenizer: str | None = option(
        None, "folder or hub id; null: the teacher's or student's, else one trained on the text of a corpus"
    )
    max_unknown: float = within(
        0.5,
        SOME,
        "sequences with a larger share of unknown tokens are dropped; a corpus that loses most of its "
        "sequences, and rows of a task above the share, are rejected",
    )
    cache: str = option(
        '${oc.env:POTSTILL_CACHE,"~/.cache/potstill"}', "folder of stores, trained tokenizers and extracted text"
    )
    batch_size: int = within(32, SIZE, "sequences of a micro-batch on one device", When("max_tokens", None))
    max_tokens: int | None = within(None, STEPS, "padded tokens of a micro-batch; replaces `data.batch_size`")
    eval_batch_size: int = within(32, SIZE, "sequences of an evaluation batch")
    length_bin: int = within(
        4, Range(0, 10**6), "sequences whose lengths differ by at most this many tokens are grouped; 0: no grouping"
    )
    group_size: int | None = within(
        None, SIZE, "sequences of similar length drawn together; null: those of an optimizer step"
    )
    num_proc: int | None = within(None, NODES, "processes that binarize a corpus; null: one per core")
    num_workers: int = within(0, WORKERS, "processes that read batches")


@dataclass
class SequenceDataConfig(DataConfig):
    """Texts that become sequences of one longest length."""

    skip: str | None = option(
        None,
        "regular expression: lines of text files, and of a task's TSV, CSV and JSON-lines files, to leave "
        "out; comments by `\"data.skip='^#'\"`, with both kinds of quotes",
    )
    max_length: int | None = within(
        None, LENGTH, "tokens of a sequence with special tokens; null: what the models allow, at most 512"
    )


@dataclass
class TextDataConfig(SequenceDataConfig):
    """The texts of a language model."""

    read_by = "language models"

    train_files: list[str] | None = option(
        None, "text files, plain or gzip, which replace `data.train`; of conversations JSON lines, JSON or Parquet"
    )
    eval_files: list[str] | None = option(None, "the same for evaluation")
    eval_share: float = within(
        0.01, PART, "share of the training texts, or prompts, that is held out if there is no evaluation text"
    )


@dataclass
class RowSourceConfig(Section):
    """A data set of rows: exactly one of `hub` and `folder` is given."""

    hub: str | None = option(None, "data set on the hub, `openai/gsm8k`, or a folder of files that `datasets` reads")
    config: str | None = option(None, "its configuration")
    revision: str | None = option(None, "its revision")
    folder: str | None = option(None, "a folder written by `save_to_disk`")
    split: str = option("train", "split of `hub` or `folder`, also `train[:10%]`")


@dataclass
class ConversationColumns(Section):
    """The columns of rows of conversations that are called otherwise."""

    messages: str | None = option(None, "column of the messages; null: `messages`")
    prompt: str | None = option(None, "column of the prompt; null: `prompt`")
    completion: str | None = option(None, "column of the completion; null: `completion`")
    answer: str | None = option(None, "column of the right answer; null: `answer`, if there is one")
    reference: str | None = option(None, "column of a text to compare with; null: `reference`, if there is one")


@dataclass
class ConversationsDataConfig(TextDataConfig):
    """Prompts and completions of a causal language model; the completions are learned."""

    train: list[RowSourceConfig] = option([], "list of data sets of rows, where there are no `data.train_files`")
    eval: list[RowSourceConfig] = option([], "the same for evaluation")
    columns: ConversationColumns = field(default_factory=ConversationColumns)
    as_messages: bool = option(
        False, "plain prompts and completions are a user's and an assistant's message of a chat, for its template"
    )
    chat_template: str | None = option(
        None, "Jinja chat template, or a file with one; null: that of the tokenizer; plain texts need none"
    )


@dataclass
class PairColumns(Section):
    """The columns of rows of several texts, where they are called otherwise."""

    query: str | None = option(
        None, "column of the query, or anchor; null: of the first pair of names in the guide that the rows have"
    )
    positive: str | None = option(None, "column of the text that suits the query; null: as `query`")
    negatives: list[str] | None = option(
        None,
        "columns of texts that do not suit the query, or lists of them; null: `negative`, `negatives` and "
        "`negative_<number>`, as far as the rows have them",
    )
    scores: list[str] | None = option(
        None,
        "columns of scores, or lists of them, for `objective.terms.margin_mse`: the positive's and each negative's, or "
        "the margin (score of the positive less that of the negative) for each negative",
    )


@dataclass
class PairsDataConfig(SequenceDataConfig):
    """Rows of a query, a positive and negatives."""

    read_by = "objective=embed"

    train_files: list[str] | None = option(
        None, "TSV, CSV, JSON lines, JSON (plain or gzip) or Parquet, which replace `data.train`"
    )
    eval_files: list[str] | None = option(None, "the same for evaluation")
    eval_share: float = within(
        0.01,
        PART,
        "share of the training rows that is held out if there are no evaluation rows; rows that share a query or a "
        "positive stay together",
    )
    train: list[RowSourceConfig] = option([], "list of data sets of rows, where there are no `data.train_files`")
    eval: list[RowSourceConfig] = option([], "the same for evaluation")
    columns: PairColumns = field(default_factory=PairColumns)


@dataclass
class CorpusDataConfig(TextDataConfig):
    """The text of a language model: its sources, and how it is binarized and masked."""

    train: list[SourceConfig] = option([], "list of training sources, see below")
    eval: list[SourceConfig] = option([], "list of evaluation sources")
    unit: str = option(
        "line",
        "a sequence is a `line`, a `paragraph` (lines up to a blank one) or a `sentence` of a line",
        choices=("line", "paragraph", "sentence"),
    )
    vocabulary_size: int = within(8192, Range(100, 10**7), "of a tokenizer that is trained here")
    min_length: int | None = within(
        None, SIZE, "shorter sequences are dropped; null: 12 tokens, for `objective=embed` none are"
    )
    packed: bool = option(
        False,
        "texts are joined end to end and cut into sequences of `data.max_length` tokens, as transformers' run_mlm and "
        "run_clm do; otherwise each text is a sequence of its own, or several",
    )
    engine: str = option(
        "local",
        "processes that binarize: `local`, or `ray` (Ray Data, on the cluster of `RAY_ADDRESS` or on this machine)",
    )
    mlm_share: float = within(0.15, SOME, "share of the positions that are masked")
    mlm_smoothing: float = within(
        0.7, Range(0, 5), "positions are masked in proportion to token count to this negative power; 0: uniformly"
    )
    token_counts: str | None = option(
        None,
        "counts for `data.mlm_smoothing` that `token_counts.py` of DistilBERT or Causal-Distill has written; null: "
        "those of the training corpus",
        Unless("mlm_smoothing", 0),
    )
    mlm_replace: list[float] = within(
        [0.8, 0.1, 0.1], SHARE, "shares of masked positions: mask token, random token, unchanged"
    )


@dataclass
class TaskDataConfig(SequenceDataConfig):
    """Rows of a task, which `benchmark` or `tasks` name."""

    read_by = "objectives and benchmarks of a task"

    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class RationaleDataConfig(DataConfig):
    """Rows with an LLM's rationales."""

    read_by = "objective=step_by_step and stage=rationales (evaluate.py: benchmark=step_by_step)"

    train_files: list[str] | None = option(
        None,
        "JSON lines (or a JSON list, or CSV) of `input`, `label`, `rationale` and optionally `llm_label`, `choices` "
        "and `label_probabilities` (an object of choices)",
    )
    eval_files: list[str] | None = option(
        None, "rows that the student is selected on; null: a tenth of the training rows"
    )
    test_files: list[str] | None = option(
        None, "rows that are reported on; with a published set, each file key replaces its own part only"
    )
    labels: str = option(
        "gt",
        "labels to learn: `gt`, the gold labels, or `llm`, those of the LLM, whose accuracy is logged; "
        "validation and test use gold labels",
    )
    share: float = within(
        1.0, SOME, "share of the training rows; with the same seed a smaller share is part of a larger one"
    )
    share_before_split: bool = option(
        False,
        "draw `data.share` before a tenth of the training rows is held out for validation, as the published runs do; "
        "`evaluate.py benchmark.part=eval` needs the same keys and seed",
    )
    watch_test: bool = option(
        False,
        "also evaluate the test rows at each validation, as `watched/...`, for curves like the published ones; "
        "nothing is selected by them",
    )
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
        None,
        "prefix of explanation, and what separates label and rationale with `objective.mode=label_then_rationale`; "
        "null: `explain: `, in `evaluate.py` that of the student",
    )
    chat: bool | None = option(
        None,
        "whether a decoder-only student reads its input as a user's message in the tokenizer's chat template; null: if "
        "it has one, in `evaluate.py` as the student was trained; false: the input and a line break",
    )
    shuffle_rationales: bool = option(
        False,
        "control: each training row gets the rationale of another one, by a derangement drawn from `seed`; not with "
        "`objective.mode=standard`",
    )
    max_input_length: int = within(
        1024,
        LENGTH,
        "tokens of an input with prefix, chat template and end token; longer inputs are cut and counted; a "
        "decoder-only student has fewer if its positions do not suffice for a target too",
    )
    max_target_length: int = within(256, Range(2, 10**6), "tokens of a target; longer targets are cut and counted")
    generation_max_length: int = within(64, SIZE, "tokens that the student generates in an evaluation")
    output_rationale: bool = option(
        False,
        "generate rationales in an evaluation too: `rouge_l`, `consistency` (label and rationale agree), "
        "samples; not with `objective.mode=standard`",
    )
    restricted_decoding: bool = option(
        False, "also evaluate the likeliest of each row's choices, `accuracy_restricted`; needs rows with choices"
    )


@dataclass
class SetDataConfig(RationaleDataConfig):
    """A published set, or rows of the user's own."""

    set: str | None = option(
        None,
        "`cqa` `svamp` `esnli` `anli1`; with files of your own, how labels are compared (`svamp`: by value); null: as "
        "texts",
    )
    folder: str | None = option(None, "folder of all sets, as published")
    rationales: str | None = option(
        "palm",
        "whose outputs: `palm` (`<set>/llm/<split>_CoT_<i>.json`), `gpt` (`gpt-neox/<set>/<split>.json`), "
        "a file with one output per row, or a folder of such files; `{split}` in a path stands for the "
        "part; null: none. Thoughts of a reasoning model are left out; outputs are matched to rows by "
        "order, and fields that an output repeats from its row (`id`, `input`, `question`, ...) must "
        "agree. Not read by `objective.mode=standard` with gold labels and without soft labels",
    )
    more_sets: list[str] = option([], "sets whose training rows are added, `[asdiv]`")
    allow_partial: bool = option(False, "if outputs and rows differ in number, use the rows that have both")


@dataclass
class ArithmeticDataConfig(RationaleDataConfig):
    """Generated word problems."""

    generated: GeneratedConfig = field(default_factory=GeneratedConfig)


DATA: dict[str, type[DataConfig]] = {
    "corpus": CorpusDataConfig,
    "conversations": ConversationsDataConfig,
    "pairs": PairsDataConfig,
    "task": TaskDataConfig,
    "rationales": SetDataConfig,
    "arithmetic": ArithmeticDataConfig,
}
_Kind = TypeVar("_Kind", bound=DataConfig)


def data_of(config: Any, kind: type[_Kind]) -> _Kind:
    """The data of a command, which are of a kind."""
    assert isinstance(config.data, kind)
    return config.data


def augment_of(data: DataConfig) -> AugmentConfig:
    """How training rows change; not at all where they are not those of a task."""
    return data.augment if isinstance(data, TaskDataConfig) else AugmentConfig()
