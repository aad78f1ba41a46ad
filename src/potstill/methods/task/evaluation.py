"""Evaluation of task models: metrics, predictions, submissions, agreement under interventions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from potstill.config import EvaluateConfig
from potstill.config.benchmarks import swaps_of
from potstill.data.tasks.labels import CLASSIFICATION, MULTI_LABEL, TOKENS
from potstill.data.tasks.splits import MAIN
from potstill.evaluation.bootstrap import Metric
from potstill.evaluation.classes import class_table, entity_table
from potstill.evaluation.rows import Row, add_difference_column, add_differences
from potstill.evaluation.submissions import FILES, write_submission
from potstill.interchange.agreement import AGREEMENT, CHANGED, UNSWAPPED
from potstill.methods.common.candidates import evaluated, reference_of
from potstill.methods.common.comparison import (
    LATENCY_NOTE,
    add_latencies,
    agreement_maps,
    cost_columns,
    each_form,
    evaluation_trainer,
    form_name,
    quality_against_latency,
    sized,
)
from potstill.methods.task.build import TaskEvaluation, build_task_evaluation
from potstill.reporting.report import Section, Table
from potstill.training.task import Downstream
from potstill.validation.names import stem_of

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig, models: Mapping[str, str], folder: Path) -> list[Row]:
    """Rows of the models and of their exported forms; what each predicts is written."""
    reference, rows = reference_of(config, models), []
    for name, model, forms, control in evaluated(config, models):
        evaluation = build_task_evaluation(config, model, reference, control)
        trainer = evaluation_trainer(config, folder)
        for form in each_form(evaluation, forms, folder, name):
            metrics = trainer.validate(evaluation.module, datamodule=evaluation.data, verbose=False)
            own = {key.replace("val/", "test/", 1): value for part in metrics for key, value in part.items()}
            row = sized(Row(form_name(name, form), own), trainer, evaluation, None if control else model, form)
            called = form_name("" if len(models) == 1 else name, form).strip()
            for part in evaluation.module.evaluators:
                ends = [end for end in (called and stem_of(called), part) if end]
                path = folder / "_".join(["predictions", *ends])
                scored = _write_predictions(config, evaluation, part, path)
                if part == MAIN and scored is not None:
                    metric, numbers = scored
                    row = replace(row, metric=metric, examples=len(numbers), pairing=numbers.tobytes())
                trained = form is None and control is None
                if trained and config.task_benchmark.part == "test" and _is_of_glue(evaluation):
                    own_folder = "_".join(["submission", *ends[: len(models) > 1]])
                    _write_submission(evaluation, part, folder / own_folder)
            rows.append(row)
    add_latencies(rows)
    add_differences(rows, f"test/{config.benchmark.monitor}")
    return rows


def _write_predictions(
    config: EvaluateConfig, evaluation: TaskEvaluation, part: str, stem: Path
) -> tuple[Metric, NDArray] | None:
    """Write the predictions of a set; its deciding metric by examples and their numbers, where there are labels."""
    evaluator, predicted = evaluation.module.evaluators[part], evaluation.module.predicted(part)
    path = evaluator.write(stem, *predicted[:2])
    if evaluator.labelled:
        return evaluator.metric(config.benchmark.monitor, *predicted)
    log.warning("%s has no labels; it is only predicted, in %s", config.benchmark.name, path)
    return None


def _is_of_glue(evaluation: TaskEvaluation) -> bool:
    """Whether GLUE's server takes predictions of the task: a label or a score of each row."""
    task = evaluation.module.task
    return task.name in FILES and task.kind != MULTI_LABEL


def _write_submission(evaluation: TaskEvaluation, part: str, folder: Path) -> None:
    """Write the file that GLUE's server takes of a test set."""
    task, (_, logits, _) = evaluation.module.task, evaluation.module.predicted(part)
    predictions: list[Any] = logits[:, 0].tolist()
    if task.labels:
        predictions = [task.labels[number] for number in logits.argmax(-1).tolist()]
    folder.mkdir(exist_ok=True)
    log.info("%s", write_submission(folder, task.name, predictions, part))


def class_tables(module: Downstream, metrics: Mapping[str, float]) -> dict[str, Table]:
    """A table of the metrics of each class, or of each type of entity, as `classes`."""
    if not module.evaluators[MAIN].labelled:
        return {}
    if module.task.kind in (CLASSIFICATION, MULTI_LABEL):
        _, logits, labels = module.predicted(MAIN)
        return {"classes": class_table(module.task.labels, logits, labels)}
    if module.task.kind == TOKENS and (table := entity_table(metrics)) is not None:
        return {"classes": table}
    return {}


def sections(config: EvaluateConfig, rows: list[Row]) -> list[Section]:
    """A table of the models, further metrics, and plots."""
    maps = agreement_maps(config, rows, "test/") if swaps_of(config.benchmark).mapping is not None else []
    plots = quality_against_latency(config, rows, f"test/{config.benchmark.monitor}")
    return [_comparison(config, rows), *plots, *_further_metrics(config, rows), *maps]


def _comparison(config: EvaluateConfig, rows: list[Row]) -> Table:
    """Every metric of every model; the share is of the monitored one, where there are labels."""
    monitor = f"test/{config.benchmark.monitor}"
    metrics, _ = _metric_names(config, rows)
    named, costs = cost_columns(rows)
    columns = ["model", *named, *(name.removeprefix("test/") for name in metrics)]
    cells = [[row.name, *own, *(row.metrics.get(key) for key in metrics)] for row, own in zip(rows, costs, strict=True)]
    note = f"{config.benchmark.name}; {LATENCY_NOTE}"
    reference = rows[0].metrics.get(monitor)
    if reference:
        columns.append(f"share of {rows[0].name}")
        for row, cell in zip(rows, cells, strict=True):
            value = row.metrics[monitor]
            share = value / reference if config.benchmark.mode == "max" else reference / value
            cell.append(f"{share:.1%}")
        note += f" Share: of the reference's {config.benchmark.monitor}."
        note += add_difference_column(columns, cells, rows, monitor, "examples")
    elif not metrics:
        note += " No labels, so no metrics: predictions.tsv holds what is predicted."
    return Table(f"benchmark={config.benchmark.name}", columns, cells, note)


def _metric_names(config: EvaluateConfig, rows: list[Row]) -> tuple[list[str], list[str]]:
    """The benchmark's metrics, of all its sets, and the others; each mapping's agreement is on the map alone."""
    main = (*config.task_benchmark.metrics, "loss", *AGREEMENT, CHANGED, UNSWAPPED)
    sets = tuple(f"_{further.name}" for further in config.task_benchmark.further)
    known = {f"test/{name}{end}" for name in main for end in ("", *sets)}
    names = [  # of the first, which differs from nothing
        name
        for name in rows[0].metrics
        if name.startswith("test/") and not name.removeprefix("test/").startswith(tuple(f"{a}_" for a in AGREEMENT))
    ]
    return [name for name in names if name in known], [name for name in names if name not in known]


def _further_metrics(config: EvaluateConfig, rows: list[Row]) -> list[Section]:
    """A table of what a benchmark's kind has beside its metrics, one row per type of entity or kind of question."""
    _, names = _metric_names(config, rows)
    cells = [[name.removeprefix("test/"), *(row.metrics.get(name) for row in rows)] for name in names]
    return [Table("Further metrics", ["metric", *(row.name for row in rows)], cells, "")] if names else []
