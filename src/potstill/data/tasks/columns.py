"""Reading tagged sentences: files of one token per line (CoNLL), JSON files of lists, or a data set of the hub.

Tags stay as written; see `entities.py` for their meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar

from potstill.data.common.text_files import read_lines, skipping
from potstill.data.tasks.entities import mixed_tags
from potstill.data.tasks.sources import DataFile, PartSource
from potstill.errors import FormatError, LabelError

DOCUMENT = "-DOCSTART-"  # a line that begins so starts a document
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
            FormatError: Some have tags and others do not.
        """
        first = parts[0]
        if odd := next((part for part in parts if (part.tags is None) != (first.tags is None)), None):
            raise FormatError(f"{odd.key}: '{odd.name}' has other columns than '{first.name}'; mix files of one kind")
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

    def check_tags(self, prefix: str) -> Sentences:
        """Reject a mixture of plain tags, such as parts of speech, and tags with prefixes.

        Raises:
            LabelError: There are both; the message begins with `prefix`.
        """
        if mixed := mixed_tags(tag for tags in self.tags or () for tag in tags):
            plain, prefixed = mixed
            sentence = next(number for number, tags in enumerate(self.tags or ()) if plain in tags)
            place = self.place(sentence, (self.tags or ())[sentence].index(plain))
            raise LabelError(
                f"{prefix} {place}: invalid tag '{plain}', expected O or tags such as {prefixed}; correct it, or set "
                "benchmark.tag_column to the column of the tags, or to none"
            )
        return self


@dataclass(frozen=True)
class ColumnSource(PartSource):
    """A file of one token per line with columns separated by spaces or tabs, sentences by blank lines.

    If the first line has tabs, only tabs separate columns, so a token may contain blanks. Lines that begin with
    `-DOCSTART-` are skipped and end a sentence. Lines that `source.skip` matches do not end one.

    Attributes:
        token_column: Column of the tokens, from 0; negative numbers count from the last.
        tag_column: Column of the tags; None without tags. Without `labelled`, a file of a single column is accepted.
    """

    token_column: int = 0
    tag_column: int | None = -1

    wanted: ClassVar[str] = "one token per line and a blank line after each sentence"

    def read_first(self, count: int | None) -> Sentences:
        """See `PartSource`."""
        read = list(islice(self._sentences(), count))
        if not read:
            raise FormatError(f"{self.source.prefix} has no sentences; use {self.wanted}")
        starts, words, tags = (list(column) for column in zip(*read, strict=True))
        numbered = [list(map(str, range(1, len(own) + 1))) for own in words]
        if self.token_column == 0 and words == numbered and any(len(own) > 1 for own in words):
            raise FormatError(
                f"{self.source.prefix} has word numbers in column 0, which is read as the words; set "
                "benchmark.token_column, counted from 0"
            )
        sentences = Sentences(words, tags if any(tags) else None, starts, self.source.name, self.source.key)
        return sentences.check_tags(self.source.prefix)

    def _sentences(self) -> Iterator[Sentence]:
        table: _Table | None = None
        start = 0
        words: list[str] = []
        tags: list[str] = []
        assert isinstance(self.source, DataFile)
        skipped = skipping(self.source.skip)
        for number, line in enumerate(read_lines(self.source.path, self.source.key), 1):
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
                problem = (
                    f"{len(cells)} column(s), line {table.line} has {table.width}; correct it, or skip such lines with "
                    "data.skip=<regular expression>"
                )
                odd = (table.first, table.line) if table.first.startswith("#") else (line, number)
                raise self._error(*odd, problem)
            if not words:
                start = number
            words.append(cells[table.token].strip(BLANKS))
            if table.tag is not None:
                tags.append(cells[table.tag].strip(BLANKS))
        if words:
            yield start, words, tags

    def _table(self, line: str, number: int) -> _Table:
        """Columns of the file, given its first line with a token."""
        if "\t" in line:
            cells = _TABS.split(line)
            token, tag = self._columns(len(cells), number, line)
            # Blanks beside tabs also separate columns, unless they are within a token.
            if not any(_GAP.search(cell.strip(BLANKS)) for n, cell in enumerate(cells) if n != token):
                return _Table(_TABS, len(cells), token, tag, line, number)
        width = len(_GAP.split(line))
        return _Table(_GAP, width, *self._columns(width, number, line), line, number)

    def _columns(self, width: int, number: int, line: str) -> tuple[int, int | None]:
        """Columns of tokens and tags, from 0, in lines of `width` columns."""
        known = range(-width, width)
        bare = self.tag_column is None or (width == 1 and not self.labelled and self.tag_column == -1)
        token = self.token_column % width
        if self.token_column not in known:
            wrong = f"token_column={self.token_column}; set it to the column of the tokens, from 0"
        elif bare or self.tag_column is None:
            return token, None
        elif self.tag_column not in known or self.tag_column % width == token:
            wrong = f"tag_column={self.tag_column}; set it to the column of the tags, from 0, or none"
        else:
            return token, self.tag_column % width
        raise self._error(line, number, f"{width} column(s), but benchmark.{wrong}")

    def _error(self, line: str, number: int, problem: str) -> FormatError:
        if line.startswith("#"):
            problem = "a comment has other columns than the tokens; skip such lines with \"data.skip='^#'\""
        return FormatError(f"{self.source.prefix} line {number}: {problem}")


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
class ListSource(PartSource):
    """Rows with a list of words and a list of tags, of a JSON file or a data set; rows without words are skipped.

    Attributes:
        token_column: Column of the lists of words.
        tag_columns: Possible columns of the lists of tags, or of tag numbers; the first existing one is used. A single
            one must exist; without any there are no tags. Without `labelled`, all tags may be -1.
        names: Tags by number, for numbers that are not of a `ClassLabel`.
    """

    token_column: str = "tokens"
    tag_columns: tuple[str, ...] = ("ner_tags", "tags", "labels")
    names: tuple[str, ...] | None = None

    wanted: ClassVar[str] = "JSON lines of words and tags"

    def read_first(self, count: int | None) -> Sentences:
        """See `PartSource`."""
        rows: list[tuple[str, Any]] = list(islice(self.source.records(), count))
        if not rows:
            raise FormatError(f"{self.source.prefix} has no rows; use {self.wanted}, or another split")
        tag = self._tag_column(rows[0][1])
        coded = [None if tag is None else row.get(tag) for _, row in rows]
        single = (codes if isinstance(codes, list) else [codes] for codes in coded)
        if all(code in (-1, "", None) for codes in single for code in codes):
            if self.labelled:
                raise LabelError(f"{self.source.prefix} has no tags; use other rows, or set benchmark.tag_column")
            tag = None
        found: list[Sentence] = []
        for number, ((at, row), codes) in enumerate(zip(rows, coded, strict=True), 1):
            place, words = f"{self.source.prefix} {at}", row.get(self.token_column)
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise FormatError(f"{place}: '{self.token_column}' is not a list of words; set benchmark.token_column")
            if tag is not None and (not isinstance(codes, list) or len(codes) != len(words)):
                tagged = f"{len(codes)} tags" if isinstance(codes, list) else "no list of tags"
                raise FormatError(f"{place}: {len(words)} words and {tagged}; expected one tag per word")
            if words:
                found.append((number, words, [] if tag is None else [self._tag(code, place) for code in codes or ()]))
        if not found:
            raise FormatError(f"{self.source.prefix} has no words in its column '{self.token_column}'; use other rows")
        starts, sentences, tags = (list(column) for column in zip(*found, strict=True))
        named = (None if tag is None else tags, starts, self.source.name, self.source.key)
        return Sentences(sentences, *named, rows=True).check_tags(self.source.prefix)

    def _tag_column(self, first: Mapping[str, Any]) -> str | None:
        tag = next((column for column in self.tag_columns if column in first), next(iter(self.tag_columns), None))
        if tag not in first and not self.labelled and len(self.tag_columns) > 1:
            tag = None
        missing = [column for column in (self.token_column, tag) if column is not None and column not in first]
        if missing:
            raise FormatError(
                f"{self.source.prefix} has no column '{missing[0]}', but {', '.join(first)}; set "
                "benchmark.token_column and benchmark.tag_column"
            )
        return tag

    def _tag(self, code: Any, place: str) -> str:
        if isinstance(code, int) and self.names and 0 <= code < len(self.names):
            code = self.names[code]
        if isinstance(code, str) and code.strip():
            return code.strip()
        raise LabelError(
            f"{place}: invalid tag {code!r}, expected such as O or B-PER, or a number with "
            "benchmark.labels=[O,B-PER,...]; set benchmark.tag_column"
        )
