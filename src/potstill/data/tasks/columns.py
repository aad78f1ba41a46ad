"""Reading tagged sentences: files of one token per line (CoNLL), JSON files of lists, or a data set of the hub.

Tags stay as written; see `entities.py` for their meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from potstill.data.common.text_files import fault_of, read_lines, skipping
from potstill.data.tasks.entities import mixed_tags
from potstill.data.tasks.readers import TaskFile, TaskHub
from potstill.errors import DataError

DOCUMENT = "-DOCSTART-"  # a line that begins so starts a document
LOOK = 1000  # sentences read by a check
BLANKS = " \t\r"
# Not str.split: Chinese files have tokens that are other blanks, such as U+3000.
_GAP = re.compile(r"[ \t]+")
_TABS = re.compile(r"\t+")

Sentence = tuple[int, list[str], list[str]]  # place, words, tags


@dataclass(frozen=True)
class Sentences:
    """The sentences of a part.

    Attributes:
        words: Words of each sentence, at least one.
        tags: Tags of each sentence, one per word, as written; None without tags.
        starts: Line of a sentence's first word, or its row in a data set, from 1.
        name: Name of the part for messages.
        key: Config key for messages.
        rows: Whether `starts` counts rows.
    """

    words: list[list[str]]
    tags: list[list[str]] | None
    starts: list[int]
    name: str
    key: str
    rows: bool = False

    def __len__(self) -> int:
        return len(self.words)

    @staticmethod
    def joined(parts: Sequence[Sentences]) -> Sentences:
        """Concatenate parts, under the name and key of the first.

        Raises:
            DataError: Some have tags and others do not.
        """
        first = parts[0]
        if odd := next((part for part in parts if (part.tags is None) != (first.tags is None)), None):
            raise DataError(
                f"{odd.key}: '{odd.name}' has other columns than '{first.name}'; mix files of one kind"
            )
        return replace(
            first,
            words=[words for part in parts for words in part.words],
            tags=None if first.tags is None else [tags for part in parts for tags in part.tags or ()],
            starts=[start for part in parts for start in part.starts],
        )

    def place(self, sentence: int, word: int = 0) -> str:
        """Place of a word, such as `line 7`, or `row 3 word 2` of a data set."""
        start = self.starts[sentence]
        return f"row {start} word {word + 1}" if self.rows else f"line {start + word}"


@dataclass(frozen=True)
class ColumnFile:
    """A file of one token per line, plain or gzip, with columns separated by spaces or tabs, sentences by blank lines.

    If the first line has tabs, only tabs separate columns, so a token may contain blanks. Lines that begin with
    `-DOCSTART-` are skipped and end a sentence.

    Attributes:
        path: Path of the file.
        token_column: Column of the tokens, from 0; negative numbers count from the last.
        tag_column: Column of the tags; None without tags.
        labelled: Whether the sentences must have tags; otherwise a file of a single column is accepted.
        max_examples: Maximum number of sentences.
        key: Config key for messages.
        skip: regular expression of lines to leave out; they do not end a sentence.
    """

    path: Path
    token_column: int = 0
    tag_column: int | None = -1
    labelled: bool = True
    max_examples: int | None = None
    key: str = "benchmark.train_file"
    skip: str | None = None

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    def check(self) -> None:
        """See `PartSource`; reads the first sentences."""
        if fault := fault_of(self.path):
            raise DataError(
                f"{self.key}: '{self.path}' {fault}; use one token per line and a blank line after each sentence"
            )
        self._read(LOOK if self.max_examples is None else min(LOOK, self.max_examples))

    def read(self) -> Sentences:
        """See `PartSource`."""
        return self._read(self.max_examples)

    def _read(self, limit: int | None) -> Sentences:
        read = list(islice(self._sentences(), limit))
        if not read:
            raise DataError(
                f"{self.key}: '{self.path}' has no sentences; use one token per line and a blank line after each"
            )
        starts, words, tags = (list(column) for column in zip(*read, strict=True))
        numbered = [list(map(str, range(1, len(own) + 1))) for own in words]
        if self.token_column == 0 and words == numbered and any(len(own) > 1 for own in words):
            raise DataError(
                f"{self.key}: '{self.path}' has word numbers in column 0, which is read as the words; set "
                "benchmark.token_column, counted from 0"
            )
        sentences = Sentences(words, tags if any(tags) else None, starts, self.name, self.key)
        _check_kinds(sentences, str(self.path))
        return sentences

    def _sentences(self) -> Iterator[Sentence]:
        table: _Table | None = None
        start = 0
        words: list[str] = []
        tags: list[str] = []
        skipped = skipping(self.skip)
        for number, line in enumerate(read_lines(self.path, self.key), 1):
            if skipped(line):
                continue
            line = line.strip(BLANKS)
            if not line or line.startswith(DOCUMENT):
                if words:
                    yield start, words, tags
                    words, tags = [], []
                continue
            table = table or self._table(line, number)
            cells = table.gap.split(line)
            if len(cells) != table.width:
                cells = _GAP.split(line)
            if len(cells) != table.width:
                raise self._width_fault(table, line, number, len(cells))
            if not words:
                start = number
            words.append(cells[table.token].strip(BLANKS))
            if table.tag is not None:
                tags.append(cells[table.tag].strip(BLANKS))
        if words:
            yield start, words, tags

    def _table(self, line: str, number: int) -> _Table:
        """Columns of the file, given its first line with a token."""
        gap = _GAP
        if "\t" in line:
            cells = _TABS.split(line)
            token, tag = self._columns(len(cells), number, line)
            # Blanks beside tabs also separate columns, unless they are within a token.
            if not any(_GAP.search(cell.strip(BLANKS)) for n, cell in enumerate(cells) if n != token):
                return _Table(_TABS, len(cells), token, tag, line, number)
        width = len(gap.split(line))
        return _Table(gap, width, *self._columns(width, number, line), line, number)

    def _width_fault(self, table: _Table, line: str, number: int, width: int) -> DataError:
        for at, own in ((table.line, table.first), (number, line)):
            if own.startswith("#"):
                return self._comment(at)
        return DataError(
            f"{self.key}: '{self.path}' line {number}: {_columns(width)}, line {table.line} has {table.width}; correct "
            "it, or skip such lines with data.skip=<regular expression>"
        )

    def _columns(self, width: int, number: int, line: str) -> tuple[int, int | None]:
        """Columns of tokens and tags, from 0, in lines of `width` columns."""
        token = _counted(self.token_column, width)
        bare = self.tag_column is None or (width == 1 and not self.labelled and self.tag_column == -1)
        tag = None if self.tag_column is None or bare else _counted(self.tag_column, width)
        if token is not None and (bare or tag not in (None, token)):
            return token, tag
        if line.startswith("#"):
            raise self._comment(number)
        place = f"{self.key}: '{self.path}' line {number}: {_columns(width)}"
        if token is None:
            raise DataError(
                f"{place}, but benchmark.token_column={self.token_column}; set it to the column of the tokens, from 0"
            )
        raise DataError(
            f"{place}, but benchmark.tag_column={self.tag_column}; set it to the column of the tags, from 0, or none"
        )

    def _comment(self, number: int) -> DataError:
        return DataError(
            f"{self.key}: '{self.path}' line {number}: a comment has other columns than the tokens; skip such lines "
            "with \"data.skip='^#'\""
        )


@dataclass(frozen=True)
class _Table:
    """Columns of a file.

    Attributes:
        gap: Separator of columns.
        width: Number of columns.
        token: Column of the tokens.
        tag: Column of the tags.
        first: First line with a token.
        line: Its number.
    """

    gap: re.Pattern[str]
    width: int
    token: int
    tag: int | None
    first: str
    line: int


@dataclass(frozen=True)
class HubSentences(TaskHub):
    """A split of a data set on the hub; `column` holds lists of words. See `dataset_sentences` for the attributes."""

    tag_column: str | None = "ner_tags"
    labels: tuple[str, ...] | None = None
    labelled: bool = True
    named: bool = False

    def read(self) -> Sentences:
        """All sentences; see `dataset_sentences`."""
        return dataset_sentences(
            self.split_rows(), tokens=self.column, tags=self.tag_column, labels=self.labels,
            labelled=self.labelled, named=self.named, name=self.name, key=self.key,
        )  # fmt: skip


@dataclass(frozen=True)
class ListFile:
    """A file of JSON lines, or a JSON document, plain or gzip, whose rows have a list of words and one of tags.

    Attributes:
        path: Path of the file.
        token_column: Name of the lists of words.
        tag_columns: Possible names of the lists of tags; the first existing one is used. A single name is required;
            without any there are no tags.
        labels: Tags by number, for lists of numbers.
        labelled: Whether the sentences must have tags.
        max_examples: Maximum number of rows.
        key: Config key for messages.
        skip: Regular expression for lines to skip.
    """

    path: Path
    token_column: str = "tokens"
    tag_columns: tuple[str, ...] = ("ner_tags", "tags", "labels")
    labels: tuple[str, ...] | None = None
    labelled: bool = True
    max_examples: int | None = None
    key: str = "benchmark.train_file"
    skip: str | None = None

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    def check(self) -> None:
        """See `PartSource`; reads the first rows."""
        if fault := fault_of(self.path):
            raise DataError(
                f"{self.key}: '{self.path}' {fault}; give JSON lines of words and tags, plain or gzip"
            )
        self._read(LOOK if self.max_examples is None else min(LOOK, self.max_examples))

    def read(self) -> Sentences:
        """All sentences; see `dataset_sentences`."""
        return self._read(self.max_examples)

    def _read(self, limit: int | None) -> Sentences:
        records = TaskFile(self.path, (), self.labelled, key=self.key, skip=self.skip).records()
        table = _Rows([dict(record) for _, record in islice(records, limit) if isinstance(record, Mapping)])
        known: list[str | None] = [name for name in self.tag_columns if name in table.features]
        known += [*self.tag_columns, None]
        return dataset_sentences(
            table, tokens=self.token_column, tags=known[0], labels=self.labels, labelled=self.labelled,
            named=len(self.tag_columns) == 1, name=str(self.path), key=self.key,
        )  # fmt: skip


class _Rows:
    """Rows with the interface of a data set of `datasets`."""

    def __init__(self, rows: list[dict[str, Any]]):
        self.rows = rows
        self.features: dict[str, None] = dict.fromkeys(rows[0]) if rows else {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column: str) -> list[Any]:
        return [row.get(column) for row in self.rows]


def dataset_sentences(
    dataset: Any,
    *,
    tokens: str = "tokens",
    tags: str | None = "ner_tags",
    labels: Sequence[str] | None = None,
    labelled: bool = True,
    named: bool = False,
    max_examples: int | None = None,
    name: str = "the data set",
    key: str = "benchmark.hub",
) -> Sentences:
    """Sentences of a data set of `datasets`; rows without words are skipped.

    Args:
        dataset: A split, with `features`, a length and columns by name.
        tokens: Column of lists of words.
        tags: Column of lists of tags, or of tag numbers; None without tags.
        labels: Tags by number, for numbers that are not of a `ClassLabel`.
        labelled: Whether the sentences must have tags; otherwise the column may be missing, or all tags -1.
        named: Whether the column of tags is configured, so that it must exist.
        max_examples: Maximum number of rows.
        name: Name for messages.
        key: Config key for messages.

    Raises:
        DataError: A column is missing, there are no sentences, or a row cannot be used; the message names it.
    """
    features = dataset.features
    missing = [column for column in (tokens, tags) if column is not None and column not in features]
    if missing == [tags] and not labelled and not named:
        tags, missing = None, []
    if missing:
        raise DataError(
            f"{key}: '{name}' has no column '{missing[0]}', but {', '.join(features)}; set "
            "benchmark.token_column and benchmark.tag_column"
        )
    if max_examples is not None:
        dataset = dataset.select(range(min(max_examples, len(dataset))))
    if not len(dataset):
        raise DataError(f"{key}: '{name}' has no rows; choose another split")
    names = labels if tags is None else _names(features[tags]) or labels
    found: list[Sentence] = []
    coded = [[] for _ in range(len(dataset))] if tags is None else list(dataset[tags])
    if all(code in (-1, "", None) for row in coded for code in row or ()):
        if labelled:
            raise DataError(f"{key}: '{name}' has no tags; choose another split, or set benchmark.tag_column")
        tags = None
    for number, (words, codes) in enumerate(zip(list(dataset[tokens]), coded, strict=True), 1):
        place = f"{key}: '{name}' row {number}"
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise DataError(f"{place}: '{tokens}' is not a list of words; set benchmark.token_column")
        if tags is not None and (not isinstance(codes, list) or len(codes) != len(words)):
            tagged = f"{len(codes)} tags" if isinstance(codes, list) else "no list of tags"
            raise DataError(f"{place}: {len(words)} words and {tagged}; expected one tag per word")
        if words:
            written = [] if tags is None else [_written(code, names, place) for code in codes]
            found.append((number, words, written))
    if not found:
        raise DataError(f"{key}: '{name}' has no words in its column '{tokens}'; choose another split")
    numbers, sentences, all_tags = (list(column) for column in zip(*found, strict=True))
    read = Sentences(sentences, None if tags is None else all_tags, numbers, name, key, rows=True)
    _check_kinds(read, name)
    return read


def _check_kinds(sentences: Sentences, name: str) -> None:
    """Reject a mixture of plain tags, such as parts of speech, and tags with prefixes."""
    mixed = mixed_tags(tag for tags in sentences.tags or () for tag in tags)
    if mixed is None:
        return
    plain, prefixed = mixed
    where = ((n, tags.index(plain)) for n, tags in enumerate(sentences.tags or ()) if plain in tags)
    raise DataError(
        f"{sentences.key}: '{name}' {sentences.place(*next(where))}: invalid tag '{plain}', expected O or tags such as "
        f"{prefixed}; correct it, or set benchmark.tag_column to the column of the tags, or to none"
    )


def _counted(column: int, width: int) -> int | None:
    return column % width if -width <= column < width else None


def _columns(count: int) -> str:
    return "1 column" if count == 1 else f"{count} columns"


def _names(feature: Any) -> Sequence[str] | None:
    """Class names of a list feature, in any of the forms of `datasets`."""
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
    return getattr(inner, "names", None)


def _written(code: Any, names: Sequence[str] | None, place: str) -> str:
    if isinstance(code, int):
        if names is None:
            raise DataError(f"{place}: tags are numbers without names; set benchmark.labels=[O,B-PER,...]")
        if not 0 <= code < len(names):
            raise DataError(f"{place}: unknown tag {code}; expected 0 to {len(names) - 1}")
        code = names[code]
    if not isinstance(code, str) or not code.strip():
        raise DataError(
            f"{place}: invalid tag '{code}', expected such as O or B-PER; set benchmark.tag_column"
        )
    return code.strip()
