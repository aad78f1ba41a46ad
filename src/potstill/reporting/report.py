"""The report of a run: one HTML file that opens anywhere, without network and at any width."""

import csv
import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import DataError, printable
from potstill.runtime.atomic import write_whole
from potstill.runtime.redaction import redact
from potstill.small_files import not_a_file

# Legible on white and on near-black alike.
SERIES_COLOURS = ("#3b82f6", "#f97316", "#10b981", "#e11d48", "#a855f7", "#ca8a04", "#0891b2", "#db2777")
MARKERS = "osD^v"  # another one when the colours begin anew
FOLDED = 20  # characters of a cell on the terminal that stay in a line, where it is narrow; of a header half as many
MOST_LABELLED = 4  # decades of an axis of logarithms that has labels between its powers of ten
NUMBER = ' class="number"'
BESIDE = 4  # a legend of more lines stands beside the plot, where it hides nothing
# Drawn in this colour, replaced by the page's own text colour.
TEXT_COLOUR = "#010203"

STYLE = """
:root { color-scheme: light dark; --text: #1c1c1e; --page: #fff; --line: #d4d4d8; --soft: #f4f4f5; --note: #63636b }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8ea; --page: #161618; --line: #3f3f46; --soft: #232327; --note: #a1a1aa }
}
body { margin: 0 auto; max-width: 60rem; padding: 1rem; color: var(--text); background: var(--page);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
th { background: var(--soft) } .number { text-align: right; white-space: nowrap }
th button { all: unset; cursor: pointer } th button:focus-visible { outline: 2px solid }
th[aria-sort=ascending] button::after { content: " \\2191" }
th[aria-sort=descending] button::after { content: " \\2193" }
svg { max-width: 100%; height: auto; color: var(--text) }
pre { overflow-x: auto; padding: .7rem; background: var(--soft); font-size: .85rem }
summary { cursor: pointer; font-weight: 600 } details { margin: 2rem 0 }
p { overflow-wrap: anywhere; white-space: pre-line } .note { color: var(--note); font-size: .9rem }
"""


@dataclass(frozen=True)
class Text:
    """A paragraph; line breaks are kept."""

    title: str
    body: str


@dataclass(frozen=True)
class Table:
    """Rows of values: numbers are rounded to four digits, None is left empty."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""


@dataclass(frozen=True)
class Curves:
    """A plot of named (xs, ys)."""

    title: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    x_label: str = "step"
    y_label: str = ""
    log_y: bool = False


@dataclass(frozen=True)
class Points:
    """A plot of named points."""

    title: str
    points: Mapping[str, tuple[float, float]]
    x_label: str
    y_label: str
    note: str = ""


@dataclass(frozen=True)
class HeatMap:
    """Values over rows and columns, the larger the deeper the colour; None is left empty."""

    title: str
    corner: str  # what rows and columns are
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    note: str = ""


@dataclass(frozen=True)
class Collapsible:
    """Preformatted text that is closed at first, such as a configuration."""

    title: str
    body: str


@dataclass(frozen=True)
class Fragment:
    """Markup that another room has made, in which all text is escaped already."""

    title: str
    markup: str
    note: str = ""


Section = Text | Table | HeatMap | Points | Curves | Collapsible | Fragment


def write_report(folder: str | Path, *, title: str, sections: Sequence[Section]) -> Path:
    """Writes `folder/report.html` and returns its path.

    The file is complete or absent: it is written under another name and renamed. All text is escaped.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n" + "\n".join(map(render, sections)) + "\n</body>\n</html>\n"
    )
    write_whole(folder / "report.html", redact(page))
    return folder / "report.html"


def render(section: Section) -> str:
    """A section as HTML."""
    title = html.escape(section.title)
    if isinstance(section, Collapsible):
        return f"<details><summary>{title}</summary><pre>{html.escape(section.body)}</pre></details>"
    if isinstance(section, Text):
        return f"<h2>{title}</h2>\n<p>{html.escape(section.body)}</p>"
    if isinstance(section, Table):
        return f"<h2>{title}</h2>\n{_table(section)}"
    if isinstance(section, HeatMap):
        return f"<h2>{title}</h2>\n{_heat_map(section)}"
    if isinstance(section, Fragment):
        below = f'\n<p class="note">{html.escape(section.note)}</p>' if section.note else ""
        return f"<h2>{title}</h2>\n{section.markup}{below}"
    note = f'\n<p class="note">{html.escape(section.note)}</p>' if isinstance(section, Points) else ""
    drawn = (
        section.points if isinstance(section, Points) else any(len(xs) for xs, _ in section.series.values())
    )
    return f"<h2>{title}</h2>\n" + (_plot(section) if drawn else '<p class="note">No values.</p>') + note


def print_table(table: Table) -> None:
    """Prints a table to the terminal, without the last columns where it is too narrow for them."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text as RichText

    console = Console()
    cells = [[printable(format_cell(cell)) for cell in row] for row in table.rows]
    shown = _fitting(table.columns, cells, console.width)
    left_out = len(table.columns) - shown
    more = f"{left_out} columns more in the report" if left_out else ""
    caption = " ".join(filter(None, [table.note, more]))
    # Text objects, so that square brackets in a cell are no markup.
    title, caption = printable(table.title), printable(caption)
    drawn = RichTable(title=RichText(title), caption=RichText(caption) if caption else None)
    for index, column in enumerate(table.columns[:shown]):
        numeric = any(_is_number(row[index]) for row in table.rows)
        drawn.add_column(RichText(printable(column)), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        drawn.add_row(*(RichText(cell) for cell in row[:shown]))
    console.print(drawn)


def _fitting(columns: Sequence[str], cells: Sequence[Sequence[str]], width: int) -> int:
    """How many columns fit beside each other, their long cells and headers folded; the first always does."""
    taken = 1
    for index, column in enumerate(columns):
        widest = max((len(row[index]) for row in cells), default=0)
        taken += (
            max(min(widest, FOLDED), min(len(column), FOLDED // 2)) + 3
        )  # a rule, and a space at each side
        if taken > width and index:
            return index
    return len(columns)


def read_metrics(path: str | Path) -> dict[str, tuple[list[int], list[float]]]:
    """Reads a metrics.csv: (steps, values) of each metric that has a value.

    Raises:
        DataError: the file is missing, has no `step` column, or a cell is no number.
    """
    metrics: dict[str, tuple[list[int], list[float]]] = {}
    if Path(path).exists() and not Path(path).is_file():
        raise DataError(f"{path}: {not_a_file(Path(path))}; expected the metrics.csv of a run")
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                # A killed run can leave a last line that is cut short: its missing cells are None.
                cells = {k: v for k, v in row.items() if k not in ("step", "epoch", None) and v}
                for name, value in cells.items():
                    steps, values = metrics.setdefault(name, ([], []))
                    try:
                        step, number = int(float(row["step"])), float(value)
                    except (KeyError, TypeError, ValueError) as error:
                        message = f"{path}, line {line}: {name}={value} needs a number and a step"
                        raise DataError(message) from error
                    steps.append(step)
                    values.append(number)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return metrics


def format_cell(value: object) -> str:
    """A value for people: four significant digits, thousands apart, None as nothing."""
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: object) -> str:
    kind = NUMBER if _is_number(value) else ""
    return f"<td{kind}>{html.escape(format_cell(value))}</td>"


def _table(table: Table) -> str:
    """A table that scrolls sideways where the page is narrow."""
    head = "".join(
        f"<th{NUMBER if any(_is_number(row[index]) for row in table.rows) else ''}>{html.escape(column)}</th>"
        for index, column in enumerate(table.columns)
    )
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    note = f'\n<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}\n</table></div>{note}'


def _heat_map(heat: HeatMap) -> str:
    """A table whose cells are coloured from the least to the greatest value."""
    known = [value for row in heat.values for value in row if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)

    def cell(value: float | None) -> str:
        if value is None:
            return "<td></td>"
        depth = 0.05 + 0.75 * (value - low) / ((high - low) or 1.0)
        style = f"background: rgba(59, 130, 246, {depth:.2f})"
        return f'<td{NUMBER} style="{style}">{html.escape(format_cell(value))}</td>'

    head = "".join(f"<th>{html.escape(label)}</th>" for label in (heat.corner, *heat.columns))
    body = "\n".join(
        f"<tr><th>{html.escape(label)}</th>{''.join(map(cell, row))}</tr>"
        for label, row in zip(heat.rows, heat.values, strict=True)
    )
    note = f'\n<p class="note">{html.escape(heat.note)}</p>' if heat.note else ""
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}\n</table></div>{note}'


def _plot(section: Curves | Points) -> str:
    """A plot of lines or of points, with a legend."""
    if isinstance(section, Points):
        series = {name: ([x], [y]) for name, (x, y) in section.points.items()}
    else:
        series = section.series  # type: ignore[assignment]

    def draw(axes: Any) -> None:
        for index, (xs, ys) in enumerate(series.values()):
            round_, place = divmod(index, len(SERIES_COLOURS))
            marker = MARKERS[round_ % len(MARKERS)] if len(xs) == 1 else ""
            axes.plot(xs, ys, color=SERIES_COLOURS[place], marker=marker, linewidth=1.6)
        log_y = isinstance(section, Curves) and section.log_y
        axes.set(xlabel=section.x_label, ylabel=section.y_label, yscale="log" if log_y else "linear")
        if log_y:  # its own labels are mathematics, which a page does not set
            low, high = axes.get_ylim()
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: _between(value, decades=math.log10(high / low)))
        # Handles given outright: a name that starts with an underscore would be left out.
        handles, names = axes.get_lines(), list(series)
        if len(series) > BESIDE:
            axes.figure.legend(handles, names, frameon=False, loc="outside right upper")
        else:
            axes.legend(handles, names, frameon=False)

    return drawing(section.title, draw)


def _between(value: float, decades: float) -> str:
    """The label between powers of ten: fewer the more of those the axis has."""
    digit = round(value / 10 ** math.floor(math.log10(value)))
    named = range(2, 10) if decades <= 1 else (2, 5) if decades <= MOST_LABELLED else ()
    return f"{value:g}" if digit in named else ""


def drawing(title: str, draw: Callable[[Any], None]) -> str:
    """A plot as an inline SVG without background, its text in the page's colour and font.

    Args:
        title: decides the names inside the SVG, so plots of a page need different ones.
        draw: draws on the matplotlib axes that it is given.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "text.parse_math": False,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), TEXT_COLOUR),
        **dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), TEXT_COLOUR),
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.grid(alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    svg = drawn.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return svg.replace(TEXT_COLOUR, "currentColor")
