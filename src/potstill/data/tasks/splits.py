"""The task of a benchmark's configuration, and the sources of its parts. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from potstill.data.tasks.columns import ColumnFile, HubSentences, ListFile
from potstill.data.tasks.entities import mixed_tags
from potstill.data.tasks.labels import (
    CLASSIFICATION,
    METRICS,
    MULTI_LABEL,
    REGRESSION,
    SPANS,
    TOKENS,
    Task,
)
from potstill.data.tasks.questions import HubQuestions, QuestionFile, References
from potstill.data.tasks.readers import (
    ENDINGS,
    OBJECTS,
    HubRows,
    Layout,
    PartSource,
    TaskFile,
    find_file,
    suffix_of,
)
from potstill.errors import ConfigError, PotstillError
from potstill.models.head_labels import SPAN_LABELS

EFFICIENCY = "efficiency"  # benchmark.task of the benchmark that reads no data
KINDS = (CLASSIFICATION, REGRESSION, TOKENS, SPANS)  # benchmark.task of task models
SEPARATOR = ","  # benchmark.label_separator where it is null
SQUAD_V2 = "squad_v2"  # the script of sets that have questions without answers
SCRIPTS = ("squad", SQUAD_V2, "cmrc")  # benchmark.answer_metric
MEAN = "mean"  # mixing.monitor: the mean of the tasks' monitored metrics, `val/mean`
MAIN = ""  # name of the evaluation set of the monitored metric


class TaskParts(NamedTuple):
    """Sources of the training set, with additional files, and evaluation sets by name."""

    train: list[PartSource]
    eval: dict[str, PartSource]


def is_task(benchmark: DictConfig | None) -> bool:
    """Whether a benchmark is of a task model (not a perplexity)."""
    return benchmark is not None and benchmark.task in KINDS


def kind_of(benchmark: DictConfig) -> str:
    """`Task.kind` of a benchmark."""
    sets = benchmark.task == CLASSIFICATION and benchmark.multi_label
    return MULTI_LABEL if sets else str(benchmark.task)


def settle_labels(benchmark: DictConfig | None, skip: str | None, *, training: bool) -> None:
    """Set `benchmark.multi_label` if it is null and the rows have lists as labels.

    Errors of the files are left to later checks.

    Args:
        benchmark: Changed in place.
        skip: `data.skip`.
        training: Whether to read the training set, or the evaluation sets.
    """
    if benchmark is None or benchmark.task != CLASSIFICATION or benchmark.multi_label is not None:
        return
    try:
        judged = [] if training else judged_parts(benchmark, None, skip).values()
        parts = training_parts(benchmark, None, skip).train if training else judged
        if any(isinstance(source, TaskFile) and source.lists_labels() for source in parts):
            benchmark.multi_label = True
    except PotstillError:
        return


def task_of(benchmark: DictConfig) -> Task:
    """The task of a benchmark's configuration.

    Raises:
        ConfigError: Invalid keys.
    """
    kind, name = kind_of(benchmark), benchmark.name
    if benchmark.task not in KINDS:
        raise ConfigError(f"benchmark.task={benchmark.task}: one of {', '.join(KINDS)}")
    if benchmark.multi_label and kind != MULTI_LABEL:
        raise ConfigError(f"benchmark.multi_label=true: {name} is benchmark.task={kind}; use false")
    if benchmark.label_separator is not None and not (benchmark.label_separator and kind == MULTI_LABEL):
        raise ConfigError(
            f"benchmark.label_separator='{benchmark.label_separator}': must be null, or text with "
            "benchmark.multi_label=true"
        )
    labels = tuple(map(str, benchmark.labels or ()))
    if kind in (REGRESSION, SPANS) and labels:
        raise ConfigError(f"benchmark.labels={list(labels)}: must be null for benchmark.task={kind} ({name})")
    if kind == TOKENS and (mixed := mixed_tags(labels)):
        raise ConfigError(
            f"benchmark.labels={list(labels)}: invalid tag '{mixed[0]}', expected O or tags such as {mixed[1]}"
        )
    if labels and len(set(labels)) < max(len(labels), 2):
        raise ConfigError(f"benchmark.labels={list(labels)}: must be two or more distinct names")
    metrics = tuple(benchmark.metrics)
    if not metrics or set(metrics) - set(METRICS[kind]):
        raise ConfigError(
            f"benchmark.metrics={list(metrics)}: some of {', '.join(METRICS[kind])}, the metrics of a {kind}"
        )
    if benchmark.monitor not in metrics:
        raise ConfigError(
            f"benchmark.monitor={benchmark.monitor}: one of benchmark.metrics, {', '.join(metrics)}"
        )
    if benchmark.mode not in ("min", "max"):
        raise ConfigError(f"benchmark.mode={benchmark.mode}: min or max")
    known = SPAN_LABELS if kind == SPANS else ()
    task = Task(
        name, kind, known, metrics, benchmark.monitor, benchmark.mode, _aliases(benchmark), ordered=bool(labels),
        separator=benchmark.label_separator or SEPARATOR,
    )  # fmt: skip
    return task.with_labels(labels) if labels else task


def training_parts(benchmark: DictConfig, max_examples: int | None, skip: str | None = None) -> TaskParts:
    """Training and validation sources of a benchmark, all with labels.

    Raises:
        ConfigError: A part without a source.
    """
    parts = _Parts(benchmark, max_examples, skip)
    more = [
        parts.file(Path(path), "benchmark.more_train_files", "train") for path in benchmark.more_train_files
    ]
    return TaskParts([parts.part("train"), *more], parts.evaluation(labelled=True))


def judged_parts(
    benchmark: DictConfig, max_examples: int | None, skip: str | None = None
) -> dict[str, PartSource]:
    """Evaluation sources by name; they may lack labels.

    Raises:
        ConfigError: A part without a source, or an unknown part.
    """
    parts = _Parts(benchmark, max_examples, skip)
    part = benchmark.part or ("test" if benchmark.test_file else "eval")
    if part == "eval":
        return parts.evaluation(labelled=False)
    if part != "test":
        raise ConfigError(f"benchmark.part={part}: must be eval or test")
    sets = {MAIN: parts.part("test", labelled=False)}
    if not benchmark.test_file:
        for number, further in enumerate(benchmark.further):
            if further.test_split or further.test_file:
                place = OmegaConf.create({"split": further.test_split, "file": further.test_file})
                sets[further.name] = parts.part(f"further.{number}", labelled=False, place=place)
    return sets


class _Parts:
    """Creates the sources of a benchmark's parts."""

    def __init__(self, benchmark: DictConfig, max_examples: int | None, skip: str | None):
        self.benchmark, self.max_examples, self.skip = benchmark, max_examples, skip
        sets = kind_of(benchmark) == MULTI_LABEL
        self.separator = (benchmark.label_separator or SEPARATOR) if sets else None
        self.layouts = _layouts(benchmark) if benchmark.task in (CLASSIFICATION, REGRESSION) else ()

    def evaluation(self, labelled: bool) -> dict[str, PartSource]:
        """The evaluation sets by name."""
        sets = {MAIN: self.part("eval", labelled=labelled)}
        if self.benchmark.eval_file:  # a user's own set replaces all
            return sets
        for number, further in enumerate(self.benchmark.further):
            key = f"further.{number}"
            if OmegaConf.is_missing(further, "name"):
                raise ConfigError(f"benchmark.{key}.name=???: must be a name, such as mismatched")
            sets[further.name] = self.part(key, labelled=labelled, place=further)
        return sets

    def part(self, part: str, *, labelled: bool = True, place: DictConfig | None = None) -> PartSource:
        """The part's file, else its file in the folder, else its split on the hub."""
        benchmark = self.benchmark
        given = benchmark[f"{part}_file"] if place is None else None
        place = benchmark[part] if place is None else place
        if given:
            return self.file(Path(given), f"benchmark.{part}_file", part, labelled=labelled)
        if benchmark.folder and place.file:
            path = self._in_folder(part, place.file)
            return self.file(path, "benchmark.folder", part, labelled=labelled)
        if benchmark.hub and place.split:
            return self._hub(place.split, part, labelled)
        folder_too = ", or benchmark.folder=<folder>" if place.file else ""
        raise ConfigError(
            f"benchmark.{_key_of(part)}=null: benchmark={benchmark.name} needs its {part} part; set "
            f"benchmark.{_key_of(part)}=<file>{folder_too}"
        )

    def file(self, path: Path, key: str, part: str, *, labelled: bool = True) -> PartSource:
        """The source of a file."""
        path = path.expanduser().absolute()
        if self.benchmark.task == SPANS:
            self._check_skip("a JSON document of questions")
            references = References(labelled, self.benchmark.answer_metric == SQUAD_V2)
            return QuestionFile(path, part == "train", self.max_examples, key, references)
        if self.benchmark.task == TOKENS and suffix_of(path) in OBJECTS:
            tokens, tags = self.benchmark.token_column, self.benchmark.tag_column
            names: dict[str, Any] = {}
            if tags is not None:
                names["tag_columns"] = () if tags == "none" else (str(tags),)
            names |= {"labels": tuple(self.benchmark.labels)} if self.benchmark.labels else {}
            return ListFile(
                path,
                str(tokens or "tokens"),
                **names,
                labelled=labelled,
                max_examples=self.max_examples,
                key=key,
                skip=self.skip,
            )
        if self.benchmark.task == TOKENS:
            token, tag = (_number(self.benchmark, name, default) for name, default in _COLUMNS.items())
            return ColumnFile(path, token or 0, tag, labelled, self.max_examples, key, self.skip)
        broken = self.benchmark.skip_broken
        return TaskFile(
            path, self.layouts, labelled, broken, self.max_examples, key, self.skip, self.separator
        )

    def _check_skip(self, what: str) -> None:
        if self.skip is not None:
            raise ConfigError(
                f"data.skip={self.skip}: skips lines of files, but {self.benchmark.name} is read from {what}; use null"
            )

    def _in_folder(self, part: str, names: str) -> Path:
        """The file of a part with one of `names` (`train|eng.train`)."""
        benchmark = self.benchmark
        folder = Path(benchmark.folder).expanduser().absolute()
        if not folder.is_dir():
            raise ConfigError(
                f"benchmark.folder={benchmark.folder}: does not exist; set the folder of the task's files"
            )
        within = ""
        if benchmark.subfolder and (folder / benchmark.subfolder).is_dir():  # of all of GLUE
            within = f"{benchmark.subfolder}/"
        found = (find_file(place, name) for place in (folder, folder / within) for name in names.split("|"))
        path = next((path for path in found if path), None)
        if path is None:
            raise ConfigError(
                f"benchmark.folder={benchmark.folder}: has no {within}{names.replace('|', ' or ')} "
                f"({' '.join(ENDINGS).strip()}, plain or .gz), the {part} part of {benchmark.name}; or set "
                f"benchmark.{_key_of(part)}"
            )
        return path

    def _hub(self, split: str, part: str, labelled: bool) -> PartSource:
        benchmark = self.benchmark
        self._check_skip(f"the hub ({benchmark.hub})")
        place: dict[str, Any] = {
            "path": benchmark.hub, "config": benchmark.config, "split": split, "revision": benchmark.revision,
            "max_examples": self.max_examples, "key": "benchmark.hub",
        }  # fmt: skip
        if benchmark.task == SPANS:
            references = References(labelled, benchmark.answer_metric == SQUAD_V2)
            return HubQuestions(**place, column="question", training=part == "train", references=references)
        if benchmark.task == TOKENS:
            tokens, tags = (_name(benchmark[key], hub) for key, hub in _HUB_COLUMNS.items())
            labels = tuple(benchmark.labels) if benchmark.labels else None
            return HubSentences(
                **place, column=str(tokens), tag_column=tags, labels=labels, labelled=labelled,
                named=benchmark.tag_column is not None,
            )  # fmt: skip
        named = next((layout for layout in self.layouts if not layout.numbered), self.layouts[0])
        return HubRows(
            **place, column=named.texts[0], layouts=self.layouts, labelled=labelled, separator=self.separator
        )


# Default columns of a token and its tag, in a file of columns and in a data set of the hub.
_COLUMNS = {"token_column": 0, "tag_column": -1}
_HUB_COLUMNS = {"token_column": "tokens", "tag_column": "ner_tags"}


def _number(benchmark: DictConfig, key: str, default: int) -> int | None:
    value = benchmark[key]
    if value is None:
        return default
    try:
        return None if value == "none" else int(value)
    except ValueError:
        raise ConfigError(
            f"benchmark.{key}={value}: must be a column number, from 0, or negative to count from the last"
        ) from None


def _name(value: str | None, default: str) -> str | None:
    return default if value is None else None if value == "none" else str(value)


def _key_of(part: str) -> str:
    return f"{part}.file" if part.startswith("further") else f"{part}_file"


def _layouts(benchmark: DictConfig) -> tuple[Layout, ...]:
    known = tuple(
        Layout(tuple(map(str, layout.texts)), None if layout.label is None else str(layout.label))
        for layout in benchmark.layouts
    )
    own = benchmark.label_column
    layouts = known
    if benchmark.text_columns is not None:
        layouts = (Layout(tuple(map(str, benchmark.text_columns)), own or "label", own is not None),)
    elif own is not None:
        layouts = tuple(
            replace(layout, label=own, given=True) for layout in known if layout.numbered == own.isdigit()
        )
        if known and not layouts:
            raise ConfigError(
                f"benchmark.label_column={own}: {benchmark.name} has no numbered columns; use a name, or set "
                "benchmark.text_columns, too"
            )
    given = f"benchmark.text_columns={list(benchmark.text_columns or ())}"
    if not layouts or not all(1 <= len(layout.texts) <= 2 for layout in layouts):
        raise ConfigError(f"{given}: must be one column, or two for pairs of texts, [a,b]")
    if known and len(known[0].texts) != len(layouts[0].texts):
        raise ConfigError(
            f"{given}: {benchmark.name} has {len(known[0].texts)} text columns, not {len(layouts[0].texts)}; use "
            "benchmark=text_classification for another task"
        )
    label = layouts[0].label
    if layouts[0].numbered and label is not None and not label.isdigit():
        raise ConfigError(f"benchmark.label_column={label}: must be a number, like the text columns")
    return layouts


def _aliases(benchmark: DictConfig) -> dict[str, str]:
    pairs = [str(alias).partition("=") for alias in benchmark.aliases]
    if wrong := [spelling for spelling, equals, _ in pairs if not equals]:
        raise ConfigError(
            f"benchmark.aliases=[{wrong[0]}]: must be spelling=label, such as contradictory=contradiction"
        )
    return {spelling.strip(): label.strip() for spelling, _, label in pairs}
