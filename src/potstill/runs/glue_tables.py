"""GLUE from the runs of its tasks: scores, macro average and spread over seeds, as tables. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.evaluation import glue
from potstill.reporting.sweeps import BENCHMARK, SEED, Group, Job, grouped, varying
from potstill.reporting.tables import Spread, Table, write_table

TITLES = {task.benchmark: task.title for task in glue.TASKS}


def glue_tables(jobs: Sequence[Job], folder: Path) -> tuple[list[Table], dict[str, Any]]:
    """The GLUE table of each setting of the other options, and its figures; also writes glue.csv.

    Args:
        jobs: of a sweep; jobs of other benchmarks are left out.
        folder: of glue.csv: setting, task, metric, mean, spread, runs; in points.
    """
    own = [job for job in jobs if job.benchmark in glue.BENCHMARKS]
    options = [key for key in varying(own) if key.partition(".")[0] not in (SEED, BENCHMARK)]
    tables, figures, lines = [], {}, []
    for group in grouped(own, options):
        rows, note = _glue_rows(group)
        prefix = f"{group.label}/" if group.label else ""
        cells = []
        for task, metric, values, mean in rows:
            spread = Spread.of(values)
            figures[f"{prefix}glue/{task}/{metric}"] = mean
            row = [metric, mean, spread and spread.deviation, len(values)]
            cells.append([TITLES.get(task, task.replace("_", " ")), *row])
            lines.append([*group.settings.values(), task, *row])
        title = f"GLUE {group.label}".strip()
        tables.append(Table(title, ["task", "metric", "mean", "± seeds", "runs"], cells, note))
    write_table(folder / "glue.csv", [*options, "task", "metric", "mean", "spread", "runs"], lines)
    return tables, figures


def _glue_rows(group: Group) -> tuple[list[tuple[str, str, list[float], float]], str]:
    """(task, metric, points of each run, mean) of every task and of the macro average, and a note."""
    rows: list[tuple[str, str, list[float], float]] = []
    means: dict[str, float] = {}
    by_seed: dict[str, dict[str, list[float]]] = {}
    missing = []
    for task in glue.TASKS:
        jobs = [job for job in group.jobs if job.benchmark == task.benchmark]
        found = [(job, points) for job in jobs if (points := glue.task_points(task, job.figures))]
        if not found:
            missing.append(task.title)
            continue
        for name in task.metrics:
            values = [points[name] for _, points in found]
            rows.append((task.benchmark, name, values, _mean(values)))
        scores = [glue.task_score(points) for _, points in found]
        means[task.benchmark] = _mean(scores)
        if len(task.metrics) > 1:
            rows.append((task.benchmark, "score", scores, means[task.benchmark]))
        for (job, _), score in zip(found, scores, strict=True):
            by_seed.setdefault(job.settings.get(SEED, ""), {}).setdefault(task.benchmark, []).append(score)
    if means:
        # The spread is over the seeds that have all tasks; averages over other tasks are not comparable.
        complete = [
            _mean([_mean(own) for own in seed.values()]) for seed in by_seed.values() if len(seed) == len(means)
        ]
        name, average = glue.macro_average(means)
        rows.append((name, "score", complete, average))
    note = "In points; a task with two metrics is scored by their mean, and the average is over the tasks' scores."
    if missing:
        note += (
            f" Missing: {', '.join(missing)}; {glue.AVERAGE_OF_PRESENT} is over the other {len(means)} tasks and not "
            "comparable with a GLUE average."
        )
    if group.failed:
        note += f" {group.failed} runs failed."
    return rows, note


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
