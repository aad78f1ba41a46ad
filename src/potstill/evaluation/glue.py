"""GLUE (Wang et al. 2019): nine tasks, the metrics of each, and their macro average.

Figures are in points, a hundred times the metrics. The score of a task with two metrics is their mean, and the macro
average is the mean over the nine scores (section 4.4 of the paper and its leaderboard, where MNLI's matched and
mismatched accuracies are the two metrics of one task).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

POINTS = 100.0
AVERAGE, AVERAGE_OF_PRESENT = "average", "average_of_present"


@dataclass(frozen=True)
class GlueTask:
    """A task of GLUE.

    Attributes:
        benchmark: name of its option.
        title: as in the paper.
        metrics: names as in summary.json, without prefix.
    """

    benchmark: str
    title: str
    metrics: tuple[str, ...]


TASKS = (
    GlueTask("cola", "CoLA", ("matthews",)),
    GlueTask("sst2", "SST-2", ("accuracy",)),
    GlueTask("mrpc", "MRPC", ("f1", "accuracy")),
    GlueTask("stsb", "STS-B", ("pearson", "spearman")),
    GlueTask("qqp", "QQP", ("f1", "accuracy")),
    GlueTask("mnli", "MNLI", ("accuracy", "accuracy_mismatched")),
    GlueTask("qnli", "QNLI", ("accuracy",)),
    GlueTask("rte", "RTE", ("accuracy",)),
    GlueTask("wnli", "WNLI", ("accuracy",)),
)
BENCHMARKS = tuple(task.benchmark for task in TASKS)


def task_points(task: GlueTask, figures: Mapping[str, float]) -> dict[str, float] | None:
    """The metrics of a task in points, from `test/<metric>` or `val/<metric>`; None if one of them is missing."""
    for prefix in ("test/", "val/"):
        if all(f"{prefix}{metric}" in figures for metric in task.metrics):
            return {metric: POINTS * figures[f"{prefix}{metric}"] for metric in task.metrics}
    return None


def task_score(points: Mapping[str, float]) -> float:
    """The score of a task: the unweighted mean of its metrics, in points."""
    return sum(points.values()) / len(points)


def macro_average(scores: Mapping[str, float]) -> tuple[str, float]:
    """The mean over the tasks, in points, and its name.

    Args:
        scores: of each benchmark that has one; at least one of GLUE.

    Returns:
        `average` over all nine tasks, otherwise `average_of_present`, which is not comparable with it.
    """
    known = [scores[name] for name in BENCHMARKS if name in scores]
    name = AVERAGE if len(known) == len(BENCHMARKS) else AVERAGE_OF_PRESENT
    return name, sum(known) / len(known)
