"""The report of a run: one HTML file that opens without network and at any width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from potstill.errors import FileError, FormatError
from potstill.reporting.plots import Curves, ParallelCoordinates, SpreadPlot
from potstill.reporting.tables import Table, format_cell, is_numeric, print_table, read_rows, sort_key
from potstill.runtime.atomic import write_whole
from potstill.runtime.redaction import redact
from potstill.runtime.small_files import not_a_file


@dataclass(frozen=True)
class Text:
    """A paragraph; line breaks are kept."""

    title: str
    body: str


@dataclass(frozen=True)
class HeatMap:
    """Values by row and column, larger ones in a deeper colour; None is left empty."""

    title: str
    corner: str  # header of the row labels
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    note: str = ""

    @property
    def shades(self) -> list[list[tuple[float | None, float | None]]]:
        """Each value with the opacity of its cell."""
        known = [value for row in self.values for value in row if value is not None]
        low, high = min(known, default=0.0), max(known, default=1.0)
        scale = 0.75 / ((high - low) or 1.0)
        return [
            [(value, None if value is None else 0.05 + scale * (value - low)) for value in row] for row in self.values
        ]


@dataclass(frozen=True)
class Collapsible:
    """Preformatted text that is closed at first, such as a configuration."""

    title: str
    body: str


Section = Text | Table | HeatMap | Curves | Collapsible | SpreadPlot | ParallelCoordinates


def write_report(folder: str | Path, *, title: str, sections: Sequence[Section]) -> Path:
    """Write `folder/report.html` atomically and return its path; all text is escaped, and secrets are masked."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "report.html", redact(_template().render(title=title, sections=sections)))
    return folder / "report.html"


def render(section: Section) -> str:
    """A section as HTML."""
    return str(_template().module.show(section))


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, keep_trailing_newline=True
    )
    environment.filters |= {"cell": format_cell, "sort_key": sort_key, "kind": lambda section: type(section).__name__}
    environment.tests["numeric"] = is_numeric
    return environment.get_template("report.html.jinja")


def read_metrics(path: str | Path) -> dict[str, tuple[list[int], list[float]]]:
    """Read a metrics.csv: (steps, values) of each metric that has a value.

    Raises:
        FileError: the file is missing or cannot be read.
        FormatError: there is no `step` column, or a cell is not a number.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path}: {not_a_file(path)}; expected the metrics.csv of a run")
    try:
        rows = read_rows(path)
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror})") from error
    metrics: dict[str, tuple[list[int], list[float]]] = {}
    for line, row in enumerate(rows, start=2):
        for name, value in row.items():
            if name in ("step", "epoch", None) or not value:
                continue
            try:
                step, number = int(float(row["step"])), float(value)
            except (KeyError, TypeError, ValueError) as error:
                raise FormatError(f"{path}, line {line}: {name}={value} needs a number and a step") from error
            steps, values = metrics.setdefault(name, ([], []))
            steps.append(step)
            values.append(number)
    return metrics


__all__ = (
    "Collapsible", "Curves", "HeatMap", "ParallelCoordinates", "Section", "SpreadPlot", "Table", "Text",
    "print_table", "read_metrics", "render", "write_report",
)  # fmt: skip
