"""An evaluation: judge each model, compare them, and leave the results in the output folder."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import Trainer
from omegaconf import DictConfig, OmegaConf

from potstill.build import (
    Evaluation,
    TaskEvaluation,
    build_evaluation,
    build_task_evaluation,
    build_trainer,
)
from potstill.callbacks import progress_bar
from potstill.costs import cost_sections, measure_costs, size_figures
from potstill.data.rationales.composition import RATIONALES
from potstill.data.tasks.composition import EFFICIENCY, MAIN, is_task
from potstill.evaluation.bootstrap import LEVEL, Metric, paired_bootstrap
from potstill.evaluation.efficiency import latency_ms
from potstill.evaluation.report import Collapsible, HeatMap, Points, Section, Table, print_table, write_report
from potstill.interchange.agreement import AGREEMENT
from potstill.process import quiet
from potstill.rationales import judge_student, student_sections
from potstill.summary import provenance, write_summary
from potstill.validation import models_of

log = logging.getLogger(__name__)

DIFFERENCE = ("difference", "difference_low", "difference_high")


def evaluate(config: DictConfig, folder: Path) -> float | None:
    """Judge the models as configured; writes summary.json and report.html, prints the table.

    Returns:
        The benchmark's monitored metric of the first model.
    """
    quiet()
    models = models_of(config)
    names = list(config.names) if config.names is not None else _row_names(models)
    if config.benchmark.task == EFFICIENCY:
        costs = {
            name: measure_costs(config, model, folder) for name, model in zip(names, models, strict=True)
        }
        rows = [Row(name, found.figures) for name, found in costs.items()]
        return _leave(config, folder, rows, cost_sections(config, costs))
    if config.benchmark.task == RATIONALES:
        found = {
            name: judge_student(config, name, model, folder)
            for name, model in zip(names, models, strict=True)
        }
        rows = [Row(name, own.figures) for name, own in found.items()]
        return _leave(config, folder, rows, student_sections(config, found))
    reference = models[0] if config.benchmark.interchange.mapping is not None else None
    judge = _judge_task if is_task(config.benchmark) else _judge
    rows = [
        judge(config, name, model, folder, reference)
        for name, model in list(zip(names, models, strict=True))[reference is not None :]
    ]
    _add_differences(rows, _monitored(config))
    pictures: list[Section] = []
    if reference is not None:
        pictures = [_agreement_map(config, row) for row in rows]
    if is_task(config.benchmark):
        table = _task_comparison(config, rows)
        pictures = [*_further_metrics(config, rows), *pictures]
    elif reference is not None:
        table = _agreement_table(config, rows, reference)
    else:
        table = _comparison(config, rows)
    if len(rows) > 1:
        pictures.insert(0, _quality_against_latency(config, rows))
    return _leave(config, folder, rows, [table, *pictures])


def _leave(config: DictConfig, folder: Path, rows: list[Row], sections: list[Section]) -> float | None:
    """Write the summary, the configuration and the report, and print the tables."""
    summary: dict[str, Any] = {}
    for row in rows:
        prefix = "" if len(rows) == 1 else f"{row.name}/"
        summary |= {f"{prefix}{name}": value for name, value in row.metrics.items()}
    summary |= provenance(config)
    write_summary(folder, summary)
    OmegaConf.save(config, folder / "config.yaml", resolve=True)
    settings = Collapsible("Configuration", OmegaConf.to_yaml(config, resolve=True))
    write_report(folder, title=f"benchmark={config.benchmark.name}", sections=[*sections, settings])
    for section in sections:
        if isinstance(section, Table):
            print_table(section)
    log.info("%s", folder / "report.html")
    return rows[0].metrics.get(_monitored(config))


@dataclass(frozen=True)
class Row:
    """A model and its figures; of a task with labels, the deciding metric as a function of the examples too."""

    name: str
    metrics: dict[str, Any]
    metric: Metric | None = None
    examples: int = 0


def _judge(config: DictConfig, name: str, model: str, folder: Path, reference: str | None) -> Row:
    evaluation = build_evaluation(config, model, reference)
    callbacks = [progress_bar()] if config.trainer.enable_progress_bar else []
    trainer = build_trainer(config.trainer, folder, callbacks=callbacks, loggers=False)
    metrics = trainer.validate(evaluation.module, datamodule=evaluation.data, verbose=False)[0]
    own = {key.removeprefix("val/"): value for key, value in metrics.items()}
    return Row(name, own | _efficiency(trainer, evaluation, model))


def _judge_task(config: DictConfig, name: str, model: str, folder: Path, reference: str | None) -> Row:
    evaluation = build_task_evaluation(config, model, reference)
    callbacks = [progress_bar()] if config.trainer.enable_progress_bar else []
    trainer = build_trainer(config.trainer, folder, callbacks=callbacks, loggers=False)
    metrics = trainer.validate(evaluation.module, datamodule=evaluation.data, verbose=False)
    own = {key.replace("val/", "test/", 1): value for part in metrics for key, value in part.items()}
    only = len(models_of(config)) == 1
    metric, examples = None, 0
    for part, judge in evaluation.module.judges.items():
        ends = ([] if only else [re.sub(r"[^\w.-]", "_", name)]) + ([part] if part else [])
        numbers, logits, labels = evaluation.module.predicted(part)
        path = judge.write(folder / "_".join(["predictions", *ends]), numbers, logits)
        if not judge.labelled:
            log.warning("%s has no labels; it is only predicted, in %s", config.benchmark.name, path)
        elif part == MAIN:
            metric, examples = judge.metric(config.benchmark.monitor, numbers, logits, labels)
    return Row(name, own | _efficiency(trainer, evaluation, model), metric, examples)


def _add_differences(rows: list[Row], monitor: str) -> None:
    """How far each model's deciding metric is from the first's, with its interval, where both were judged by row."""
    first = rows[0]
    for row in rows[1:]:
        if first.metric is not None and row.metric is not None and row.examples == first.examples:
            found = paired_bootstrap(row.metric, first.metric, row.examples)
            for name, value in zip(DIFFERENCE, found, strict=True):
                row.metrics[f"{monitor}_{name}"] = value


def _quality_against_latency(config: DictConfig, rows: list[Row]) -> Points:
    monitor = _monitored(config)
    return Points(
        "Quality against latency",
        {
            row.name: (row.metrics["latency_ms"], row.metrics[monitor])
            for row in rows
            if row.metrics.get(monitor) is not None
        },
        "latency of one sequence, ms",
        config.benchmark.monitor,
    )


def _efficiency(trainer: Trainer, evaluation: Evaluation | TaskEvaluation, model: str) -> dict[str, Any]:
    """Parameters, size and latency of a model."""
    student = evaluation.module.student
    evaluation.module.to(trainer.strategy.root_device)
    latency = latency_ms(student, batch=1, length=min(128, evaluation.length))
    return {**size_figures(model, student), "latency_ms": latency["p50"]}


def _monitored(config: DictConfig) -> str:
    """The metric that decides, as a row has it."""
    prefixed = is_task(config.benchmark) or config.benchmark.task == RATIONALES
    return f"{'test/' if prefixed else ''}{config.benchmark.monitor}"


def _row_names(models: list[str]) -> list[str]:
    """The shortest ends of the paths that tell the models apart."""
    parts = [Path(model).parts for model in models]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{model} #{i + 1}" for i, model in enumerate(models)]


def _comparison(config: DictConfig, rows: list[Any]) -> Table:
    monitor, mode = config.benchmark.monitor, config.benchmark.mode
    reference = rows[0].metrics[monitor]
    columns = ["model", "parameters", "MB", "latency ms", monitor, f"share of {rows[0].name}"]
    cells = []
    for row in rows:
        value = row.metrics[monitor]
        share = reference / value if mode == "min" else value / reference
        size, latency = row.metrics["size_mb"], row.metrics["latency_ms"]
        cells.append(
            [
                row.name,
                f"{row.metrics['parameters']:,}",
                f"{size:.1f}",
                f"{latency:.2f}",
                f"{value:.2f}",
                f"{share:.1%}",
            ]
        )
    note = f"{monitor} on {config.data.name}; latency: one sequence, median. Share: " + (
        f"the reference's {monitor} over the model's."
        if mode == "min"
        else f"the model's {monitor} over the reference's."
    )
    return Table(f"benchmark={config.benchmark.name}", columns, cells, note)


def _agreement_table(config: DictConfig, rows: list[Row], reference: str) -> Table:
    columns = ["model", "parameters", "MB", "latency ms", "agreement", "KL nats", "perplexity"]
    keys = ("parameters", "size_mb", "latency_ms", *AGREEMENT, "perplexity")
    cells = [[row.name, *(row.metrics.get(key) for key in keys)] for row in rows]
    exchange = config.benchmark.interchange
    note = (
        f"Counterfactual predictions against those of {reference} on {config.data.name}, mean over the mappings "
        f"({exchange.mapping}); {exchange.proportion:.0%} {exchange.positions} positions swapped within pairs."
    )
    return Table(f"benchmark={config.benchmark.name}", columns, cells, note)


def _agreement_map(config: DictConfig, row: Row) -> HeatMap:
    """Agreement by the blocks of the teacher (down) and of the student (across)."""
    prefix = f"{'test/' if is_task(config.benchmark) else ''}{AGREEMENT[0]}_"
    values = {
        tuple(name.removeprefix(prefix).split("-")): value
        for name, value in row.metrics.items()
        if name.startswith(prefix)
    }
    down, across = (list(dict.fromkeys(names)) for names in zip(*values, strict=True))
    return HeatMap(
        f"{row.name}: interchange agreement",
        "teacher / student block",
        down,
        across,
        [[values.get((theirs, ours)) for ours in across] for theirs in down],
        "Share of what the intervention reaches (tokens, or rows of a task) on which both predict the same.",
    )


def _task_comparison(config: DictConfig, rows: list[Row]) -> Table:
    """Every metric of every model; the share is of the monitored one, where there are labels."""
    monitor = _monitored(config)
    metrics, _ = _metric_names(config, rows)
    columns = ["model", "parameters", "MB", "latency ms", *(name.removeprefix("test/") for name in metrics)]
    cells = [
        [row.name, *(row.metrics.get(key) for key in ("parameters", "size_mb", "latency_ms", *metrics))]
        for row in rows
    ]
    note = f"{config.benchmark.name}; latency: one sequence, median."
    reference = rows[0].metrics.get(monitor)
    if reference:
        columns.append(f"share of {rows[0].name}")
        for row, cell in zip(rows, cells, strict=True):
            value = row.metrics[monitor]
            share = value / reference if config.benchmark.mode == "max" else reference / value
            cell.append(f"{share:.1%}")
        note += f" Share: of the reference's {config.benchmark.monitor}."
        if any(f"{monitor}_{DIFFERENCE[0]}" in row.metrics for row in rows):
            columns.append("difference")
            for row, cell in zip(rows, cells, strict=True):
                found = [
                    row.metrics[key] for name in DIFFERENCE if (key := f"{monitor}_{name}") in row.metrics
                ]
                cell.append(_signed(*found) if found else "")
            note += f" Difference: to it, with the {LEVEL:.0%} interval of a paired bootstrap over the rows."
    elif not metrics:
        note += " No labels, so no metrics: predictions.tsv holds what is predicted."
    return Table(f"benchmark={config.benchmark.name}", columns, cells, note)


def _metric_names(config: DictConfig, rows: list[Row]) -> tuple[list[str], list[str]]:
    """The benchmark's metrics, of all its sets, and the others; each mapping's agreement is on the map alone."""
    main = (*config.benchmark.metrics, "loss", *AGREEMENT)
    sets = tuple(f"_{further.name}" for further in config.benchmark.further)
    known = {f"test/{name}{end}" for name in main for end in ("", *sets)}
    names = [  # of the first, which differs from nothing
        name
        for name in rows[0].metrics
        if name.startswith("test/")
        and not name.removeprefix("test/").startswith(tuple(f"{a}_" for a in AGREEMENT))
    ]
    return [name for name in names if name in known], [name for name in names if name not in known]


def _further_metrics(config: DictConfig, rows: list[Row]) -> list[Section]:
    """A table of what a benchmark's kind has beside its metrics: a type of entities each, a kind of questions each."""
    _, names = _metric_names(config, rows)
    cells = [[name.removeprefix("test/"), *(row.metrics.get(name) for row in rows)] for name in names]
    return [Table("Further metrics", ["metric", *(row.name for row in rows)], cells, "")] if names else []


def _signed(value: float, low: float, high: float) -> str:
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"
