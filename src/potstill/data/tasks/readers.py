"""Reading the rows of a benchmark: texts and labels.

Labels stay as written; `labels.py` encodes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from potstill.data.common.records import RecordError, field_of, suffix_of
from potstill.data.tasks.labels import column_of_labels
from potstill.data.tasks.sources import OBJECTS, TABLES, DataFile, PartSource, Record
from potstill.errors import FormatError


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

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the texts, then of the label."""
        return self.texts if self.label is None else (*self.texts, self.label)


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
            FormatError: Some have labels and others do not, or pairs of texts and others single ones.
        """
        first = parts[0]
        for part in parts[1:]:
            if len(part.texts) != len(first.texts) or (part.labels is None) != (first.labels is None):
                raise FormatError(
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


@dataclass(frozen=True)
class RowSource(PartSource):
    """Rows of a file, TSV (`.tsv`, `.txt`; quotes are literal), CSV, JSON lines or a JSON document, or of a data set.

    Attributes:
        layouts: Possible columns; the first layout that fits is used.
        skip_broken: Whether to skip rows with a wrong number of columns.
        separator: Separator of labels in text for a multi-label task; None otherwise.
    """

    layouts: tuple[Layout, ...] = ()
    skip_broken: bool = False
    separator: str | None = None

    def check(self) -> None:
        """See `PartSource`."""
        file = self.source.path if isinstance(self.source, DataFile) else None
        if file is not None and file.is_file() and suffix_of(file) not in TABLES + OBJECTS:
            known = " ".join(TABLES + OBJECTS)
            raise FormatError(f"{self.source.prefix} has an unknown suffix; use one of {known}, plain or .gz")
        super().check()

    def lists_labels(self) -> bool:
        """Whether one of the first rows of a JSON file has a list as its label."""
        if not isinstance(self.source, DataFile) or suffix_of(self.source.path) not in OBJECTS:
            return False
        first = islice(self.source.records(), self.checked_examples)
        rows = [record for _, record in first if isinstance(record, Mapping)]
        column = self._layout(rows[0]).label if rows else None
        return any(isinstance(record.get(column), list) for record in rows if column is not None)

    def read_first(self, count: int | None) -> Rows:
        """See `PartSource`."""
        records = self.source.records()
        first = next(records, None)
        if first is None:
            raise FormatError(f"{self.source.prefix} has no rows; use a file with rows")
        layout = self._layout(first[1])
        wanted: Sequence[Any] = layout.columns
        if layout.numbered or isinstance(first[1], Mapping):  # no header: the first line is a row
            records = chain([first], records)
            wanted = wanted if isinstance(first[1], Mapping) else list(map(int, wanted))
        else:
            header = [cell.strip() for cell in first[1]]
            wanted = list(map(header.index, wanted))
        columns: list[list[Any]] = [[] for _ in wanted]
        places: list[str] = []
        broken = 0
        for place, record in islice(records, count):
            if not isinstance(record, Mapping) and len(record) != len(first[1]):
                self._check_broken(place, len(record), len(first[1]))
                broken += 1
                continue
            for values, column in zip(columns, wanted, strict=True):
                values.append(self._value(place, record, column, layout))
            places.append(place)
        if not places:
            raise FormatError(f"{self.source.prefix} has no rows; use a file with rows")
        labels, sets = None, None
        if layout.label is not None:
            where = (f"{self.source.prefix} {place}: '{layout.label}'" for place in places)
            labels, sets = column_of_labels(columns.pop(), where, self.separator, self.labelled)
        return Rows(tuple(columns), labels, places, self.source.name, self.source.key, broken, sets)

    def _check_broken(self, place: str, count: int, expected: int) -> None:
        if not self.skip_broken:
            raise FormatError(
                f"{self.source.prefix} {place}: {count} columns, the first line has {expected}; correct the row, "
                "or skip such rows with benchmark.skip_broken=true"
            )

    def _value(self, place: str, record: Any, column: Any, layout: Layout) -> Any:
        try:
            if not isinstance(record, Mapping):
                return record[column]
            return field_of(record, column, object if column == layout.label else str)
        except RecordError as error:
            raise FormatError(f"{self.source.prefix} {place}: {error}; correct the row") from error

    def _layout(self, first: Record) -> Layout:
        """The first layout whose columns exist; without `labelled`, the first whose texts exist."""
        named = set(first) if isinstance(first, Mapping) else {cell.strip() for cell in first}
        numbers = set() if isinstance(first, Mapping) else {str(n) for n in range(len(first))}
        texts = [layout for layout in self.layouts if set(layout.texts) <= (numbers if layout.numbered else named)]
        for layout in texts:
            if set(layout.columns) <= (numbers if layout.numbered else named):
                return layout
        shown = [str(name) if len(str(name)) <= 24 else f"{str(name)[:24]}..." for name in first]
        has = f"{'its rows have' if isinstance(first, Mapping) else 'its first line has'} {', '.join(shown)}"
        if texts and (self.labelled or texts[0].given):
            raise FormatError(
                f"{self.source.prefix} has no label column '{texts[0].label}'; {has}; set benchmark.label_column"
            )
        if texts:
            return Layout(texts[0].texts, None)
        wanted = " or ".join(f"[{', '.join(layout.texts)}]" for layout in self.layouts)
        raise FormatError(
            f"{self.source.prefix} lacks the columns {wanted}; {has}; set benchmark.text_columns and "
            "benchmark.label_column"
        )
