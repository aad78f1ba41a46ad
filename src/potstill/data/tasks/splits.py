"""The task of a benchmark's configuration, and the sources of its parts. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from potstill.config.benchmarks import (
    BenchmarkConfig,
    ClassificationConfig,
    LabelledConfig,
    PartConfig,
    RowsConfig,
    SpansConfig,
    TaskBenchmarkConfig,
    TokensConfig,
    own_metrics,
)
from potstill.data.common.records import suffix_of
from potstill.data.tasks.columns import ColumnSource, ListSource
from potstill.data.tasks.entities import mixed_tags
from potstill.data.tasks.labels import METRICS, MULTI_LABEL, SPANS, Task
from potstill.data.tasks.questions import QuestionSource
from potstill.data.tasks.readers import Layout, RowSource
from potstill.data.tasks.sources import ENDINGS, OBJECTS, DataFile, HubSplit, PartSource, find_file
from potstill.errors import ConfigError, PotstillError
from potstill.models.heads import SPAN_LABELS

SEPARATOR = ","  # benchmark.label_separator where it is null
SQUAD_V2 = "squad_v2"  # the script of sets that have questions without answers
MEAN = "mean"  # mixing.monitor: the mean of the tasks' monitored metrics, `val/mean`
MAIN = ""  # name of the evaluation set of the monitored metric


class TaskParts(NamedTuple):
    """Sources of the training set, with additional files, and evaluation sets by name."""

    train: list[PartSource]
    eval: dict[str, PartSource]


def kind_of(benchmark: TaskBenchmarkConfig) -> str:
    """`Task.kind` of a benchmark."""
    return MULTI_LABEL if isinstance(benchmark, ClassificationConfig) and benchmark.multi_label else benchmark.kind


def settle_labels(benchmark: BenchmarkConfig | None, skip: str | None, *, training: bool) -> None:
    """Set `benchmark.multi_label` if it is null and the rows have lists as labels.

    Errors of the files are left to later checks.

    Args:
        benchmark: Changed in place.
        skip: `data.skip`.
        training: Whether to read the training set, or the evaluation sets.
    """
    if not isinstance(benchmark, ClassificationConfig) or benchmark.multi_label is not None:
        return
    try:
        evaluated = [] if training else evaluated_parts(benchmark, None, skip).values()
        parts = training_parts(benchmark, None, skip).train if training else evaluated
        if any(isinstance(source, RowSource) and source.lists_labels() for source in parts):
            benchmark.multi_label = True
    except PotstillError:
        return


def task_of(benchmark: TaskBenchmarkConfig) -> Task:
    """The task of a benchmark's configuration.

    Raises:
        ConfigError: Invalid keys.
    """
    kind, labels = kind_of(benchmark), _labels(benchmark)
    own: dict[str, Any] = {}
    if isinstance(benchmark, ClassificationConfig):
        own = {"aliases": _aliases(benchmark), "separator": _separator(benchmark)}
    metrics = tuple(benchmark.metrics or (own_metrics(kind == MULTI_LABEL) if own else ()))
    if not metrics or set(metrics) - set(METRICS[kind]):
        raise ConfigError(
            f"benchmark.metrics={list(metrics)}: some of {', '.join(METRICS[kind])}, the metrics of a {kind}"
        )
    monitor = benchmark.monitor or metrics[0]
    if monitor not in metrics:
        raise ConfigError(f"benchmark.monitor={monitor}: one of benchmark.metrics, {', '.join(metrics)}")
    known = SPAN_LABELS if kind == SPANS else ()
    task = Task(benchmark.name, kind, known, metrics, monitor, benchmark.mode, ordered=bool(labels), **own)
    return task.with_labels(labels) if labels else task


def training_parts(benchmark: TaskBenchmarkConfig, max_examples: int | None, skip: str | None = None) -> TaskParts:
    """Training and validation sources of a benchmark, all with labels.

    Raises:
        ConfigError: A part without a source.
    """
    parts = _Parts(benchmark, max_examples, skip)
    more = [parts.file(Path(path), "benchmark.more_train_files", "train") for path in benchmark.more_train_files]
    return TaskParts([parts.part("train"), *more], parts.evaluation(labelled=True))


def evaluated_parts(
    benchmark: TaskBenchmarkConfig, max_examples: int | None, skip: str | None = None
) -> dict[str, PartSource]:
    """Evaluation sources by name; they may lack labels.

    Raises:
        ConfigError: A part without a source.
    """
    parts = _Parts(benchmark, max_examples, skip)
    if (benchmark.part or ("test" if benchmark.test_file else "eval")) == "eval":
        return parts.evaluation(labelled=False)
    sets = {MAIN: parts.part("test", labelled=False)}
    if not benchmark.test_file:
        for number, further in enumerate(benchmark.further):
            if further.test_split or further.test_file:
                place = PartConfig(further.test_split, further.test_file)
                sets[further.name] = parts.part(f"further.{number}", labelled=False, place=place)
    return sets


class _Parts:
    """Creates the sources of a benchmark's parts."""

    def __init__(self, benchmark: TaskBenchmarkConfig, max_examples: int | None, skip: str | None):
        self.benchmark, self.max_examples, self.skip = benchmark, max_examples, skip
        self.layouts = _layouts(benchmark) if isinstance(benchmark, RowsConfig) else ()

    def evaluation(self, labelled: bool) -> dict[str, PartSource]:
        """The evaluation sets by name."""
        sets = {MAIN: self.part("eval", labelled=labelled)}
        if self.benchmark.eval_file:  # a user's own set replaces all
            return sets
        for number, further in enumerate(self.benchmark.further):
            key = f"further.{number}"
            sets[further.name] = self.part(key, labelled=labelled, place=further)
        return sets

    def part(self, part: str, *, labelled: bool = True, place: PartConfig | None = None) -> PartSource:
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
        if isinstance(self.benchmark, SpansConfig):
            self._check_skip("a JSON document of questions")
        return self._source(DataFile(path, key, self.skip), part, labelled)

    def _source(self, source: DataFile | HubSplit, part: str, labelled: bool) -> PartSource:
        benchmark = self.benchmark
        common: dict[str, Any] = {"source": source, "labelled": labelled, "max_examples": self.max_examples}
        if isinstance(benchmark, SpansConfig):
            unanswerable = benchmark.answer_metric == SQUAD_V2
            return QuestionSource(**common, training=part == "train", unanswerable=unanswerable)
        if isinstance(benchmark, RowsConfig):
            separator = None
            if isinstance(benchmark, ClassificationConfig) and benchmark.multi_label:
                separator = _separator(benchmark)
            return RowSource(**common, layouts=self.layouts, skip_broken=benchmark.skip_broken, separator=separator)
        assert isinstance(benchmark, TokensConfig)
        token, tag, names = benchmark.token_column, benchmark.tag_column, benchmark.labels
        if isinstance(source, DataFile) and suffix_of(source.path) not in OBJECTS:
            token_number, tag_number = _number("token_column", token, 0), _number("tag_column", tag, -1)
            return ColumnSource(**common, token_column=token_number or 0, tag_column=tag_number)
        common |= {"names": tuple(names)} if names else {}
        common |= {} if token is None else {"token_column": str(token)}
        common |= {} if tag is None else {"tag_columns": () if tag == "none" else (str(tag),)}
        return ListSource(**common)

    def _check_skip(self, what: str) -> None:
        if self.skip is not None:
            raise ConfigError(
                f"data.skip={self.skip}: skips lines of files, but {self.benchmark.name} is read from {what}; use null"
            )

    def _in_folder(self, part: str, names: str) -> Path:
        """The file of a part with one of `names` (`train|eng.train`)."""
        benchmark = self.benchmark
        folder = Path(str(benchmark.folder)).expanduser().absolute()
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
        if isinstance(benchmark, SpansConfig):
            column = "question"
        elif isinstance(benchmark, TokensConfig):
            column = str(benchmark.token_column or "tokens")
        else:
            column = next((layout for layout in self.layouts if not layout.numbered), self.layouts[0]).texts[0]
        hub, key = str(benchmark.hub), "benchmark.hub"
        source = HubSplit(hub, benchmark.config, split, column, revision=benchmark.revision, key=key)
        return self._source(source, part, labelled)


def _number(key: str, value: str | None, default: int) -> int | None:
    """The number of a column; None for `none`."""
    if value is None or value == "none":
        return None if value else default
    try:
        return int(value)
    except ValueError:
        raise ConfigError(
            f"benchmark.{key}={value}: must be a column number, from 0, or negative to count from the last"
        ) from None


def _key_of(part: str) -> str:
    return f"{part}.file" if part.startswith("further") else f"{part}_file"


def _layouts(benchmark: RowsConfig) -> tuple[Layout, ...]:
    known = tuple(
        Layout(tuple(map(str, layout.texts)), None if layout.label is None else str(layout.label))
        for layout in benchmark.layouts
    )
    own = benchmark.label_column
    layouts = known
    if benchmark.text_columns is not None:
        layouts = (Layout(tuple(map(str, benchmark.text_columns)), own or "label", own is not None),)
    elif own is not None:
        layouts = tuple(replace(layout, label=own, given=True) for layout in known if layout.numbered == own.isdigit())
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


def _labels(benchmark: TaskBenchmarkConfig) -> tuple[str, ...]:
    labels = tuple(map(str, benchmark.labels or ())) if isinstance(benchmark, LabelledConfig) else ()
    if isinstance(benchmark, TokensConfig) and (mixed := mixed_tags(labels)):
        raise ConfigError(
            f"benchmark.labels={list(labels)}: invalid tag '{mixed[0]}', expected O or tags such as {mixed[1]}"
        )
    if labels and len(set(labels)) < max(len(labels), 2):
        raise ConfigError(f"benchmark.labels={list(labels)}: must be two or more distinct names")
    return labels


def _separator(benchmark: ClassificationConfig) -> str:
    separator = benchmark.label_separator
    if separator is not None and not (separator and benchmark.multi_label):
        raise ConfigError(
            f"benchmark.label_separator='{separator}': must be null, or text with benchmark.multi_label=true"
        )
    return separator or SEPARATOR


def _aliases(benchmark: ClassificationConfig) -> dict[str, str]:
    pairs = [str(alias).partition("=") for alias in benchmark.aliases]
    if wrong := [spelling for spelling, equals, _ in pairs if not equals]:
        raise ConfigError(
            f"benchmark.aliases=[{wrong[0]}]: must be spelling=label, such as contradictory=contradiction"
        )
    return {spelling.strip(): label.strip() for spelling, _, label in pairs}
