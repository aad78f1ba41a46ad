"""Files of the data sets: names, numbers, and records of JSON lines, a JSON list, CSV or XML, plain or gzip."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree

from potstill.data.common.records import Placed, Record, RecordError, check_file, read_cells, read_entries, suffix_of
from potstill.data.common.text_files import read_document
from potstill.errors import FileError, FormatError

SUFFIXES = tuple(kind + packed for kind in (".json", ".jsonl", ".csv") for packed in ("", ".gz"))

Made = TypeVar("Made")


def find(stem: Path) -> Path | None:
    """The file `stem` with a known suffix, if it exists."""
    return next((p for s in SUFFIXES if (p := stem.with_name(stem.name + s)).is_file()), None)


def numbered_files(folder: Path, stem: str, first: int, key: str, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """The files `<stem><number><suffix>` of a folder in the order of their numbers.

    Raises:
        FileError: A number is missing.
    """
    pattern = re.compile(rf"{re.escape(stem)}([0-9]+)(?:{'|'.join(map(re.escape, suffixes))})")
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if match := pattern.fullmatch(path.name):
            found.setdefault(int(match[1]), path)
    for number in range(first, max(found, default=first)):
        if number not in found:
            raise FileError(
                f"{key}: '{folder}' has {found[max(found)].name} but no {stem}{number}{suffixes[0]}; add all files, "
                "since outputs and rows are matched by their order"
            )
    return [found[number] for number in sorted(found)]


def records_of(path: Path, key: str) -> list[Placed]:
    """All records of a file, each with its place, such as `line 7`.

    Raises:
        DataError: The file cannot be read or has no records.
    """
    check_file(path, key, "a JSON, CSV or XML file, plain or gzip")
    readers = {".csv": _table_rows, ".xml": _xml_problems}
    suffix = suffix_of(path)
    records = list(readers[suffix](path, key) if suffix in readers else read_entries(path, key, objects=True))
    if not records:
        raise FormatError(f"{key}: '{path}' has no rows; use a file with rows")
    return records


def convert(records: Sequence[Placed], function: Callable[[Record], Made], source: str, wanted: str) -> list[Made]:
    """Apply a function to all records.

    Args:
        records: Records with their places.
        function: The function, which raises `RecordError` for an invalid record.
        source: Config key and file for messages.
        wanted: Valid content, for messages.

    Raises:
        FormatError: A record is invalid; the message names its place.
    """
    made = []
    for place, record in records:
        try:
            made.append(function(record))
        except RecordError as error:
            raise FormatError(f"{source} {place}: {error}; use {wanted}") from error
    return made


def _table_rows(path: Path, key: str) -> Iterator[Placed]:
    rows = read_cells(path, key)
    _, header = next(rows, ("", []))
    for place, cells in rows:
        if len(cells) != len(header):
            raise FormatError(
                f"{key}: '{path}' {place}: {len(cells)} columns, the first line has {len(header)}; correct it"
            )
        yield place, dict(zip(header, cells, strict=True))


def _xml_problems(path: Path, key: str) -> Iterator[Placed]:
    """ASDiv's problems: texts by name of the field."""
    text = read_document(path, key)
    try:
        root = ElementTree.fromstring(text.encode())
    except ElementTree.ParseError as error:
        raise FormatError(f"{key}: '{path}' is not XML ({error}); use the complete file") from error
    for number, problem in enumerate(root.iter("Problem"), 1):
        yield f"problem {problem.get('ID', number)}", {own.tag: (own.text or "").strip() for own in problem}
