"""Collections for retrieval in the layout of BEIR: documents, queries, and which documents answer a query. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from potstill.data.common.records import RecordError, check_file, field_of, read_cells, read_entries
from potstill.errors import ConfigError, FileError, FormatError

KEY = "benchmark.folder"
CORPUS, QUERIES = "corpus.jsonl", "queries.jsonl"


@dataclass(frozen=True)
class Collection:
    """Documents, and the queries of one part.

    Attributes:
        documents: Text of each document, the title before it.
        document_ids: Its id.
        queries: Text of each query that has a relevant document.
        query_ids: Its id.
        relevant: Number and grade, 1 or more, of the relevant documents of each query.
        left_out: Number of queries of the part without a relevant document, which are not evaluated.
    """

    documents: list[str]
    document_ids: list[str]
    queries: list[str]
    query_ids: list[str]
    relevant: list[dict[int, int]]
    left_out: int


def collection_files(folder: str | None, part: str) -> tuple[Path, Path, Path]:
    """The files of documents, queries and qrels, plain or gzip, their first MiB checked.

    Raises:
        ConfigError: No folder, or no such part.
        FileError: A file is missing, empty, binary or not UTF-8.
    """
    if folder is None:
        raise ConfigError(f"{KEY}=null: a folder with {CORPUS}, {QUERIES} and qrels/{part}.tsv, as those of BEIR")
    place = Path(folder).expanduser()
    qrels = _file(place / "qrels" / f"{part}.tsv")
    if not qrels.is_file() and (place / "qrels").is_dir():
        known = sorted({path.name.partition(".")[0] for path in (place / "qrels").iterdir() if ".tsv" in path.name})
        raise ConfigError(f"benchmark.part={part}: '{place}/qrels' has {', '.join(known) or 'no .tsv file'}")
    files = _file(place / CORPUS), _file(place / QUERIES), qrels
    for path in files:
        check_file(path, KEY, f"{CORPUS}, {QUERIES} and qrels/{part}.tsv, as those of BEIR")
    return files


def read_collection(folder: str | None, part: str, most: int | None = None) -> Collection:
    """Read a collection.

    Args:
        folder: Has `corpus.jsonl` (`_id`, `title` if there is one, `text`), `queries.jsonl` (`_id`, `text`) and
            `qrels/<part>.tsv` (query, document, grade), each plain or gzip. Qrels of four columns are those of
            TREC (query, 0, document, grade).
        part: Name of the qrels.
        most: Number of queries; None for all.

    Raises:
        ConfigError: No folder, or no such part.
        FileError: A file cannot be read.
        FormatError: A row that cannot be used, an id that occurs twice, qrels of unknown ids, or none.
    """
    corpus, queries, qrels = collection_files(folder, part)
    documents = _texts(corpus, titled=True)
    texts = _texts(queries, titled=False)
    number_of = {name: number for number, name in enumerate(documents)}
    relevant: dict[str, dict[int, int]] = {}
    unknown: dict[str, list[str]] = {QUERIES: [], CORPUS: []}
    for query, document, grade in _grades(qrels):
        if query not in texts:
            unknown[QUERIES].append(query)
        elif document not in number_of:
            unknown[CORPUS].append(document)
        else:
            own = relevant.setdefault(query, {})
            if grade > 0:
                own[number_of[document]] = grade
    for name, ids in unknown.items():
        if ids:
            raise FormatError(
                f"{KEY}: '{qrels}' names {len(set(ids)):,} ids that '{name}' does not have, the first {ids[0]!r}; "
                "use files of one collection"
            )
    chosen = dict(islice(((query, own) for query, own in relevant.items() if own), most))
    if not chosen:
        raise FormatError(f"{KEY}: '{qrels}' has no grade above 0; use qrels with relevant documents")
    return Collection(
        list(documents.values()),
        list(documents),
        [texts[query] for query in chosen],
        list(chosen),
        list(chosen.values()),
        sum(not own for own in relevant.values()),
    )


def _file(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.is_file() else path


def _texts(path: Path, *, titled: bool) -> dict[str, str]:
    """Texts by id."""
    found: dict[str, str] = {}
    for place, record in read_entries(path, KEY, objects=True):
        try:
            name = str(field_of(record, "_id", (str, int)))
            text = field_of(record, "text").strip()
            title = (field_of(record, "title").strip() if record.get("title") is not None else "") if titled else ""
            if not text and not title:
                raise RecordError("'text' is blank")
            if name in found:
                raise RecordError(f"'_id' {name!r} occurs twice")
        except RecordError as error:
            raise FormatError(f"{KEY}: '{path}' {place}: {error}; correct the row") from error
        found[name] = f"{title} {text}".strip()
    if not found:
        raise FileError(f"{KEY}: '{path}' has no rows; use a file with rows")
    return found


def _grades(path: Path) -> Iterator[tuple[str, str, int]]:
    """Query, document and grade of every row."""
    for number, (place, cells) in enumerate(read_cells(path, KEY, tabs=True)):
        row = cells if len(cells) > 1 else cells[0].split()
        if len(row) == 4:  # TREC's
            row = [row[0], row[2], row[3]]
        if len(row) != 3:
            raise FormatError(f"{KEY}: '{path}' {place}: {len(row)} columns; query, document and grade")
        try:
            grade = float(row[2])
        except ValueError:
            if number == 0:  # the header
                continue
            grade = math.nan
        if not grade.is_integer():
            raise FormatError(f"{KEY}: '{path}' {place}: the grade is {row[2]!r:.40}; must be a whole number")
        yield row[0].strip(), row[1].strip(), int(grade)
