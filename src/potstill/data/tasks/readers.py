"""Reading the rows of a benchmark: texts and labels, from the task's files or from a data set of the hub.

Labels stay as written; `labels.py` encodes them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

from potstill.data.common.text_files import fault_of, read_document, read_lines, skipping
from potstill.data.corpus.sources import HubDataset
from potstill.data.tasks.label_values import UNLABELLED, column_of_labels
from potstill.errors import DataError
from potstill.runtime.json_text import parse_json

TABLES = (".tsv", ".txt", ".csv")
OBJECTS = (".jsonl", ".json")
ENDINGS = (*TABLES, *OBJECTS, ".conll", ".bio", ".ner", "")  # of the files of a folder
LOOK = 1000  # rows read by a check

Record = Sequence[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """Columns of the texts and of the label: names, or numbers for a file without header."""

    texts: tuple[str, ...]
    label: str | None
    given: bool = False  # the label's column is configured, so it must exist

    @property
    def numbered(self) -> bool:
        """Whether the columns are numbers, from 0."""
        return all(column.isdigit() for column in self.texts)

    def __str__(self) -> str:
        return ", ".join([*self.texts, *([self.label] if self.label is not None else [])])


@dataclass(frozen=True)
class Rows:
    """The rows of a part, column by column.

    Attributes:
        texts: One or two columns of texts.
        labels: Labels as written, a set of labels as one text; None without labels.
        places: Place of each row, such as `line 7`.
        name: Name of the part for messages.
        key: Config key for messages.
        broken: Number of rows skipped for their number of columns.
        sets: Labels of each row for a multi-label task; None otherwise, and without labels.
    """

    texts: tuple[list[str], ...]
    labels: list[str] | None
    places: list[str]
    name: str
    key: str
    broken: int = 0
    sets: list[tuple[str, ...]] | None = None

    def __len__(self) -> int:
        return len(self.places)

    @staticmethod
    def joined(parts: Sequence[Rows]) -> Rows:
        """Concatenate parts, under the name and key of the first; the places of the others name their part.

        Raises:
            DataError: Some have labels and others do not, or pairs of texts and others single ones.
        """
        first = parts[0]
        for part in parts[1:]:
            if len(part.texts) != len(first.texts) or (part.labels is None) != (first.labels is None):
                raise DataError(
                    f"{part.key}: '{part.name}' has other columns than '{first.name}'; mix files of one kind"
                )
        return replace(
            first,
            texts=tuple([text for part in parts for text in part.texts[n]] for n in range(len(first.texts))),
            labels=None if first.labels is None else [label for part in parts for label in part.labels or ()],
            places=[*first.places, *(f"{part.name} {place}" for part in parts[1:] for place in part.places)],
            broken=sum(part.broken for part in parts),
            sets=None if first.sets is None else [own for part in parts for own in part.sets or ()],
        )


class PartSource(Protocol):
    """Source of a part of a benchmark: of `Rows`, tagged `Sentences`, or `Questions`."""

    @property
    def name(self) -> str:
        """Name for messages."""

    def check(self) -> None:
        """Check the source quickly, before any work.

        Raises:
            DataError: It cannot be used; the message names the config key, the value and what is valid.
        """

    def read(self) -> Any:
        """Read the whole part.

        Raises:
            DataError: It is empty, or a row cannot be used; the message names the place.
        """


@dataclass(frozen=True)
class TaskFile:
    """A file of a task: TSV (`.tsv`, `.txt`; quotes are literal), CSV, JSON lines or a JSON document, plain or gzip.

    Attributes:
        path: Path of the file.
        layouts: Possible columns; the first layout that fits is used.
        labelled: Whether the rows must have labels.
        skip_broken: Whether to skip rows with a wrong number of columns.
        max_examples: Maximum number of rows.
        key: Config key for messages.
        skip: Regular expression for lines to skip.
        separator: Separator of labels in text for a multi-label task; None otherwise.
    """

    path: Path
    layouts: tuple[Layout, ...]
    labelled: bool
    skip_broken: bool = False
    max_examples: int | None = None
    key: str = "benchmark.train_file"
    skip: str | None = None
    separator: str | None = None

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    def check(self) -> None:
        """See `PartSource`; reads the first rows."""
        if fault := fault_of(self.path):
            raise DataError(f"{self.key}: '{self.path}' {fault}; use a TSV, CSV or JSON file, plain or gzip")
        if suffix_of(self.path) not in TABLES + OBJECTS:
            known = " ".join(TABLES + OBJECTS)
            raise DataError(
                f"{self.key}: '{self.path}' has an unknown suffix; use one of {known}, plain or .gz"
            )
        self._read(LOOK)

    def read(self) -> Rows:
        """See `PartSource`."""
        return self._read(self.max_examples)

    def lists_labels(self) -> bool:
        """Whether one of the first rows has a list as its label."""
        if suffix_of(self.path) not in OBJECTS:
            return False
        rows = [record for _, record in islice(self.records(), LOOK) if isinstance(record, Mapping)]
        column = self._layout(rows[0]).label if rows else None
        return any(isinstance(record.get(column), list) for record in rows if column is not None)

    def _read(self, limit: int | None) -> Rows:
        records = self.records()
        first = next(records, None)
        if first is None:
            raise DataError(f"{self.key}: '{self.path}' has no rows; use a file with rows")
        layout = self._layout(first[1])
        if layout.numbered or isinstance(first[1], Mapping):  # no header: the first line is a row
            records = chain([first], records)
        read = _Columns(self, layout, first[1])
        for place, record in islice(records, limit):
            read.add(place, record)
        return read.rows()

    def records(self) -> Iterator[tuple[str, Record]]:
        """The records of the file with their places; of a table, with its header.

        Raises:
            DataError: A line cannot be parsed.
        """
        suffix = suffix_of(self.path)
        skipped = skipping(self.skip)
        # A skipped line becomes a blank one, so that line numbers stay.
        lines = ("" if skipped(line) else line.removesuffix("\r") for line in read_lines(self.path, self.key))
        if suffix == ".csv":
            yield from self._csv(lines)
        elif suffix in TABLES:
            # Not the csv module: quotes are literal.
            yield from ((f"line {n}", line.split("\t")) for n, line in enumerate(lines, 1) if line)
        elif suffix == ".jsonl":
            yield from (
                (f"line {n}", self._object(line, f"line {n}")) for n, line in enumerate(lines, 1) if line
            )
        else:
            yield from self._document(read_document(self.path, self.key))

    def _csv(self, lines: Iterator[str]) -> Iterator[tuple[str, Record]]:
        reader = csv.reader((f"{line}\n" for line in lines), strict=True)
        try:
            for cells in reader:
                if cells:
                    yield f"line {reader.line_num}", cells
        except csv.Error as error:
            raise DataError(
                f"{self.key}: '{self.path}' line {reader.line_num}: invalid CSV ({error}); double quotes within texts"
            ) from error

    def _document(self, text: str) -> Iterator[tuple[str, Record]]:
        """JSON lines with the suffix `.json`, a list of objects, or an object of objects."""
        lines = [line.removesuffix("\r") for line in text.split("\n")]
        if text.lstrip()[:1] == "{" and lines[0].rstrip()[-1:] == "}" and len(lines) > 1:
            yield from (
                (f"line {n}", self._object(line, f"line {n}")) for n, line in enumerate(lines, 1) if line
            )
            return
        content = self._decoded(text, "")
        entries = content.values() if isinstance(content, dict) else content
        if not isinstance(content, dict | list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(
                f"{self.key}: '{self.path}' has no rows; use a JSON list of objects, or JSON lines"
            )
        yield from ((f"row {n}", entry) for n, entry in enumerate(entries, 1))

    def _object(self, line: str, place: str) -> Mapping[str, Any]:
        content = self._decoded(line, f" {place}")
        if not isinstance(content, dict):
            raise DataError(f"{self.key}: '{self.path}' {place}: not a JSON object; use one per line")
        return content

    def _decoded(self, text: str, place: str) -> Any:
        try:
            return parse_json(text)
        except ValueError as error:
            raise DataError(
                f"{self.key}: '{self.path}'{place}: invalid JSON ({error}); use one object per line"
            ) from error

    def _layout(self, first: Record) -> Layout:
        """The first layout whose columns exist; without `labelled`, the first whose texts exist."""
        named = set(first) if isinstance(first, Mapping) else {cell.strip() for cell in first}
        numbers = set() if isinstance(first, Mapping) else {str(n) for n in range(len(first))}

        def fits(layout: Layout, columns: tuple[str | None, ...]) -> bool:
            return set(columns) <= (numbers if layout.numbered else named)

        for layout in self.layouts:
            if fits(layout, (*layout.texts, layout.label)):
                return layout
        for layout in self.layouts:
            if fits(layout, layout.texts):
                if not (self.labelled or layout.given):
                    return Layout(layout.texts, None)
                raise DataError(
                    f"{self.key}: '{self.path}' has no label column '{layout.label}'; {_has(first)}; "
                    "set benchmark.label_column"
                )
        wanted = " or ".join(f"[{', '.join(layout.texts)}]" for layout in self.layouts)
        raise DataError(
            f"{self.key}: '{self.path}' lacks the columns {wanted}; {_has(first)}; "
            "set benchmark.text_columns and benchmark.label_column"
        )


class _Columns:
    """Collects the columns of a layout from records."""

    def __init__(self, file: TaskFile, layout: Layout, first: Record):
        self.file, self.layout, self.width = file, layout, len(first)
        wanted = [*layout.texts, *([layout.label] if layout.label is not None else [])]
        self.columns: list[Any] = list(wanted)
        if not isinstance(first, Mapping):
            header = [cell.strip() for cell in first]
            self.columns = [int(c) if layout.numbered else header.index(c) for c in wanted]
        self.texts: list[list[str]] = [[] for _ in layout.texts]
        self.labels: list[Any] = []
        self.places: list[str] = []
        self.broken = 0

    def add(self, place: str, record: Record) -> None:
        file = self.file
        if not isinstance(record, Mapping) and len(record) != self.width:
            if not file.skip_broken:
                raise DataError(
                    f"{file.key}: '{file.path}' {place}: {len(record)} columns, the first line has {self.width}; "
                    "correct the row, or skip such rows with benchmark.skip_broken=true"
                )
            self.broken += 1
            return
        for own, column in zip(self.texts, self.columns, strict=False):
            own.append(self._text(place, record, column))
        if self.layout.label is not None:
            self.labels.append(self._value(place, record, self.columns[-1]))
        self.places.append(place)

    def _text(self, place: str, record: Any, column: Any) -> str:
        value = self._value(place, record, column)
        if not isinstance(value, str):
            file = self.file
            raise DataError(f"{file.key}: '{file.path}' {place}: '{column}' is not text ({value!r})")
        return value

    def _value(self, place: str, record: Any, column: Any) -> Any:
        if isinstance(record, Mapping) and column not in record:
            file = self.file
            raise DataError(f"{file.key}: '{file.path}' {place}: no '{column}', unlike the first row")
        return record[column]

    def rows(self) -> Rows:
        file = self.file
        if not self.places:
            raise DataError(f"{file.key}: '{file.path}' has no rows; use a file with rows")
        rows = Rows(tuple(self.texts), None, self.places, file.name, file.key, self.broken)
        if self.layout.label is None:
            return rows
        where = (f"{file.key}: '{file.path}' {place}: '{self.layout.label}'" for place in self.places)
        labels, sets = column_of_labels(self.labels, where, file.separator, file.labelled)
        return replace(rows, labels=labels, sets=sets)


@dataclass(frozen=True)
class TaskHub(HubDataset):
    """A split of a task's data set on the hub; `column` must exist."""

    def split_rows(self) -> Any:
        """The first `max_examples` rows as a `datasets.Dataset`.

        Raises:
            DataError: It cannot be loaded, or is empty.
        """
        dataset = self._load()
        if self.max_examples is not None:
            dataset = dataset.select(range(min(self.max_examples, len(dataset))))
        if not len(dataset):
            raise DataError(f"{self.key}: '{self.name}' has no rows; choose another split")
        return dataset

    def _guarded(self, call: Any) -> Any:
        try:
            return call()
        except Exception as error:  # the hub's client raises errors of many libraries
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise DataError(
                f"{self.key}: '{self.name}' cannot be loaded ({reason}); check the network (HF_HUB_OFFLINE=1 if it is "
                "downloaded), or use local files: benchmark.folder, or benchmark.train_file and benchmark.eval_file"
            ) from error


@dataclass(frozen=True)
class HubRows(TaskHub):
    """A split of a data set on the hub; `column` is that of its first text. See `TaskFile` for the attributes."""

    layouts: tuple[Layout, ...] = ()
    labelled: bool = True
    separator: str | None = None

    def read(self) -> Rows:
        """See `PartSource`; class labels become names, -1 is a missing label."""
        dataset = self.split_rows()
        layout = next((lay for lay in self.layouts if {*lay.texts, lay.label} <= set(dataset.features)), None)
        if layout is None or layout.label is None:
            wanted = " or ".join(f"[{lay}]" for lay in self.layouts if not lay.numbered)
            raise DataError(
                f"{self.key}: '{self.name}' lacks the columns {wanted}; it has {', '.join(dataset.features)}; "
                "set benchmark.text_columns and benchmark.label_column"
            )
        texts = tuple([text or "" for text in dataset[column]] for column in layout.texts)
        feature = dataset.features[layout.label]
        names = getattr(getattr(feature, "feature", feature), "names", None)
        values = [_named(value, names) for value in dataset[layout.label]]
        places = [f"row {number}" for number in range(1, len(dataset) + 1)]
        where = (f"{self.key}: '{self.name}' {place}: '{layout.label}'" for place in places)
        labels, sets = column_of_labels(values, where, self.separator, labelled=False)
        if sets is None and set(labels or ()) <= set(UNLABELLED):  # -1 is a missing class label
            labels = None
        if labels is None and self.labelled:
            raise DataError(f"{self.key}: '{self.name}' has no labels; choose another split")
        return Rows(texts, labels, places, self.name, self.key, sets=sets)


def find_file(folder: Path, stem: str) -> Path | None:
    """The file `stem` of a folder with a known suffix, plain or gzip, if it exists."""
    names = [f"{stem}{suffix}{packed}" for suffix in ENDINGS for packed in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def suffix_of(path: Path) -> str:
    """The suffix of a file without `.gz`."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def _has(first: Record) -> str:
    if isinstance(first, Mapping):
        return f"its rows have {', '.join(map(str, first))}"
    shown = [cell if len(cell) <= 24 else f"{cell[:24]}..." for cell in first]
    return f"its first line holds {', '.join(shown)}"


def _named(value: Any, names: list[str] | None) -> Any:
    """A label of a data set, or a list of labels, by name if the data set has names."""
    if isinstance(value, list):
        return [_named(entry, names) for entry in value]
    if names is not None and isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return value
