"""What a run of step-by-step distillation does beside the others: tests, shows samples, judges students."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from lightning import Trainer
from omegaconf import DictConfig

from potstill.build import RationaleTraining, build_rationale_evaluation, build_trainer
from potstill.data.rationales.datamodule import TEST, VALID
from potstill.evaluation.step_by_step import SAMPLE_COLUMNS
from potstill.reporting.report import Section, Table, Text
from potstill.runs.costs import size_figures
from potstill.training.callbacks import progress_bar
from potstill.training.task_prefix import TaskPrefix
from potstill.validation import models_of, stem_of

SAMPLES = 8  # rows that are shown


class Judged(NamedTuple):
    """Figures of a student by name, and samples of what it wrote."""

    figures: dict[str, Any]
    samples: Table


def test_metrics(trainer: Trainer, training: RationaleTraining) -> dict[str, float]:
    """The student as it is on the test part, as `test/<metric>`; empty where there is none."""
    if TEST not in training.data.evaluation:
        return {}
    metrics = trainer.test(training.module, datamodule=training.data, verbose=False)
    return dict(metrics[0]) if metrics else {}


def samples_of(module: TaskPrefix, title: str = "Samples") -> Table:
    """The first rows with what the student wrote of them: of the test part where it was tested, else of the other."""
    part = TEST if TEST in module.judges else VALID
    rows = module.judges[part].samples(module.written[part], SAMPLES)
    filled = [index for index in range(len(SAMPLE_COLUMNS)) if any(row[index] for row in rows)]
    return Table(
        title,
        [SAMPLE_COLUMNS[index] for index in filled],
        [[row[index] for index in filled] for row in rows],
        "The first rows of those that were judged.",
    )


def judge_student(config: DictConfig, name: str, model: str, folder: Path) -> Judged:
    """Judge a student on a part; writes predictions.jsonl, with the model's name where there are several.

    Raises:
        PotstillError: a student or files that cannot be used.
    """
    evaluation = build_rationale_evaluation(config, model)
    callbacks = [progress_bar()] if config.trainer.enable_progress_bar else []
    trainer = build_trainer(config.trainer, folder, callbacks=callbacks, loggers=False)
    began = time.perf_counter()
    metrics = trainer.validate(evaluation.module, datamodule=evaluation.data, verbose=False)[0]
    seconds = time.perf_counter() - began
    judge, written = evaluation.module.judges[VALID], evaluation.module.written[VALID]
    ends = [] if len(models_of(config)) == 1 else [stem_of(name)]
    judge.write(folder / f"{'_'.join(['predictions', *ends])}.jsonl", written)
    figures: dict[str, Any] = {
        metric.replace("val/", "test/", 1): value
        for metric, value in metrics.items()
        if metric
        not in ("val/loss", "val/loss_total")  # weighted as in training, which a judge does not know
    }
    figures |= {"examples": len(written.labels), "examples_per_second": len(written.labels) / seconds}
    figures |= size_figures(model, evaluation.module.student)  # type: ignore[arg-type]
    return Judged(figures, samples_of(evaluation.module, f"Samples of {name}"))


def student_sections(config: DictConfig, found: dict[str, Judged]) -> list[Section]:
    """A table of all metrics of all students, and samples of each."""
    names = list(dict.fromkeys(name for own in found.values() for name in own.figures))
    metrics = [name for name in names if name.startswith("test/")]
    others = ("parameters", "size_mb", "examples_per_second")
    rows = [[name, *(own.figures.get(key) for key in (*others, *metrics))] for name, own in found.items()]
    columns = ["model", "parameters", "MB", "examples/s", *(name.removeprefix("test/") for name in metrics)]
    note = f"{config.data.name}, {config.benchmark.part or 'test'} part; losses in nats a target token."
    return [
        Table(f"benchmark={config.benchmark.name}", columns, rows, note),
        *(Text(own.samples.title, _told(own.samples)) for own in found.values()),
    ]


def _told(samples: Table) -> str:
    """Samples as a text, which a terminal is not given."""
    rows = [dict(zip(samples.columns, row, strict=True)) for row in samples.rows]
    return "\n\n".join("\n".join(f"{name}: {text}" for name, text in row.items() if text) for row in rows)
