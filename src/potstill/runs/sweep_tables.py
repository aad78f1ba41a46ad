"""A sweep as one table: summary.json, sweep.csv and a report, for `evaluate.py sweep=<folder>`. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from potstill.evaluation import glue
from potstill.reporting.report import Fragment, Section, Table, Text, print_table, write_report
from potstill.reporting.sweep_plots import (
    Axis,
    Spread,
    metric_against_option,
    number_of,
    parallel_coordinates,
    sortable_table,
)
from potstill.reporting.tables import write_table
from potstill.runs.glue_tables import glue_tables
from potstill.runs.share_curves import share_curves
from potstill.runs.summary import provenance, write_summary
from potstill.runs.sweeps import SEED, Group, Job, grouped, metrics_of, read_sweep, spread_of, varying

MAX_PLOTS = 12  # of a metric against an option; sweep.metrics chooses which
MAX_AXES = 10  # of parallel coordinates


def compare(config: DictConfig, folder: Path) -> None:
    """Put the jobs of `sweep.folder` into one table: summary.json, sweep.csv and report.html.

    Of GLUE there is glue.csv besides, of a sweep over the share of the data share.csv.
    """
    source = Path(config.sweep.folder).expanduser()
    jobs = read_sweep(source)
    metrics = metrics_of(jobs, config.sweep.metrics)
    options = varying(jobs)
    groups = grouped(jobs, [key for key in options if key != SEED])
    _write_jobs(folder / "sweep.csv", jobs, options)
    summary: dict[str, Any] = {
        "sweep/jobs": len(jobs),
        "sweep/failed": sum(job.fault is not None for job in jobs),
    }
    for group in groups:
        start = f"{group.label}/" if group.label else ""
        for metric in metrics:
            spread = spread_of(group.values(metric))
            summary[f"{start}{metric}/mean"] = spread and spread.mean
            summary[f"{start}{metric}/spread"] = spread and spread.deviation
            summary[f"{start}{metric}/seeds"] = len(group.values(metric))
    tables: list[Table] = []
    if len({job.benchmark for job in jobs} & set(glue.BENCHMARKS)) > 1:
        tables, figures = glue_tables(jobs, folder)
        summary |= figures
    write_summary(folder, summary | provenance(config))
    sections = [
        overview(source, jobs),
        *tables,
        *share_curves(groups, metrics, folder),
        groups_table(groups, metrics),
        jobs_table(jobs, options, metrics),
        *_plots(jobs, options, groups, metrics),
    ]
    write_report(folder, title=f"sweep={source.name}", sections=sections)
    for table in (_printed(groups, metrics), *tables):
        print_table(table)


def write_glue(folder: Path) -> None:
    """Leave GLUE's table in the folder of its multirun, as glue.csv and report.html, and print it."""
    jobs = read_sweep(folder)
    tables, _ = glue_tables(jobs, folder)
    runs = jobs_table(jobs, varying(jobs), metrics_of(jobs, None))
    write_report(folder, title="benchmark=glue", sections=[overview(folder, jobs), *tables, runs])
    for table in tables:
        print_table(table)


def overview(source: Path, jobs: Sequence[Job]) -> Section:
    """How many runs there are, and why some of them failed."""
    failed = [job for job in jobs if job.fault is not None]
    if not failed:
        return Text("Runs", f"{source}: {len(jobs)} runs.")
    return Table(
        "Runs that failed",
        ["run", "settings", "why"],
        [[job.name, _settings(job, varying(jobs)), job.fault] for job in failed],
        f"{source}: {len(jobs)} runs, {len(failed)} of them failed.",
    )


def groups_table(groups: Sequence[Group], metrics: Sequence[str]) -> Fragment:
    """A row for each setting: mean and spread of the metrics over its seeds."""
    return sortable_table(
        "Means over seeds",
        _group_columns(groups, metrics),
        _group_rows(groups, metrics),
        "Mean ± sample standard deviation over the runs that did not fail. A click on a header sorts.",
    )


def jobs_table(jobs: Sequence[Job], options: Sequence[str], metrics: Sequence[str]) -> Fragment:
    """A row for each run: the options that vary and the final metrics."""
    rows = [
        [
            job.name,
            *(job.settings.get(key, "") for key in options),
            *(job.figures.get(metric) for metric in metrics),
            "failed" if job.fault is not None else "done",
        ]
        for job in jobs
    ]
    return sortable_table("Every run", ["run", *options, *metrics, "state"], rows)


def _group_columns(groups: Sequence[Group], metrics: Sequence[str]) -> list[str]:
    return [*(groups[0].settings), *metrics, "runs", "failed"]


def _group_rows(groups: Sequence[Group], metrics: Sequence[str]) -> list[list[object]]:
    return [
        [
            *group.settings.values(),
            *(spread_of(group.values(metric), len(group.jobs)) for metric in metrics),
            len(group.jobs),
            group.failed,
        ]
        for group in groups
    ]


def _printed(groups: Sequence[Group], metrics: Sequence[str]) -> Table:
    return Table("Means over seeds", _group_columns(groups, metrics), _group_rows(groups, metrics))


def _write_jobs(path: Path, jobs: Sequence[Job], options: Sequence[str]) -> None:
    """sweep.csv: every figure of every run."""
    figures = list(dict.fromkeys(name for job in jobs for name in job.figures))
    rows = [
        [
            job.name,
            "done" if job.fault is None else "failed",
            *(job.settings.get(key) for key in options),
            *(job.figures.get(name) for name in figures),
            job.fault,
        ]
        for job in jobs
    ]
    write_table(path, ["run", "state", *options, *figures, "fault"], rows)


def _plots(
    jobs: Sequence[Job], options: Sequence[str], groups: Sequence[Group], metrics: Sequence[str]
) -> list[Section]:
    """Parallel coordinates of all runs, and each metric against each option."""
    others = [key for key in options if key != SEED]
    drawn = [name for name in metrics if "loss" not in name] or list(metrics)
    done = [job for job in jobs if job.fault is None]
    sections: list[Section] = []
    axes = [
        *(Axis(key, _typed([job.settings.get(key, "") for job in done])) for key in others),
        *(Axis(name, [job.figures.get(name) for job in done]) for name in drawn),
    ][:MAX_AXES]
    if others and len(axes) > 1 and len(done) > 1:
        note = (
            "A line a run, coloured by the last axis, blue to orange; runs without all metrics are left out."
        )
        sections.append(parallel_coordinates("Options and metrics", axes, [job.name for job in done], note))
    pairs = [(option, metric) for metric in drawn for option in others]
    for option, metric in pairs[:MAX_PLOTS]:
        series: dict[str, list[tuple[str, Spread]]] = {}
        for group in groups:
            rest = " ".join(f"{key}={value}" for key, value in group.settings.items() if key != option)
            if spread := spread_of(group.values(metric)):
                series.setdefault(rest, []).append((group.settings[option], spread))
        if series:
            note = "Mean and sample standard deviation over seeds."
            sections.append(metric_against_option(f"{metric} against {option}", option, metric, series, note))
    return sections


def _typed(values: Sequence[str]) -> list[float | str | None]:
    """Numbers where all are numbers, else the texts."""
    numbers = [number_of(value) for value in values]
    return list(values) if None in numbers else list(numbers)


def _settings(job: Job, options: Sequence[str]) -> str:
    return " ".join(f"{key}={job.settings[key]}" for key in options if key in job.settings)
