"""Tables: one type for the terminal, the report and CSV files."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from potstill.errors import printable
from potstill.runtime.atomic import replacing

FOLDED_WIDTH = 20  # characters per line of a long cell on a narrow terminal; headers get half


@dataclass(frozen=True)
class Table:
    """Rows of values; numbers are shown with four digits, None as an empty cell.

    Attributes:
        title: of the table.
        columns: headers.
        rows: one cell per column.
        note: below the table.
        sortable: whether a click on a header of the report sorts the rows.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""
    sortable: bool = False


@dataclass(frozen=True)
class Spread:
    """A mean with its sample standard deviation (over n - 1), as one cell that sorts by the mean.

    Attributes:
        mean: of the values.
        deviation: None for a single value.
        count: number of values.
        runs: number of runs, of which some may have no value.
    """

    mean: float
    deviation: float | None
    count: int = 1
    runs: int = 1

    @classmethod
    def of(cls, values: Sequence[float], runs: int | None = None) -> Spread | None:
        """The spread of some values; None without values.

        Args:
            values: of the runs that have one.
            runs: number of all runs.
        """
        if not values:
            return None
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), deviation, len(values), len(values) if runs is None else runs)

    def __str__(self) -> str:
        deviation = "" if self.deviation is None else f" ± {self.deviation:.2g}"
        part = "" if self.count == self.runs else f" ({self.count} of {self.runs} runs)"
        return f"{format_cell(self.mean)}{deviation}{part}"


def number_of(text: str) -> float | None:
    """A text as a finite number; None if it is not one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def is_numeric(value: object) -> bool:
    """Whether a cell is aligned as a number."""
    if isinstance(value, str):
        return number_of(value) is not None
    return isinstance(value, int | float | Spread) and not isinstance(value, bool)


def format_cell(value: object) -> str:
    """A cell as text: four significant digits, thousands separated, None as an empty text."""
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


def sort_key(value: object) -> str:
    """The text that a cell is sorted by; empty for None and NaN."""
    number = value.mean if isinstance(value, Spread) else value
    return "" if number is None or (isinstance(number, float) and math.isnan(number)) else str(number)


def print_table(table: Table) -> None:
    """Print a table to the terminal, without its last columns if the terminal is too narrow."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text as RichText

    console = Console()
    cells = [[printable(format_cell(cell)) for cell in row] for row in table.rows]
    shown = _fitting_columns(table.columns, cells, console.width)
    hidden = len(table.columns) - shown
    caption = " ".join(filter(None, [table.note, f"{hidden} more columns in the report" if hidden else ""]))
    # Text objects, so that square brackets in a cell are not markup.
    drawn = RichTable(title=RichText(printable(table.title)), caption=RichText(printable(caption)) if caption else None)
    for index, column in enumerate(table.columns[:shown]):
        right = any(is_numeric(row[index]) for row in table.rows)
        drawn.add_column(RichText(printable(column)), justify="right" if right else "left", overflow="fold")
    for row in cells:
        drawn.add_row(*(RichText(cell) for cell in row[:shown]))
    console.print(drawn)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]], *, delimiter: str = ",") -> None:
    """Write a CSV file with a header, atomically; None is an empty cell, and numbers keep all their digits."""
    with replacing(path) as fresh, fresh.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The complete rows of a CSV file such as metrics.csv; empty without a file.

    A killed run can leave an incomplete last line, which is left out.
    """
    if not path.is_file():
        return []
    whole, newline, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return list(csv.DictReader((whole + newline).splitlines()))


def _fitting_columns(columns: Sequence[str], cells: Sequence[Sequence[str]], width: int) -> int:
    """Number of columns that fit, with long cells and headers folded; at least one."""
    taken = 1
    for index, column in enumerate(columns):
        widest = max((len(row[index]) for row in cells), default=0)
        # A separator, and a space on each side.
        taken += max(min(widest, FOLDED_WIDTH), min(len(column), FOLDED_WIDTH // 2)) + 3
        if taken > width and index:
            return index
    return len(columns)
