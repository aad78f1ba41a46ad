"""A sweep as one table, for `evaluate.py sweep=<folder>`: summary.json, sweep.csv and a report. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.config import EvaluateConfig
from potstill.evaluation import glue
from potstill.reporting.plots import Axis, ParallelCoordinates, SpreadPlot
from potstill.reporting.report import Section, Text, write_report
from potstill.reporting.sweeps import SEED, Group, Job, grouped, metrics_of, read_sweep, varying
from potstill.reporting.tables import Spread, Table, number_of, print_table, write_table
from potstill.runs.glue_tables import glue_tables
from potstill.runs.summary import provenance, write_summary

MAX_PLOTS = 12  # of a metric against an option; sweep.metrics chooses which
MAX_AXES = 10  # of parallel coordinates
SHARE, MODE = "data.share", "objective.mode"
SPREAD_NOTE = "Mean and sample standard deviation over seeds"


def compare(config: EvaluateConfig, folder: Path) -> None:
    """Tabulate the jobs of `sweep.folder`: summary.json, sweep.csv and report.html.

    Sweeps over GLUE also get glue.csv, sweeps over the share of the training rows share.csv.
    """
    source = Path(str(config.sweep.folder)).expanduser()
    jobs = read_sweep(source)
    metrics = metrics_of(jobs, config.sweep.metrics)
    options = varying(jobs)
    groups = grouped(jobs, [key for key in options if key != SEED])
    _write_jobs(folder / "sweep.csv", jobs, options)
    summary: dict[str, Any] = {"sweep/jobs": len(jobs), "sweep/failed": sum(job.error is not None for job in jobs)}
    for group in groups:
        prefix = f"{group.label}/" if group.label else ""
        for metric in metrics:
            spread = Spread.of(group.values(metric))
            summary[f"{prefix}{metric}/mean"] = spread and spread.mean
            summary[f"{prefix}{metric}/spread"] = spread and spread.deviation
            summary[f"{prefix}{metric}/seeds"] = len(group.values(metric))
    tables: list[Table] = []
    if len({job.benchmark for job in jobs} & set(glue.BENCHMARKS)) > 1:
        tables, figures = glue_tables(jobs, folder)
        summary |= figures
    write_summary(folder, summary | provenance(config))
    means = _groups_table(groups, metrics)
    sections = [
        _overview(source, jobs),
        *tables,
        *share_curves(groups, metrics, folder),
        means,
        _jobs_table(jobs, options, metrics),
        *_plots(jobs, options, groups, metrics),
    ]
    write_report(folder, title=f"sweep={source.name}", sections=sections)
    for table in (means, *tables):
        print_table(table)


def write_glue(folder: Path) -> None:
    """Write the GLUE table of a multirun into its folder, as glue.csv and report.html, and print it."""
    jobs = read_sweep(folder)
    tables, _ = glue_tables(jobs, folder)
    runs = _jobs_table(jobs, varying(jobs), metrics_of(jobs, None))
    write_report(folder, title="benchmark=glue", sections=[_overview(folder, jobs), *tables, runs])
    for table in tables:
        print_table(table)


def share_curves(groups: Sequence[Group], metrics: Sequence[str], folder: Path) -> list[Section]:
    """Accuracy against the share of the training rows (Hsieh et al. 2023, figure 5); nothing for other sweeps.

    Also writes share.csv: a row per method, share and metric, with mean, sample standard deviation (empty for a single
    run) and number of runs.

    Args:
        groups: of a sweep over `data.share`.
        metrics: that are shown; one curve plot for each that is an accuracy, those of the test part first.
        folder: of share.csv.
    """
    shared = [group for group in groups if number_of(group.settings.get(SHARE, "")) is not None]
    if len({group.settings[SHARE] for group in shared}) < 2:
        return []
    shared.sort(key=lambda group: float(group.settings[SHARE]))
    rows: list[list[Any]] = []
    sections: list[Section] = []
    for metric in sorted(metrics, key=lambda name: not name.startswith("test/")):
        if "accuracy" not in metric:
            continue
        series: dict[str, list[tuple[str, Spread]]] = {}
        for group in shared:
            if spread := Spread.of(group.values(metric)):
                series.setdefault(_method(group), []).append((group.settings[SHARE], spread))
        for method, points in series.items():
            rows += [[method, float(share), metric, own.mean, own.deviation, own.count] for share, own in points]
        if series:
            title = f"{metric} against the share of the data"
            note = f"{SPREAD_NOTE}; a smaller share is a part of a larger one."
            sections.append(SpreadPlot(title, "share of the training rows", metric, series, note))
    write_table(folder / "share.csv", ["method", "share", "metric", "mean", "spread", "runs"], rows)
    return sections


def _method(group: Group) -> str:
    """Name of a curve: the settings other than the share; the mode alone by its value."""
    rest = {key: value for key, value in group.settings.items() if key != SHARE}
    if list(rest) == [MODE]:
        return rest[MODE]
    return _settings_text(rest) or "all runs"


def _overview(source: Path, jobs: Sequence[Job]) -> Section:
    """Number of runs, and why some of them failed."""
    failed = [job for job in jobs if job.error is not None]
    if not failed:
        return Text("Runs", f"{source}: {len(jobs)} runs.")
    options = varying(jobs)
    rows = [
        [job.name, _settings_text({key: job.settings[key] for key in options if key in job.settings}), job.error]
        for job in failed
    ]
    note = f"{source}: {len(jobs)} runs, {len(failed)} failed."
    return Table("Runs that failed", ["run", "settings", "reason"], rows, note)


def _groups_table(groups: Sequence[Group], metrics: Sequence[str]) -> Table:
    """A row per setting: mean and spread of the metrics over its seeds."""
    rows = [
        [
            *group.settings.values(),
            *(Spread.of(group.values(metric), len(group.jobs)) for metric in metrics),
            len(group.jobs),
            group.failed,
        ]
        for group in groups
    ]
    columns = [*groups[0].settings, *metrics, "runs", "failed"]
    note = "Mean ± sample standard deviation over the successful runs."
    return Table("Means over seeds", columns, rows, note, sortable=True)


def _jobs_table(jobs: Sequence[Job], options: Sequence[str], metrics: Sequence[str]) -> Table:
    """A row per run: the options that vary and the final metrics."""
    rows = [
        [
            job.name,
            *(job.settings.get(key, "") for key in options),
            *(job.figures.get(metric) for metric in metrics),
            _state(job),
        ]
        for job in jobs
    ]
    return Table("All runs", ["run", *options, *metrics, "state"], rows, sortable=True)


def _write_jobs(path: Path, jobs: Sequence[Job], options: Sequence[str]) -> None:
    """sweep.csv: every figure of every run."""
    figures = list(dict.fromkeys(name for job in jobs for name in job.figures))
    rows = [
        [
            job.name,
            _state(job),
            *(job.settings.get(key) for key in options),
            *(job.figures.get(name) for name in figures),
            job.error,
        ]
        for job in jobs
    ]
    write_table(path, ["run", "state", *options, *figures, "error"], rows)


def _plots(
    jobs: Sequence[Job], options: Sequence[str], groups: Sequence[Group], metrics: Sequence[str]
) -> list[Section]:
    """Parallel coordinates of all runs, and each metric against each option."""
    others = [key for key in options if key != SEED]
    plotted = [name for name in metrics if "loss" not in name] or list(metrics)
    done = [job for job in jobs if job.error is None]
    sections: list[Section] = []
    axes = [
        *(Axis(key, _numbers_or_texts([job.settings.get(key, "") for job in done])) for key in others),
        *(Axis(name, [job.figures.get(name) for job in done]) for name in plotted),
    ][:MAX_AXES]
    if others and len(axes) > 1 and len(done) > 1:
        note = "One line per run, coloured by the last axis; runs without a value on some axis are left out."
        sections.append(ParallelCoordinates("Options and metrics", axes, [job.name for job in done], note))
    pairs = [(option, metric) for metric in plotted for option in others]
    for option, metric in pairs[:MAX_PLOTS]:
        series: dict[str, list[tuple[str, Spread]]] = {}
        for group in groups:
            rest = _settings_text({key: value for key, value in group.settings.items() if key != option})
            if spread := Spread.of(group.values(metric)):
                series.setdefault(rest, []).append((group.settings[option], spread))
        if series:
            sections.append(SpreadPlot(f"{metric} against {option}", option, metric, series, f"{SPREAD_NOTE}."))
    return sections


def _numbers_or_texts(values: Sequence[str]) -> list[float | str | None]:
    """Numbers if all values are numbers, otherwise the texts."""
    numbers = [number_of(value) for value in values]
    return list(values) if None in numbers else list(numbers)


def _settings_text(settings: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in settings.items())


def _state(job: Job) -> str:
    return "done" if job.error is None else "failed"
