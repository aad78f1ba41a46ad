"""Evaluation of step-by-step students: the test part of a run, samples, metrics of several students."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Trainer

from potstill.config import EvaluateConfig
from potstill.config.benchmarks import rationale_part
from potstill.data.rationales.datamodule import TEST, VALID
from potstill.evaluation.rows import Row
from potstill.evaluation.step_by_step import SAMPLE_COLUMNS
from potstill.methods.common.comparison import as_text, evaluation_trainer
from potstill.methods.common.costs import size_figures
from potstill.methods.step_by_step.build import RationaleTraining, build_rationale_evaluation
from potstill.reporting.report import Section, Table
from potstill.training.task_prefix import TaskPrefix
from potstill.validation.names import stem_of

SAMPLES = 8  # rows that are shown


def test_metrics(trainer: Trainer, training: RationaleTraining) -> dict[str, float]:
    """The student as it is on the test part, as `test/<metric>`; empty where there is none."""
    if TEST not in training.data.evaluation:
        return {}
    metrics = trainer.test(training.module, datamodule=training.data, verbose=False)
    return dict(metrics[0]) if metrics else {}


def samples_of(module: TaskPrefix, title: str = "Samples") -> Table:
    """The first rows with what the student wrote of them: of the test part where it was tested, else of the other."""
    part = TEST if TEST in module.evaluators else VALID
    rows = module.evaluators[part].samples(module.written[part], SAMPLES)
    filled = [index for index in range(len(SAMPLE_COLUMNS)) if any(row[index] for row in rows)]
    return Table(
        title,
        [SAMPLE_COLUMNS[index] for index in filled],
        [[row[index] for index in filled] for row in rows],
        "The first rows of those that were evaluated.",
    )


def evaluate(config: EvaluateConfig, models: Mapping[str, str], folder: Path) -> list[Row]:
    """Rows of the students; writes predictions.jsonl, with the student's name where there are several."""
    return [_evaluate(config, name, model, folder, len(models) == 1) for name, model in models.items()]


def _evaluate(config: EvaluateConfig, name: str, model: str, folder: Path, only: bool) -> Row:
    evaluation = build_rationale_evaluation(config, model)
    trainer = evaluation_trainer(config, folder)
    began = time.perf_counter()
    metrics = trainer.validate(evaluation.module, datamodule=evaluation.data, verbose=False)[0]
    seconds = time.perf_counter() - began
    evaluator, written = evaluation.module.evaluators[VALID], evaluation.module.written[VALID]
    ends = [] if only else [stem_of(name)]
    evaluator.write(folder / f"{'_'.join(['predictions', *ends])}.jsonl", written)
    figures: dict[str, Any] = {
        metric.replace("val/", "test/", 1): value
        for metric, value in metrics.items()
        if metric not in ("val/loss", "val/loss_total")  # weighted as in training, which is not known here
    }
    figures |= {"examples": len(written.labels), "examples_per_second": len(written.labels) / seconds}
    figures |= size_figures(model, evaluation.module.student)  # type: ignore[arg-type]
    return Row(name, figures, extra=samples_of(evaluation.module, f"Samples of {name}"))


def sections(config: EvaluateConfig, rows: list[Row]) -> list[Section]:
    """A table of all metrics of all students, and samples of each."""
    metrics = [name for name in dict.fromkeys(key for row in rows for key in row.metrics) if name.startswith("test/")]
    others = ("parameters", "size_mb", "examples_per_second")
    cells = [[row.name, *(row.metrics.get(key) for key in (*others, *metrics))] for row in rows]
    columns = ["model", "parameters", "MB", "examples/s", *(name.removeprefix("test/") for name in metrics)]
    note = f"{config.data.name}, {rationale_part(config.benchmark)} part; losses in nats per target token."
    return [Table(f"benchmark={config.benchmark.name}", columns, cells, note), *(as_text(row.extra) for row in rows)]
