"""Plots of a report as inline SVG: curves or points, means with spread, and parallel coordinates."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from potstill.reporting.tables import Spread, format_cell, number_of

# Legible on white and on near-black.
SERIES_COLOURS = ("#3b82f6", "#f97316", "#10b981", "#e11d48", "#a855f7", "#ca8a04", "#0891b2", "#db2777")
MARKERS = "osD^v"  # changes when the colours repeat
MAX_LEGEND_INSIDE = 4  # a longer legend is drawn beside the plot
MAX_LEGEND = 8  # a legend of more series than colours is left out
MAX_LABELLED_DECADES = 4  # of a logarithmic axis with labels between the powers of ten
TEXT_COLOUR = "#010203"  # replaced by the text colour of the page

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True)
class Curves:
    """A plot of named (xs, ys) with a legend: lines, or points for series of one value."""

    title: str
    series: Series
    x_label: str = "step"
    y_label: str = ""
    log_y: bool = False
    note: str = ""

    def svg(self) -> str:
        """The plot; empty if no series has values."""
        return drawing(self.title, self._draw) if any(len(xs) for xs, _ in self.series.values()) else ""

    def _draw(self, axes: Any) -> None:
        for index, (xs, ys) in enumerate(self.series.values()):
            repeat, colour = divmod(index, len(SERIES_COLOURS))
            marker = MARKERS[repeat % len(MARKERS)] if len(xs) == 1 else ""
            axes.plot(xs, ys, color=SERIES_COLOURS[colour], marker=marker, linewidth=1.6)
        axes.set(xlabel=self.x_label, ylabel=self.y_label, yscale="log" if self.log_y else "linear")
        if self.log_y:  # matplotlib's own labels are mathematical markup
            low, high = axes.get_ylim()
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: _minor_label(value, decades=math.log10(high / low)))
        # Explicit handles: a name that starts with an underscore would be left out.
        handles, names = axes.get_lines(), list(self.series)
        if len(names) > MAX_LEGEND_INSIDE:
            axes.figure.legend(handles, names, frameon=False, loc="outside right upper")
        else:
            axes.legend(handles, names, frameon=False)


@dataclass(frozen=True)
class SpreadPlot:
    """Means over seeds with their standard deviations, by the value of an option.

    Attributes:
        title: of the section; unique on a page.
        option: label of the x-axis, which is to scale if all values are numbers.
        metric: label of the y-axis.
        series: (value of the option, mean with deviation) by the values of the other options.
        note: below the plot.
    """

    title: str
    option: str
    metric: str
    series: Mapping[str, Sequence[tuple[str, Spread]]]
    note: str = ""

    def svg(self) -> str:
        """The plot."""
        values = list(dict.fromkeys(value for points in self.series.values() for value, _ in points))
        numbers = {value: number for value in values if (number := number_of(value)) is not None}
        to_scale = len(numbers) == len(values)
        positions = numbers if to_scale else {value: float(at) for at, value in enumerate(values)}

        def draw(axes: Any) -> None:
            lines = []
            for index, points in enumerate(self.series.values()):
                drawn = sorted(((positions[value], spread) for value, spread in points), key=lambda own: own[0])
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
            axes.set(xlabel=self.option, ylabel=self.metric)
            if to_scale and _spans_decades(list(positions.values())):
                axes.set_xscale("log")
            if not to_scale:
                axes.set_xticks(list(positions.values()), [value[:24] for value in positions], rotation=20)
                axes.margins(x=0.15)
            if 1 < len(self.series) <= MAX_LEGEND:
                axes.legend(lines, list(self.series), frameon=False)

        return drawing(self.title, draw)


@dataclass(frozen=True)
class Axis:
    """An axis of parallel coordinates: one value per run, a number, a name or None."""

    name: str
    values: Sequence[float | str | None]


class Line(NamedTuple):
    """A run in parallel coordinates."""

    points: list[tuple[float, float]]
    hue: int
    label: str


class DrawnAxis(NamedTuple):
    """An axis of parallel coordinates as it is drawn."""

    x: float
    name: str
    short: str
    ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class ParallelCoordinates:
    """One line per run across the axes, coloured from blue to orange by its value on the last axis.

    Attributes:
        title: of the section.
        axes: two or more, with one value per run; a run without a value on some axis is left out.
        names: of the runs, shown under the pointer.
        note: below the plot.
    """

    title: str
    axes: Sequence[Axis]
    names: Sequence[str]
    note: str = ""
    step = 140  # pixels between axes
    top = 44
    bottom = 240

    @property
    def width(self) -> int:
        """In pixels."""
        return self.step * len(self.axes)

    @property
    def lines(self) -> list[Line]:
        """The runs that have a value on every axis."""
        heights, found = [_heights(axis.values) for axis in self.axes], []
        for run, name in enumerate(self.names):
            own = [height for axis in heights if (height := axis[run]) is not None]
            if len(own) < len(self.axes):
                continue
            points = [(self._x(at), self._y(height)) for at, height in enumerate(own)]
            values = ", ".join(f"{axis.name} {format_cell(axis.values[run])}" for axis in self.axes)
            hue = 220 + 165 * own[-1]  # 220 is blue, 385 = 25 is orange
            found.append(Line(points, round(hue % 360), f"{name}: {values}"))
        return found

    @property
    def drawn_axes(self) -> list[DrawnAxis]:
        """The axes with their labels."""
        return [
            DrawnAxis(
                self._x(at),
                axis.name,
                axis.name if len(axis.name) <= 20 else f"…{axis.name[-19:]}",
                [(self._y(height), label) for height, label in _ticks(axis.values)],
            )
            for at, axis in enumerate(self.axes)
        ]

    def _x(self, axis: int) -> float:
        return self.step * (axis + 0.5)

    def _y(self, height: float) -> float:
        return self.bottom - (self.bottom - self.top) * height


def drawing(title: str, draw: Callable[[Any], None]) -> str:
    """A plot as an inline SVG without background, with the text colour and font of the page.

    Args:
        title: seeds the ids inside of the SVG, so plots of a page need different ones.
        draw: draws on the matplotlib axes that it gets.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    coloured = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "text.parse_math": False,
        **dict.fromkeys(coloured, TEXT_COLOUR),
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.grid(alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return svg.replace(TEXT_COLOUR, "currentColor")


def _minor_label(value: float, decades: float) -> str:
    """The label of a tick between powers of ten; the more decades an axis has, the fewer ticks have one."""
    digit = round(value / 10 ** math.floor(math.log10(value)))
    labelled = range(2, 10) if decades <= 1 else (2, 5) if decades <= MAX_LABELLED_DECADES else ()
    return f"{value:g}" if digit in labelled else ""


def _spans_decades(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= 50


def _heights(values: Sequence[float | str | None]) -> list[float | None]:
    """Height of each value on its axis, 0 at the bottom to 1 at the top; None for None and non-finite values."""
    if any(isinstance(value, str) for value in values):
        names = list(dict.fromkeys(str(value) for value in values if value is not None))
        return [names.index(str(value)) / max(len(names) - 1, 1) if value is not None else None for value in values]
    numbers = [math.nan if value is None else float(value) for value in values]
    finite = [number for number in numbers if math.isfinite(number)]
    if not finite:
        return [None] * len(values)
    scale = math.log if _spans_decades(finite) else float
    low, high = scale(min(finite)), scale(max(finite))
    return [
        None if not math.isfinite(number) else (scale(number) - low) / (high - low) if high > low else 0.5
        for number in numbers
    ]


def _ticks(values: Sequence[float | str | None]) -> list[tuple[float, str]]:
    """Height and label of each distinct value; of more than six the lowest and the highest."""
    pairs = zip(values, _heights(values), strict=True)
    ordered = sorted({height: format_cell(value) for value, height in pairs if height is not None}.items())
    return ordered if len(ordered) <= 6 else [ordered[0], ordered[-1]]
