"""Records of the data sets' files: JSON lines, a JSON list, CSV or XML, plain or gzip."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from potstill.data.common.text_files import fault_of, read_document, read_lines
from potstill.data.rationales.sets import Record
from potstill.errors import DataError
from potstill.runtime.json_text import parse_json

SUFFIXES = tuple(kind + packed for kind in (".json", ".jsonl", ".csv") for packed in ("", ".gz"))
SVAMP_TRAIN = 800  # of the 1,000 rows of the original file

Placed = tuple[str, Record]  # place of a record, and the record


def find(stem: Path) -> Path | None:
    """The file `stem` with a known suffix, if it exists."""
    return next((p for s in SUFFIXES if (p := stem.with_name(stem.name + s)).is_file()), None)


def records_of(path: Path, key: str) -> list[Placed]:
    """All records of a file, each with its place, such as `line 7`.

    Raises:
        DataError: The file cannot be read or has no records.
    """
    if fault := fault_of(path):
        raise DataError(f"{key}: '{path}' {fault}; use a JSON, CSV or XML file, plain or gzip")
    name = path.name.removesuffix(".gz")
    if name.endswith(".csv"):
        records = list(_table(path, key))
    elif name.endswith(".xml"):
        records = list(_problems(path, key))
    else:
        records = entries_of(path, key)
        for place, entry in records:
            if not isinstance(entry, dict):
                raise DataError(
                    f"{key}: '{path}' {place}: {entry!r:.60} is not a JSON object; use one per row"
                )
    if not records:
        raise DataError(f"{key}: '{path}' has no rows; use a file with rows")
    return records


def entries_of(path: Path, key: str) -> list[tuple[str, Any]]:
    """The entries of a JSON list, or of JSON lines, with their places.

    Raises:
        DataError: The file cannot be read or parsed.
    """
    if fault := fault_of(path):
        raise DataError(f"{key}: '{path}' {fault}; use a JSON list or JSON lines, plain or gzip")
    text = read_document(path, key)
    lines = text.split("\n")
    if text.lstrip().startswith("["):
        return [(f"row {n}", entry) for n, entry in enumerate(_decoded(text, path, key, ""), 1)]
    return [
        (f"line {n}", _decoded(line, path, key, f" line {n}"))
        for n, line in enumerate(lines, 1)
        if line.strip()
    ]


def svamp_part(records: list[Placed], split: str) -> list[Placed]:
    """The train or test part of SVAMP's original file, in the order of the published files."""
    order = np.random.RandomState(0).permutation(len(records))
    part = order[:SVAMP_TRAIN] if split == "train" else order[SVAMP_TRAIN:]
    return [records[row] for row in part]


def _decoded(text: str, path: Path, key: str, place: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        place = place or _surrogate_row(text)
        raise DataError(
            f"{key}: '{path}'{place}: invalid JSON ({error}); use a JSON list or JSON lines"
        ) from error


def _surrogate_row(text: str) -> str:
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


def _table(path: Path, key: str) -> Iterator[Placed]:
    reader = csv.DictReader((f"{line}\n" for line in read_lines(path, key)), strict=True)
    try:
        for cells in reader:
            if None in cells or None in cells.values():
                raise DataError(
                    f"{key}: '{path}' line {reader.line_num}: not as many columns as the first line; correct it"
                )
            yield f"line {reader.line_num}", cells
    except csv.Error as error:
        raise DataError(
            f"{key}: '{path}' line {reader.line_num}: invalid CSV ({error}); double quotes within texts"
        ) from error


def _problems(path: Path, key: str) -> Iterator[Placed]:
    """ASDiv's problems: texts by name of the field."""
    text = read_document(path, key)
    try:
        root = ElementTree.fromstring(text.encode())
    except ElementTree.ParseError as error:
        raise DataError(f"{key}: '{path}' is not XML ({error}); use the complete file") from error
    for number, problem in enumerate(root.iter("Problem"), 1):
        place = f"problem {problem.get('ID', number)}"
        yield place, {field.tag: (field.text or "").strip() for field in problem}
