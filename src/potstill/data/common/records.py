"""Records of data files, plain or gzip: cells of TSV and CSV files, entries of JSON lines and of JSON documents."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from potstill.data.common.text_files import file_problem, read_document, read_lines, skipping
from potstill.errors import FileError, FormatError
from potstill.runtime.json_text import parse_json

Record = Mapping[str, Any]
Placed = tuple[str, Any]  # place in the file, such as `line 7`, and the record


class RecordError(ValueError):
    """A record that cannot be used; the caller adds its place."""


def suffix_of(path: Path) -> str:
    """The suffix of a file without `.gz`."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def check_file(path: Path, key: str, wanted: str) -> None:
    """Check a file by its first MiB.

    Raises:
        FileError: The file is missing, empty, binary or not UTF-8; the message ends in `wanted`.
    """
    if problem := file_problem(path):
        raise FileError(f"{key}: '{path}' {problem}; use {wanted}")


def field_of(record: Any, field: str, kind: type | tuple[type, ...] = str) -> Any:
    """A field of a JSON object.

    Raises:
        RecordError: It is missing, or of another type.
    """
    if not isinstance(record, Mapping):
        raise RecordError(f"{record!r:.60} is not a JSON object")
    value = record.get(field)
    if not isinstance(value, kind) or field not in record:
        found = f"is {value!r:.60}" if field in record else f"is missing (found {', '.join(map(str, record))})"
        raise RecordError(f"'{field}' {found}")
    return value


def read_cells(path: Path, key: str, *, tabs: bool = False, skip: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """Cells of the lines of a table with their places, the header included; blank lines are left out.

    Args:
        path: CSV file, or TSV file.
        key: Config key for messages.
        tabs: Whether tabs separate the cells and quotes are literal.
        skip: Regular expression of lines to leave out.

    Raises:
        DataError: The file cannot be read or parsed; the message names the line.
    """
    skipped = skipping(skip)
    # A skipped line becomes a blank one, so that line numbers stay.
    lines = ("" if skipped(line) else line.removesuffix("\r") for line in read_lines(path, key))
    if tabs:
        yield from ((f"line {number}", line.split("\t")) for number, line in enumerate(lines, 1) if line)
        return
    reader = csv.reader((f"{line}\n" for line in lines), strict=True)
    try:
        yield from ((f"line {reader.line_num}", cells) for cells in reader if cells)
    except csv.Error as error:
        raise FormatError(
            f"{key}: '{path}' line {reader.line_num}: invalid CSV ({error}); double quotes within texts"
        ) from error


def read_entries(path: Path, key: str, *, objects: bool = False, skip: str | None = None) -> Iterator[Placed]:
    """Entries of JSON lines, of a JSON list, or of a JSON object of objects, with their places.

    A file `.jsonl` of lines is read line by line, so its size is not limited.

    Args:
        path: JSON file.
        key: Config key for messages.
        objects: Whether all entries must be objects.
        skip: Regular expression of lines to leave out, if the file has JSON lines.

    Raises:
        DataError: The file cannot be read or parsed; the message names the line or row.
    """
    skipped = skipping(skip)
    streamed = suffix_of(path) == ".jsonl"
    text = "" if streamed else read_document(path, key)
    lines = read_lines(path, key) if streamed else text.split("\n")
    kept = ((number, line) for number, line in enumerate(lines, 1) if line.strip() and not skipped(line))
    first, second = next(kept, None), next(kept, None)
    if first is None:
        return
    head = first[1].strip()
    document = head[0] == "[" or (not streamed and (second is None or (head[0] == "{" and head[-1] != "}")))
    if document:
        entries = _document(text or read_document(path, key), path, key)
    else:
        shown = (entry for entry in (first, second) if entry)
        entries = ((f"line {n}", _decoded(line, path, key, f" line {n}")) for n, line in chain(shown, kept))
    for place, entry in entries:
        if objects and not isinstance(entry, dict):
            raise FormatError(f"{key}: '{path}' {place}: {entry!r:.60} is not a JSON object; use one per line or row")
        yield place, entry


def read_parquet(path: Path, key: str, wanted: str) -> Iterator[Placed]:
    """Rows of a Parquet file with their places, without cells that are null.

    Raises:
        DataError: The file is missing, or no Parquet file; the message of a missing one ends in `wanted`.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    if not path.is_file():
        raise FileError(f"{key}: '{path}' is not a file; use {wanted}")
    try:
        number = 0
        for batch in ParquetFile(path).iter_batches():
            for record in batch.to_pylist():
                number += 1
                yield f"row {number}", {name: value for name, value in record.items() if value is not None}
    except (ArrowException, OSError) as error:
        raise FormatError(f"{key}: '{path}' is not a Parquet file ({' '.join(str(error).split())})") from error


def read_json_document(path: Path, key: str) -> Any:
    """The value of a JSON file.

    Raises:
        DataError: The file cannot be read or parsed.
    """
    return _decoded(read_document(path, key), path, key, "")


def _document(text: str, path: Path, key: str) -> Iterator[Placed]:
    content = _decoded(text, path, key, "")
    if isinstance(content, dict) and all(isinstance(entry, dict) for entry in content.values()):
        content = list(content.values())
    if not isinstance(content, list):
        return iter([("line 1", content)])
    return ((f"row {number}", entry) for number, entry in enumerate(content, 1))


def _decoded(text: str, path: Path, key: str, place: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        place = place or _row_with_surrogate(text)
        raise FormatError(f"{key}: '{path}'{place}: invalid JSON ({error}); use JSON lines, or a JSON list") from error


def _row_with_surrogate(text: str) -> str:
    """The first row of a JSON list that `parse_json` rejects for its text, such as ` row 2`."""
    try:
        for number, entry in enumerate(json.loads(text), 1):
            try:
                parse_json(json.dumps(entry))
            except ValueError:
                return f" row {number}"
    except (ValueError, RecursionError):  # not JSON at all
        pass
    return ""
