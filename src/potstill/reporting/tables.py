"""Tables that scripts and spreadsheets read: CSV and TSV files, whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from potstill.runtime.atomic import replacing


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
    with replacing(path) as fresh, fresh.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
