"""Records of the files that the sets come in: JSON lines, a JSON list, CSV or XML, plain or gzip."""

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

SUFFIXES = tuple(kind + packed for kind in (".json", ".jsonl", ".csv") for packed in ("", ".gz"))
SVAMP_TRAIN = 800  # of the 1,000 rows of the original file

Placed = tuple[str, Record]  # where a record stands, and the record


def find(stem: Path) -> Path | None:
    """The file that is called `stem` and a known suffix, if there is one."""
    return next((p for s in SUFFIXES if (p := stem.with_name(stem.name + s)).is_file()), None)


def records_of(path: Path, key: str) -> list[Placed]:
    """All records of a file, each with its place, such as `line 7`.

    Raises:
        DataError: the file cannot be read or holds no records.
    """
    if fault := fault_of(path):
        raise DataError(f"{key}: '{path}' {fault}; give a JSON, CSV or XML file, plain or gzip")
    name = path.name.removesuffix(".gz")
    if name.endswith(".csv"):
        records = list(_table(path, key))
    elif name.endswith(".xml"):
        records = list(_problems(path, key))
    else:
        records = [
            (place, entry) for place, entry in entries_of(path, key) if _is_record(entry, path, key, place)
        ]
    if not records:
        raise DataError(f"{key}: '{path}' has no rows; give a file with rows")
    return records


def entries_of(path: Path, key: str) -> list[tuple[str, Any]]:
    """The entries of a JSON list, or of JSON lines, with their places.

    Raises:
        DataError: the file cannot be read or is neither.
    """
    if fault := fault_of(path):
        raise DataError(f"{key}: '{path}' {fault}; give a JSON list or JSON lines, plain or gzip")
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
    """The train or test part of SVAMP's original file, in the order of the published files.

    The rows are permuted by `numpy.random.RandomState(0)`; the first 800 are for training.
    """
    order = np.random.RandomState(0).permutation(len(records))
    part = order[:SVAMP_TRAIN] if split == "train" else order[SVAMP_TRAIN:]
    return [records[row] for row in part]


def _decoded(text: str, path: Path, key: str, place: str) -> Any:
    try:
        value = json.loads(text)
        # Only an escape can bring half of a pair: bytes that hold one are no UTF-8.
        halved = ("\\ud" in text or "\\uD" in text) and _halved(value)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{key}: '{path}'{place}: no JSON ({error}); give a JSON list or JSON lines"
        ) from error
    if halved:
        if not place and isinstance(value, list):
            place = f" row {next(n for n, entry in enumerate(value, 1) if _halved(entry))}"
        raise DataError(
            f"{key}: '{path}'{place}: a text has half of a surrogate pair (an escape such as \\ud83d alone), which is "
            "no character; write both halves, or leave it out"
        )
    return value


def _halved(value: Any) -> bool:
    """Whether a text within has half of a surrogate pair, which no tokenizer takes and no file can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _is_record(entry: Any, path: Path, key: str, place: str) -> bool:
    if not isinstance(entry, dict):
        raise DataError(f"{key}: '{path}' {place}: {entry!r:.60} is no JSON object; give one a row")
    return True


def _table(path: Path, key: str) -> Iterator[Placed]:
    reader = csv.DictReader((f"{line}\n" for line in read_lines(path, key)), strict=True)
    try:
        for cells in reader:
            if None in cells or None in cells.values():
                raise DataError(
                    f"{key}: '{path}' line {reader.line_num}: not as many columns as in the first line; mend it"
                )
            yield f"line {reader.line_num}", cells
    except csv.Error as error:
        raise DataError(
            f"{key}: '{path}' line {reader.line_num}: no CSV ({error}); a quote in a text is doubled"
        ) from error


def _problems(path: Path, key: str) -> Iterator[Placed]:
    """ASDiv's problems: the texts of their fields by name."""
    text = read_document(path, key)
    try:
        root = ElementTree.fromstring(text.encode())
    except ElementTree.ParseError as error:
        raise DataError(f"{key}: '{path}' is no XML ({error}); give the whole file") from error
    for number, problem in enumerate(root.iter("Problem"), 1):
        place = f"problem {problem.get('ID', number)}"
        yield place, {field.tag: (field.text or "").strip() for field in problem}
