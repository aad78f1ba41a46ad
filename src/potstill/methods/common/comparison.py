"""Parts that the evaluators of language models and of task models share: latencies, cost columns, plots."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning import Trainer

from potstill.config import EvaluateConfig
from potstill.evaluation.latency import Timed
from potstill.evaluation.rows import Row
from potstill.interchange.agreement import AGREEMENT
from potstill.methods.common.costs import UNSTEADY, latency_cell, size_figures, timed_figures
from potstill.methods.common.exported_models import Deployed, deploy
from potstill.reporting.report import Curves, HeatMap, Table, Text
from potstill.training.callbacks import progress_bar
from potstill.training.trainer import build_trainer

log = logging.getLogger(__name__)

LATENCY_NOTE = f"latency: one sequence, the models measured in turn; {UNSTEADY}: the rounds disagree."
LONGEST_TIMED = 128  # tokens


def evaluation_trainer(config: EvaluateConfig, folder: Path) -> Trainer:
    """The trainer of an evaluation."""
    callbacks = [progress_bar()] if config.trainer.enable_progress_bar else []
    return build_trainer(config.trainer, folder, callbacks=callbacks, loggers=False)


def each_form(evaluation: Any, forms: list[str], folder: Path, name: str) -> Iterator[Deployed | None]:
    """The model itself (None), then each of its exported forms, which takes its place in the module."""
    yield None
    module = evaluation.module
    for form in deploy(forms, module.student, evaluation.tokenizer, folder, name):
        module.deployed = form.model
        yield form


def form_name(name: str, form: Deployed | None) -> str:
    """The name of a row."""
    return name if form is None else f"{name} {form.form}"


def sized(row: Row, trainer: Trainer, evaluation: Any, model: str | None, form: Deployed | None) -> Row:
    """A row with the parameters and the size of its model or exported form, and how that is timed."""
    student = evaluation.module.student
    own: dict[str, Any] = {} if form is None else form.figures
    timed = Timed(student, trainer.strategy.root_device) if form is None else Timed(form.model)
    metrics = {**row.metrics, **size_figures(model, student), **own}
    return replace(row, metrics=metrics, timed=timed, length=min(LONGEST_TIMED, evaluation.length))


def add_latencies(rows: list[Row]) -> None:
    """Add the latency of one sequence to every row, the models measured in turn."""
    timed = {row.name: row.timed for row in rows if row.timed is not None}
    figures = timed_figures(timed, batch=1, length=min(row.length for row in rows))
    for row in rows:
        row.metrics.update(figures[row.name])


def cost_columns(rows: list[Row]) -> tuple[list[str], list[list[Any]]]:
    """Columns of every table of models, and their cells by row."""
    columns = ["parameters", "MB", "latency ms", *([f"time of {rows[0].name}"] if len(rows) > 1 else [])]
    cells = []
    for row in rows:
        ratio = [f"{row.metrics['latency_ratio']:.2f}"] if len(rows) > 1 else []
        cells.append([row.metrics["parameters"], row.metrics["size_mb"], latency_cell(row.metrics), *ratio])
    return columns, cells


def quality_against_latency(config: EvaluateConfig, rows: list[Row], monitor: str) -> list[Curves]:
    """A plot of the deciding metric against latency; none for a single row."""
    if len(rows) < 2:
        return []
    points = {
        row.name: ([row.metrics["latency_ms"]], [row.metrics[monitor]])
        for row in rows
        if row.metrics.get(monitor) is not None
    }
    return [Curves("Quality against latency", points, "latency of one sequence, ms", config.benchmark.monitor)]


def agreement_maps(config: EvaluateConfig, rows: list[Row], prefix: str) -> list[HeatMap]:
    """Agreement by blocks of the teacher (down) and of the student (across), one map per row that has swapped states.

    Args:
        config: of the evaluation.
        rows: of the evaluation.
        prefix: of the metrics' names, `test/` or empty.
    """
    maps = [made for row in rows if (made := _agreement_map(row, f"{prefix}{AGREEMENT[0]}_")) is not None]
    if len(maps) < len(rows):
        log.warning(
            "%s: no agreement, as states are swapped within pairs, and there is none; give two or more examples",
            config.benchmark.name,
        )
    return maps


def _agreement_map(row: Row, prefix: str) -> HeatMap | None:
    values = {
        tuple(name.removeprefix(prefix).split("-")): value
        for name, value in row.metrics.items()
        if name.startswith(prefix)
    }
    if not values:
        return None
    down, across = (list(dict.fromkeys(names)) for names in zip(*values, strict=True))
    return HeatMap(
        f"{row.name}: interchange agreement",
        "teacher / student block",
        down,
        across,
        [[values.get((theirs, ours)) for ours in across] for theirs in down],
        "Share of what the intervention reaches (tokens, or rows of a task) on which both predict the same.",
    )


def as_text(samples: Table) -> Text:
    """Samples as a text, which is not printed to the terminal."""
    rows = [dict(zip(samples.columns, row, strict=True)) for row in samples.rows]
    shown = ["\n".join(f"{name}: {text}" for name, text in row.items() if text) for row in rows]
    return Text(samples.title, "\n\n".join(shown))
