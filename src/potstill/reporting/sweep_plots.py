"""What a report draws of many runs: a table to sort, parallel coordinates, and a metric against an option."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.reporting.report import NUMBER, SERIES_COLOURS, Fragment, drawing, format_cell

# A click on a header sorts by it, a second one the other way round; empty cells stay last.
SORTING = """<script>
document.currentScript.previousElementSibling.querySelectorAll("thead th").forEach((head, column, heads) => {
  head.firstElementChild.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0];
    const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const keyed = [...body.rows].map(row => ({row, key: row.cells[column].dataset.key}));
    const filled = keyed.filter(({key}) => key !== "");
    const numbers = filled.every(({key}) => !isNaN(key));
    filled.sort((a, b) => way * (numbers ? a.key - b.key : a.key.localeCompare(b.key)));
    body.append(...[...filled, ...keyed.filter(({key}) => key === "")].map(({row}) => row));
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", way === 1 ? "ascending" : "descending");
  });
});
</script>"""
MAX_LEGEND = 8  # more names than colours tell nothing apart


@dataclass(frozen=True)
class Spread:
    """A mean with its sample standard deviation (None of a single value), as one cell that sorts by the mean.

    `part` says of which runs it is, where not of all.
    """

    mean: float
    deviation: float | None
    part: str = ""

    def __str__(self) -> str:
        more = "" if self.deviation is None else f" ± {self.deviation:.2g}"
        return f"{format_cell(self.mean)}{more}{f' ({self.part})' if self.part else ''}"


@dataclass(frozen=True)
class Axis:
    """A column of parallel coordinates: a value for each run, a number or a name, or None."""

    name: str
    values: Sequence[float | str | None]


def number_of(text: str) -> float | None:
    """A text as a finite number, None where it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def sortable_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], note: str = ""
) -> Fragment:
    """A table whose rows are sorted by a click on a header; without JavaScript it is a table like any other."""
    numeric = [any(_is_number(row[index]) for row in rows) for index in range(len(columns))]
    head = "".join(
        f'<th scope="col"{NUMBER if right else ""}><button type="button">{html.escape(column)}</button></th>'
        for column, right in zip(columns, numeric, strict=True)
    )
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    table = (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )
    return Fragment(title, f"{table}{SORTING}", note)


def parallel_coordinates(title: str, axes: Sequence[Axis], names: Sequence[str], note: str = "") -> Fragment:
    """A line for each run across an axis for each option and metric, coloured by the last axis from blue to orange.

    Args:
        title: of the section.
        axes: two or more, with as many values as runs; a run that lacks one is left out.
        names: of the runs, shown where a pointer rests on a line.
        note: below it.
    """
    step, top, bottom = 140, 44, 240
    width = step * len(axes)
    heights = [_places(axis.values) for axis in axes]
    parts = [
        f'<svg viewBox="0 0 {width} {bottom + 30}" width="{width}" role="img" '
        f'style="max-width: none; font: 12px system-ui, sans-serif"><title>{html.escape(title)}</title>'
    ]
    for run, name in enumerate(names):
        places = [height[run] for height in heights]
        if any(place is None for place in places):
            continue
        points = " ".join(
            f"{step * (at + 0.5):.1f},{bottom - (bottom - top) * (place or 0.0):.1f}"
            for at, place in enumerate(places)
        )
        hue = 220 + 165 * (places[-1] or 0.0)  # 220 is blue, 385 = 25 is orange
        told = ", ".join(f"{axis.name} {format_cell(axis.values[run])}" for axis in axes)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="hsl({hue % 360:.0f} 75% 52%)" stroke-width="2">'
            f"<title>{html.escape(f'{name}: {told}')}</title></polyline>"
        )
    for at, (axis, height) in enumerate(zip(axes, heights, strict=True)):
        x = step * (at + 0.5)
        parts.append(f'<line x1="{x}" x2="{x}" y1="{top}" y2="{bottom}" stroke="currentColor"/>')
        short = axis.name if len(axis.name) <= 20 else f"…{axis.name[-19:]}"
        parts.append(
            f'<text x="{x}" y="{top - 24}" text-anchor="middle" font-weight="600" fill="currentColor">'
            f"{html.escape(short)}<title>{html.escape(axis.name)}</title></text>"
        )
        for place, label in _ticks(axis.values, height):
            y = bottom - (bottom - top) * place
            parts.append(
                f'<text x="{x + 5}" y="{y + 4:.1f}" fill="currentColor">{html.escape(label[:18])}</text>'
            )
    return Fragment(title, f'<div class="wide">{"".join(parts)}</svg></div>', note)


def metric_against_option(
    title: str, option: str, metric: str, series: Mapping[str, Sequence[tuple[str, Spread]]], note: str = ""
) -> Fragment:
    """Means over seeds with their deviations, by the value of an option.

    Args:
        title: of the section, another one for each plot of a page.
        option: along the x-axis: to scale where all its values are numbers, else one place each.
        metric: along the y-axis.
        series: of each setting of the other options, (value of the option, mean with deviation).
        note: below it.
    """
    values = list(dict.fromkeys(value for points in series.values() for value, _ in points))
    numbers = {value: number for value in values if (number := number_of(value)) is not None}
    to_scale = len(numbers) == len(values)
    places = numbers if to_scale else {value: float(at) for at, value in enumerate(values)}

    def draw(axes: Any) -> None:
        lines = []
        for index, points in enumerate(series.values()):
            drawn = sorted(((places[value], spread) for value, spread in points), key=lambda point: point[0])
            lines.append(
                axes.errorbar(
                    [x for x, _ in drawn],
                    [spread.mean for _, spread in drawn],
                    yerr=[spread.deviation or 0.0 for _, spread in drawn],
                    color=SERIES_COLOURS[index % len(SERIES_COLOURS)],
                    marker="o",
                    linestyle="-" if to_scale else "none",
                    linewidth=1.6,
                    capsize=3,
                )
            )
        axes.set(xlabel=option, ylabel=metric)
        if to_scale and _spans_decades(list(places.values())):
            axes.set_xscale("log")
        if not to_scale:
            axes.set_xticks(list(places.values()), [value[:24] for value in places], rotation=20)
            axes.margins(x=0.15)
        if 1 < len(series) <= MAX_LEGEND:
            axes.legend(lines, list(series), frameon=False)

    return Fragment(title, drawing(title, draw), note)


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        return number_of(value) is not None
    return isinstance(value, int | float | Spread) and not isinstance(value, bool)


def _cell(value: object) -> str:
    number = value.mean if isinstance(value, Spread) else value
    key = "" if number is None or (isinstance(number, float) and math.isnan(number)) else str(number)
    kind = NUMBER if _is_number(value) else ""
    return f'<td{kind} data-key="{html.escape(key)}">{html.escape(format_cell(value))}</td>'


def _spans_decades(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= 50


def _places(values: Sequence[float | str | None]) -> list[float | None]:
    """Where each value lies on its axis, 0 at the foot to 1 at the head; None and what is not finite nowhere."""
    if any(isinstance(value, str) for value in values):
        names = _names(values)
        among = max(len(names) - 1, 1)
        return [names.index(str(value)) / among if value is not None else None for value in values]
    known = [float(v) for v in values if v is not None and math.isfinite(float(v))]
    if not known:
        return [None] * len(values)
    scale = math.log if _spans_decades(known) else float
    low, high = scale(min(known)), scale(max(known))

    def place(value: float | str | None) -> float | None:
        if value is None or not math.isfinite(float(value)):
            return None
        return (scale(float(value)) - low) / (high - low) if high > low else 0.5

    return [place(value) for value in values]


def _names(values: Sequence[float | str | None]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value is not None))


def _ticks(values: Sequence[float | str | None], places: Sequence[float | None]) -> list[tuple[float, str]]:
    """Every name, or the few numbers of an option, or the least and the greatest of many."""
    found = {
        place: format_cell(value) for value, place in zip(values, places, strict=True) if place is not None
    }
    ordered = sorted(found.items())
    return ordered if len(ordered) <= 6 else [ordered[0], ordered[-1]]
