"""GLUE as a whole from the runs of its tasks: scores, macro average and spread over seeds, as tables. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.evaluation import glue
from potstill.reporting.report import Table
from potstill.reporting.sweep_plots import Spread
from potstill.reporting.tables import write_table
from potstill.runs.sweeps import BENCHMARK, SEED, Group, Job, grouped, spread_of, varying


def glue_tables(jobs: Sequence[Job], folder: Path) -> tuple[list[Table], dict[str, Any]]:
    """GLUE's tables, one for each setting of the other options, and their figures; also written as glue.csv.

    Args:
        jobs: of a sweep; those of other benchmarks are left out.
        folder: where glue.csv goes: setting, task, metric, mean, spread, runs; in points.
    """
    own = [job for job in jobs if job.benchmark in glue.BENCHMARKS]
    options = [key for key in varying(own) if not re.match(rf"{SEED}$|{BENCHMARK}($|\.)", key)]
    tables, figures, lines = [], {}, []
    for group in grouped(own, options):
        rows, note = _glue_rows(group)
        title = " ".join(("GLUE", group.label)).strip()
        cells = [
            [_title_of(task), metric, spread.mean, spread.deviation, runs]
            for task, metric, spread, runs in rows
        ]
        tables.append(Table(title, ["task", "metric", "mean", "± seeds", "runs"], cells, note))
        for task, metric, spread, runs in rows:
            lines.append([*group.settings.values(), task, metric, spread.mean, spread.deviation, runs])
            start = f"{group.label}/" if group.label else ""
            figures[f"{start}glue/{task}/{metric}"] = spread.mean
    write_table(folder / "glue.csv", [*options, "task", "metric", "mean", "spread", "runs"], lines)
    return tables, figures


def _glue_rows(group: Group) -> tuple[list[tuple[str, str, Spread, int]], str]:
    """(task, metric, points, runs) of every task, then of the macro average, and what is to be said of them."""
    rows: list[tuple[str, str, Spread, int]] = []
    means: dict[str, float] = {}
    by_seed: dict[str, dict[str, list[float]]] = {}
    missing = []
    for task in glue.TASKS:
        jobs = [job for job in group.jobs if job.benchmark == task.benchmark]
        found = [(job, points) for job in jobs if (points := glue.task_points(task, job.figures))]
        if not found:
            missing.append(task.title)
            continue
        names = list(task.metrics)
        for name in names:
            rows.append(_row(task.benchmark, name, [points[name] for _, points in found]))
        scores = [glue.task_score(points) for _, points in found]
        if len(names) > 1:
            rows.append(_row(task.benchmark, "score", scores))
        means[task.benchmark] = sum(scores) / len(scores)
        for (job, _), score in zip(found, scores, strict=True):
            of_seed = by_seed.setdefault(job.settings.get(SEED, ""), {})
            of_seed.setdefault(task.benchmark, []).append(score)
    name, average = glue.macro_average(means)
    if average is not None:
        # Over seeds that have all the tasks that there are: others' averages are of something else.
        complete = [
            sum(sum(scores) / len(scores) for scores in own.values()) / len(own)
            for own in by_seed.values()
            if len(own) == len(means)
        ]
        over_seeds = spread_of(complete)
        rows.append(
            (name, "score", Spread(average, over_seeds.deviation if over_seeds else None), len(complete))
        )
    note = "In points; the score of a task with two metrics is their mean, the average that of the tasks' scores."
    if missing:
        note += (
            f" Missing: {', '.join(missing)}. So this is no GLUE average, but that over the {len(means)} tasks that "
            f"there are ({glue.AVERAGE_OF_PRESENT})."
        )
    if group.failed:
        note += f" {group.failed} runs failed."
    return rows, note


def _row(task: str, metric: str, values: Sequence[float]) -> tuple[str, str, Spread, int]:
    spread = spread_of(values)
    assert spread is not None
    return task, metric, spread, len(values)


def _title_of(task: str) -> str:
    titles = {known.benchmark: known.title for known in glue.TASKS}
    return titles.get(task, task.replace("_", " "))
