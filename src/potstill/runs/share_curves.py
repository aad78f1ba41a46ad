"""Accuracy against the share of the training rows, a line a method: the figure of Hsieh et al. 2023. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from potstill.reporting.report import Section
from potstill.reporting.sweep_plots import Spread, metric_against_option, number_of
from potstill.reporting.tables import write_table
from potstill.runs.sweeps import Group, spread_of

SHARE, MODE = "data.share", "objective.mode"
FILE = "share.csv"
NOTE = "Mean and sample standard deviation over seeds; a smaller share is a part of a larger one."


def share_curves(groups: Sequence[Group], metrics: Sequence[str], folder: Path) -> list[Section]:
    """The curves of a sweep over `data.share`, of every accuracy that its runs have; nothing of another sweep.

    Also writes share.csv: a row for each method, share and metric, with mean, sample standard deviation (empty of a
    single run) and number of runs.

    Args:
        groups: of the runs that differ in nothing but the seed.
        metrics: those that are shown; accuracies are those that are named so.
        folder: gets share.csv.

    Returns:
        A section for each accuracy, those of the test part first.
    """
    shared = [group for group in groups if number_of(group.settings.get(SHARE, "")) is not None]
    if len({group.settings[SHARE] for group in shared}) < 2:
        return []
    drawn = sorted(
        (name for name in metrics if "accuracy" in name), key=lambda name: not name.startswith("test/")
    )
    curves = {metric: _curves(shared, metric) for metric in drawn}
    rows = [
        [method, float(share), metric, spread.mean, spread.deviation, runs]
        for metric, series in curves.items()
        for method, points in series.items()
        for share, spread, runs in points
    ]
    write_table(folder / FILE, ["method", "share", "metric", "mean", "spread", "runs"], rows)
    return [
        metric_against_option(
            f"{metric} against the share of the data",
            "share of the training rows",
            metric,
            {method: [(share, spread) for share, spread, _ in points] for method, points in series.items()},
            NOTE,
        )
        for metric, series in curves.items()
        if series
    ]


def _curves(groups: Iterable[Group], metric: str) -> Mapping[str, list[tuple[str, Spread, int]]]:
    """By method, its (share, accuracy, runs) in the order of the shares."""
    curves: dict[str, list[tuple[str, Spread, int]]] = {}
    for group in sorted(groups, key=lambda group: float(group.settings[SHARE])):
        values = group.values(metric)
        if spread := spread_of(values):
            curves.setdefault(_method(group), []).append((group.settings[SHARE], spread, len(values)))
    return curves


def _method(group: Group) -> str:
    """What its runs have in common but for the share: the mode's name where nothing else varies."""
    rest = {key: value for key, value in group.settings.items() if key != SHARE}
    if not rest:
        return "all runs"
    if list(rest) == [MODE]:
        return rest[MODE]
    return " ".join(f"{key}={value}" for key, value in rest.items())
