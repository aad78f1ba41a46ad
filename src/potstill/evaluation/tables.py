"""Tables that scripts and spreadsheets read: CSV and TSV files, whole or not at all."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path


def write_table(
    path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]], *, delimiter: str = ","
) -> None:
    """Write a table with a header; None is an empty cell, and numbers keep all their digits.

    The file is complete or absent: it is written under another name and renamed.

    Args:
        path: where to.
        columns: the header.
        rows: as many cells as columns each.
        delimiter: between cells; what holds it, a quote or a line break is quoted.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
