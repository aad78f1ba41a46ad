"""Rows of several texts: a query, a positive and negatives, with or without scores. Imports no torch."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from potstill.data.common.batching import Ints
from potstill.data.common.records import Placed, RecordError, field_of, read_parquet, suffix_of
from potstill.data.common.text_files import packed
from potstill.data.corpus.sources import HubDataset
from potstill.data.tasks.sources import OBJECTS, TABLES, DataFile
from potstill.errors import FormatError
from potstill.runtime.ranges import is_number

# Names of the columns of a query and its positive, where none are given; the first that a row has.
LAYOUTS = (
    ("anchor", "positive"), ("query", "positive"), ("question", "positive"), ("query", "document"),
    ("query", "passage"), ("query", "answer"), ("question", "answer"), ("question", "passage"), ("question", "context"),
    ("sentence1", "sentence2"), ("text1", "text2"),
)  # fmt: skip
WANTED = "TSV, CSV, JSON lines, a JSON list (plain or gzip) or Parquet"
_ALIKE = ("sentence1", "text1")  # first columns of pairs that may be alike or not
_LABELS = ("label", "score")
_NEGATIVES = re.compile(r"negatives?|negative_\d+")


class TextRow(NamedTuple):
    """A row.

    Attributes:
        query: Not blank.
        positive: Not blank.
        negatives: None is blank.
        margins: Score of the positive less that of each negative; empty without scores.
    """

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    margins: tuple[float, ...] = ()


@dataclass(frozen=True)
class Columns:
    """The columns of rows.

    Attributes:
        query: None: one of `LAYOUTS`, or `query` if `positive` is given.
        positive: None: one of `LAYOUTS`, or `positive` if `query` is given.
        negatives: None: those whose names say so.
        scores: Empty: none are read.
    """

    query: str | None = None
    positive: str | None = None
    negatives: Sequence[str] | None = None
    scores: Sequence[str] = ()

    def of(self, names: Sequence[str]) -> Columns:
        """The columns of a row that has those of these names.

        Raises:
            RecordError: It lacks some.
        """
        has = f"it has {', '.join(names)}"
        if self.query or self.positive:
            pair: tuple[str, str] | None = (self.query or "query", self.positive or "positive")
        else:
            pair = next((layout for layout in LAYOUTS if {*layout} <= {*names}), None)
        if pair is None:
            raise RecordError(f"no columns of a query and a positive; {has}; set data.columns.query and .positive")
        if missing := [name for name in (*pair, *self.scores) if name not in names]:
            raise RecordError(f"no column '{missing[0]}'; {has}; set data.columns")
        if not self.query and pair[0] in _ALIKE and (label := next((n for n in _LABELS if n in names), None)):
            raise RecordError(
                f"the column '{label}' may say that '{pair[1]}' does not suit '{pair[0]}'; if all pairs suit, set "
                f"data.columns.query={pair[0]} and data.columns.positive={pair[1]}"
            )
        negatives = self.negatives
        if negatives is None:
            negatives = [name for name in names if _NEGATIVES.fullmatch(name)]
        return replace(self, query=pair[0], positive=pair[1], negatives=[n for n in negatives if n in names])

    def row(self, record: Mapping[str, Any]) -> TextRow:
        """A row of these columns.

        Raises:
            RecordError: It has no query or no positive, or a value of another kind.
        """
        query, positive = (_text(record, str(name)) for name in (self.query, self.positive))
        negatives = [text for name in self.negatives or () for text in _listed(record, name, str)]
        scores = [float(score) for name in self.scores for score in _listed(record, name, float)]
        if not self.scores:
            return TextRow(query, positive, tuple(text for text in negatives if text.strip()))
        if len(scores) == len(negatives) + 1:
            scores = [scores[0] - score for score in scores[1:]]
        elif len(scores) != len(negatives):
            raise RecordError(
                f"{len(scores)} scores and {len(negatives)} negatives; a score of the positive and of each negative, "
                "or a margin of each negative"
            )
        kept = [(text, score) for text, score in zip(negatives, scores, strict=True) if text.strip()]
        return TextRow(query, positive, tuple(text for text, _ in kept), tuple(score for _, score in kept))


def _text(record: Mapping[str, Any], name: str) -> str:
    text: str = field_of(record, name)
    if not text.strip():
        raise RecordError(f"'{name}' has no text")
    return text


def _listed(record: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    """The values of a column: one, or a list of them; a missing one is none."""
    value = record.get(name)
    found = value if isinstance(value, list) else [] if value is None else [value]
    if kind is str and all(isinstance(own, str) for own in found):
        return found
    if kind is float:
        try:
            numbers = [float(own) if isinstance(own, str) else own for own in found]
        except ValueError:
            numbers = [None]
        if all(is_number(own) and np.isfinite(own) for own in numbers):
            return numbers
    raise RecordError(
        f"'{name}' is {value!r:.60}; must be {'a text' if kind is str else 'a number'}, or a list of them"
    )


@dataclass(frozen=True)
class RowFile(DataFile):
    """A file of rows; also Parquet."""

    def records(self) -> Iterator[Placed]:
        """Rows by the names of their columns.

        Raises:
            DataError: The file cannot be read.
        """
        suffix = suffix_of(self.path)
        if suffix == ".parquet":
            yield from read_parquet(self.path, self.key, WANTED)
            return
        if suffix not in TABLES + OBJECTS:
            raise FormatError(f"{self.prefix} has an unknown suffix; use {WANTED}")
        rows = super().records()
        if suffix in OBJECTS:
            yield from rows
            return
        header = [cell.strip() for cell in next(rows, ("", []))[1]]
        for place, cells in rows:
            if len(cells) != len(header):
                raise FormatError(
                    f"{self.prefix} {place}: {len(cells)} columns, the first line has {len(header)}; correct the row"
                )
            yield place, dict(zip(header, cells, strict=True))


@dataclass(frozen=True)
class RowDataset:
    """A data set of rows."""

    source: HubDataset

    @property
    def name(self) -> str:
        """The name of the data set."""
        return self.source.name

    @property
    def prefix(self) -> str:
        """Beginning of messages."""
        return self.source.prefix

    def check(self, columns: Columns) -> None:
        """Check the columns by the description of the data set, which may lack them.

        Raises:
            DataError: It cannot be loaded, or has no columns of a query and a positive.
        """
        if names := [*self.source.features()]:
            try:
                columns.of(names)
            except RecordError as error:
                raise FormatError(f"{self.prefix}: {error}") from error

    def records(self) -> Iterator[Placed]:
        """Rows by the names of their columns."""
        return ((f"row {number}", row) for number, row in enumerate(self.source.rows(), 1))


RowSource = RowFile | RowDataset


def read_rows(source: RowSource, columns: Columns, most: int | None = None) -> Iterator[TextRow]:
    """The rows of a source.

    Args:
        source: A file or data set.
        columns: Of the rows.
        most: Rows that are read at most; None for all.

    Raises:
        DataError: It cannot be read or has no rows, or a row has no query or no positive; the message names its place.
    """
    known: dict[tuple[str, ...], Columns] = {}
    seen: set[str] = set()
    place = None
    for place, record in islice(source.records(), most):
        names = tuple(record)
        try:
            if names not in known:
                known[names] = columns.of(names)
                seen |= {*(known[names].negatives or ())}
            yield known[names].row(record)
        except RecordError as error:
            raise FormatError(f"{source.prefix} {place}: {error}") from error
    if place is None:
        raise FormatError(f"{source.prefix} has no rows; use rows of a query and a positive")
    if missing := [name for name in columns.negatives or () if name not in seen]:
        raise FormatError(f"{source.prefix} has no column '{missing[0]}'; it has {', '.join(next(iter(known)))}")


@dataclass(frozen=True)
class Prompts:
    """Texts that are put before those of rows.

    Attributes:
        query: Before queries.
        document: Before positives and negatives.
        lower: Whether texts are put into lower case.
    """

    query: str = ""
    document: str = ""
    lower: bool = False


@dataclass(frozen=True)
class TextRows:
    """Rows by the numbers of their texts.

    Attributes:
        name: Names of the sources.
        texts: Each text once, with its prompt.
        numbers: `(rows, 2 + most negatives)` numbers of query, positive and negatives; -1: no negative.
        margins: `(rows, most negatives)` float32; NaN: no negative; None without scores.
        keys: `(rows, 2)` digests of query and positive as written.
        duplicates: Number of rows that were left out, since an equal one came before.
    """

    name: str
    texts: list[str]
    numbers: Ints
    margins: NDArray[np.float32] | None
    keys: NDArray[np.uint64] = field(repr=False)
    duplicates: int = 0

    def fingerprint(self) -> dict[str, Any]:
        """See `TextSource`."""
        digest = blake2b(digest_size=16)
        for text in self.texts:
            digest.update(len(text).to_bytes(8, "little") + text.encode())
        return {"kind": "texts", "digest": digest.hexdigest()}

    def check(self) -> None:
        """See `TextSource`: the texts are there."""

    def batches(self, size: int) -> Iterator[list[str]]:
        """See `TextSource`."""
        return packed(iter(self.texts), size, None)


def collect_rows(rows: Iterable[TextRow], name: str, prompts: Prompts) -> TextRows:
    """Number the texts of rows; equal rows are used once.

    Args:
        rows: Of all sources.
        name: Names of the sources.
        prompts: That come before the texts.
    """
    texts: dict[str, int] = {}
    kept: dict[tuple[int, ...], tuple[float, ...]] = {}
    keys: list[tuple[bytes, bytes]] = []
    count = 0

    def number(prompt: str, text: str) -> int:
        return texts.setdefault(f"{prompt}{text.lower() if prompts.lower else text}", len(texts))

    for row in rows:
        count += 1
        query, others = number(prompts.query, row.query), (row.positive, *row.negatives)
        own = (query, *(number(prompts.document, text) for text in others))
        if own not in kept:
            kept[own] = row.margins
            keys.append((_digest(row.query), _digest(row.positive)))
    width = max(map(len, kept), default=2)
    numbers = np.full((len(kept), width), -1, np.int64)
    margins = np.full((len(kept), width - 2), np.nan, np.float32)
    for at, (own, scores) in enumerate(kept.items()):
        numbers[at, : len(own)] = own
        margins[at, : len(scores)] = scores
    scored = bool(np.isfinite(margins).any())
    digests = np.frombuffer(b"".join(part for pair in keys for part in pair), np.uint64).reshape(-1, 2)
    return TextRows(name, list(texts), numbers, margins if scored else None, digests, count - len(kept))


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=8).digest()


def held_out_rows(keys: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """`(rows,)` whether a row is held out.

    Rows that share a query or a positive, directly or by others, stay together. A checksum of the smallest digest of
    such a group decides, so the order of the rows does not matter.

    Args:
        keys: `(rows, 2)` digests of query and positive.
        share: Share of the groups that is held out.
    """
    digests, numbers = np.unique(keys, return_inverse=True)
    parents = list(range(len(digests)))

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = number = parents[parents[number]]
        return number

    pairs = [(int(query), int(positive)) for query, positive in numbers.reshape(keys.shape)]
    for query, positive in pairs:
        one, other = sorted((root(query), root(positive)))
        parents[other] = one
    border = int(share * 2**32)
    return np.array([zlib.crc32(digests[root(query)].tobytes()) < border for query, _ in pairs], np.bool_)
