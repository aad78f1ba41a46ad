"""Reading tagged sentences: files of a token a line, as CoNLL's, JSON files of lists, or a data set of the hub.

Tags stay as they are written; `entities.py` says what they mark.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from potstill.data.corpus.textfiles import fault_of, read_lines
from potstill.data.tasks.entities import is_tag
from potstill.data.tasks.readers import TaskFile, TaskHub
from potstill.errors import DataError

DOCUMENT = "-DOCSTART-"  # a line that begins so starts a document
LOOK = 1000  # sentences that a check reads
BLANKS = " \t\r"
# Not str.split: a Chinese file has tokens that are blanks of other kinds, such as U+3000.
_GAP = re.compile(r"[ \t]+")

Sentence = tuple[int, list[str], list[str]]  # its place, its words, its tags


@dataclass(frozen=True)
class Sentences:
    """The sentences of a part.

    Attributes:
        words: of each sentence, at least one.
        tags: of each sentence, one a word, as written; None where the part has none.
        starts: the line of a sentence's first word, or its row in a data set, counted from 1.
        name: what messages call the part.
        key: the config key that messages name.
        rows: whether `starts` counts rows.
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
        """Parts one after another, under the name and key of the first.

        Raises:
            DataError: some have tags and others not.
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
        """Where a word stands, such as `line 7`, or `row 3 word 2` of a data set."""
        start = self.starts[sentence]
        return f"row {start} word {word + 1}" if self.rows else f"line {start + word}"


@dataclass(frozen=True)
class ColumnFile:
    """A file of a token a line, plain or gzip, its columns separated by spaces or tabs, sentences by blank lines.

    Lines that begin with `-DOCSTART-` are left out; they end a sentence.

    Attributes:
        path: the file.
        token_column: number of the column of tokens, from 0; negative ones count from the last.
        tag_column: that of the tags; None where the file has none (its further columns are left alone).
        labelled: the sentences must have tags; if not, a file of a single column is one without.
        max_examples: only so many sentences.
        key: the config key that messages name.
    """

    path: Path
    token_column: int = 0
    tag_column: int | None = -1
    labelled: bool = True
    max_examples: int | None = None
    key: str = "benchmark.train_file"

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    def check(self) -> None:
        """Cheap look at the file before any work; reads the first sentences.

        Raises:
            DataError: it cannot be used; the message names the config key, the file, the line and what would be right.
        """
        if fault := fault_of(self.path):
            raise DataError(
                f"{self.key}: '{self.path}' {fault}; give a token a line, a blank line after each sentence, plain or "
                "gzip"
            )
        self._read(LOOK if self.max_examples is None else min(LOOK, self.max_examples))

    def read(self) -> Sentences:
        """All sentences.

        Raises:
            DataError: there are none; a line has another number of columns than the first, or no tag where a tag
                should be.
        """
        return self._read(self.max_examples)

    def _read(self, limit: int | None) -> Sentences:
        read = list(islice(self._sentences(), limit))
        if not read:
            raise DataError(
                f"{self.key}: '{self.path}' has no sentences; give a token a line, a blank line after each sentence"
            )
        starts, words, tags = (list(column) for column in zip(*read, strict=True))
        return Sentences(words, tags if any(tags) else None, starts, self.name, self.key)

    def _sentences(self) -> Iterator[Sentence]:
        columns: tuple[int, int | None] | None = None
        width, start = 0, 0
        words: list[str] = []
        tags: list[str] = []
        for number, line in enumerate(read_lines(self.path, self.key), 1):
            line = line.strip(BLANKS)
            if not line or line.startswith(DOCUMENT):
                if words:
                    yield start, words, tags
                    words, tags = [], []
                continue
            cells = _GAP.split(line)
            if columns is None:
                width, columns = len(cells), self._columns(len(cells), number)
            if len(cells) != width:
                raise DataError(
                    f"{self.key}: '{self.path}' line {number}: {_columns(len(cells))}, the first line has {width}; "
                    "mend the line"
                )
            token, tag = columns
            if not words:
                start = number
            words.append(cells[token])
            if tag is not None:
                tags.append(self._tag(cells[tag], number))
        if words:
            yield start, words, tags

    def _columns(self, width: int, line: int) -> tuple[int, int | None]:
        """The columns of tokens and tags, counted from 0, of lines of so many."""
        place = f"{self.key}: '{self.path}' line {line}: {_columns(width)}"
        token = _counted(self.token_column, width)
        if token is None:
            raise DataError(
                f"{place}, tokens are looked for in column {self.token_column}; name theirs by "
                "benchmark.token_column, counted from 0"
            )
        if self.tag_column is None or (width == 1 and not self.labelled):
            return token, None
        tag = _counted(self.tag_column, width)
        if tag is None or tag == token:
            raise DataError(
                f"{place}, none of tags at {self.tag_column} besides that of tokens; name it by benchmark.tag_column, "
                "counted from 0, or benchmark.tag_column=none where there are no tags"
            )
        return token, tag

    def _tag(self, text: str, line: int) -> str:
        if not is_tag(text):
            raise DataError(
                f"{self.key}: '{self.path}' line {line}: '{text}' is no tag such as O or B-PER; name their column by "
                "benchmark.tag_column, or benchmark.tag_column=none where there are no tags"
            )
        return text


@dataclass(frozen=True)
class HubSentences(TaskHub):
    """A split of a data set on the hub; `column` is that of lists of words.

    Attributes:
        tag_column: of lists of tags, or of their numbers.
        labels: tags by number where the data set does not name them.
        labelled: the sentences must have tags.
    """

    tag_column: str = "ner_tags"
    labels: tuple[str, ...] | None = None
    labelled: bool = True

    def read(self) -> Sentences:
        """All sentences; see `dataset_sentences`."""
        return dataset_sentences(
            self.split_rows(), tokens=self.column, tags=self.tag_column, labels=self.labels,
            labelled=self.labelled, name=self.name, key=self.key,
        )  # fmt: skip


@dataclass(frozen=True)
class ListFile:
    """A JSON file, by lines or as a whole, plain or gzip, whose rows have a list of words and one of their tags.

    Attributes:
        path: the file.
        token_column: the name of the lists of words.
        tag_columns: names that the lists of tags may have; the first that is there is taken.
        labels: the tags by number where the lists have numbers.
        labelled: the sentences must have tags.
        max_examples: only so many rows.
        key: the config key that messages name.
    """

    path: Path
    token_column: str = "tokens"
    tag_columns: tuple[str, ...] = ("ner_tags", "tags", "labels")
    labels: tuple[str, ...] | None = None
    labelled: bool = True
    max_examples: int | None = None
    key: str = "benchmark.train_file"

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    def check(self) -> None:
        """Cheap look at the file before any work; reads the first rows.

        Raises:
            DataError: it cannot be used.
        """
        if fault := fault_of(self.path):
            raise DataError(
                f"{self.key}: '{self.path}' {fault}; give JSON lines of words and tags, plain or gzip"
            )
        self._read(LOOK if self.max_examples is None else min(LOOK, self.max_examples))

    def read(self) -> Sentences:
        """All sentences; see `dataset_sentences`."""
        return self._read(self.max_examples)

    def _read(self, limit: int | None) -> Sentences:
        records = TaskFile(self.path, (), self.labelled, key=self.key).records()
        table = _Table([dict(record) for _, record in islice(records, limit) if isinstance(record, Mapping)])
        tags = next((name for name in self.tag_columns if name in table.features), self.tag_columns[0])
        return dataset_sentences(
            table, tokens=self.token_column, tags=tags, labels=self.labels, labelled=self.labelled,
            name=str(self.path), key=self.key,
        )  # fmt: skip


class _Table:
    """Rows as a data set of `datasets` shows them."""

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
    max_examples: int | None = None,
    name: str = "the data set",
    key: str = "benchmark.hub",
) -> Sentences:
    """The sentences of a data set of `datasets`.

    Rows without words are left out; `starts` has the rows of the others.

    Args:
        dataset: a split, with `features`, a length and columns by name.
        tokens: its column of lists of words.
        tags: its column of lists of tags, or of numbers of tags; None where it has none.
        labels: the tags by number where the column of numbers does not name them itself (`ClassLabel`).
        labelled: the sentences must have tags; if not, a data set may lack the column, or have -1 for all tags.
        max_examples: only so many rows.
        name: what messages call it.
        key: the config key that messages name.

    Raises:
        DataError: it lacks a column, has no sentences, or a row cannot be used; the message says which.
    """
    features = dataset.features
    missing = [column for column in (tokens, tags) if column is not None and column not in features]
    if missing == [tags] and not labelled:
        tags, missing = None, []
    if missing:
        raise DataError(
            f"{key}: '{name}' has no column '{missing[0]}'; it has {', '.join(features)}; name its columns by "
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
            raise DataError(
                f"{key}: '{name}' has no tags; choose another split, or name them by benchmark.tag_column"
            )
        tags = None
    for number, (words, codes) in enumerate(zip(list(dataset[tokens]), coded, strict=True), 1):
        place = f"{key}: '{name}' row {number}"
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise DataError(
                f"{place}: '{tokens}' is no list of words; name their column by benchmark.token_column"
            )
        if tags is not None and (not isinstance(codes, list) or len(codes) != len(words)):
            tagged = f"{len(codes)} tags" if isinstance(codes, list) else "no list of tags"
            raise DataError(f"{place}: {len(words)} words and {tagged}; give one a word")
        if words:
            written = [] if tags is None else [_written(code, names, place) for code in codes]
            found.append((number, words, written))
    if not found:
        raise DataError(f"{key}: '{name}' has no words in its column '{tokens}'; choose another split")
    numbers, sentences, all_tags = (list(column) for column in zip(*found, strict=True))
    return Sentences(sentences, None if tags is None else all_tags, numbers, name, key, rows=True)


def _counted(column: int, width: int) -> int | None:
    return column % width if -width <= column < width else None


def _columns(count: int) -> str:
    return "1 column" if count == 1 else f"{count} columns"


def _names(feature: Any) -> Sequence[str] | None:
    """Names of the class labels in a list feature, which `datasets` writes in several ways."""
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
    return getattr(inner, "names", None)


def _written(code: Any, names: Sequence[str] | None, place: str) -> str:
    if isinstance(code, int):
        if names is None:
            raise DataError(
                f"{place}: tags are numbers without names; give them by benchmark.labels=[O,B-PER,...]"
            )
        if not 0 <= code < len(names):
            raise DataError(f"{place}: tag {code} is unknown; there are {len(names)}, counted from 0")
        code = names[code]
    if not isinstance(code, str) or not is_tag(code):
        raise DataError(
            f"{place}: '{code}' is no tag such as O or B-PER; name their column by benchmark.tag_column"
        )
    return code
