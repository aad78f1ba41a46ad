"""An evaluation: judge each model, compare them, and leave the results in the output folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from numpy.typing import NDArray
from omegaconf import DictConfig

from potstill.build import (
    Evaluation,
    TaskEvaluation,
    build_evaluation,
    build_task_evaluation,
    build_trainer,
)
from potstill.data.rationales.splits import RATIONALES
from potstill.data.tasks.labels import MULTI_LABEL
from potstill.data.tasks.splits import EFFICIENCY, MAIN, is_task
from potstill.evaluation.bootstrap import LEVEL, Metric, paired_bootstrap
from potstill.evaluation.latency import Timed
from potstill.evaluation.submissions import FILES, write_submission
from potstill.interchange.agreement import AGREEMENT
from potstill.reporting.report import Collapsible, HeatMap, Points, Section, Table, print_table, write_report
from potstill.runs.costs import (
    UNSTEADY,
    Costs,
    cost_sections,
    latency_cell,
    measure_costs,
    size_figures,
    time_passes,
    timed_figures,
)
from potstill.runs.exported_models import Deployed, deploy
from potstill.runs.machine_errors import told
from potstill.runs.step_by_step import judge_student, student_sections
from potstill.runs.summary import config_text, provenance, write_config, write_summary
from potstill.runtime.kernels import use_kernels
from potstill.runtime.process import quiet
from potstill.training.callbacks import progress_bar
from potstill.validation import models_of, stem_of
from potstill.validation.exports import forms_of

log = logging.getLogger(__name__)

LATENCY_NOTE = f"latency: one sequence, the models measured in turn; {UNSTEADY}: the rounds disagree."
DIFFERENCE = ("difference", "difference_low", "difference_high")


def evaluate(config: DictConfig, folder: Path) -> float | None:
    """Judge the models as configured; writes summary.json and report.html, prints the table.

    Returns:
        The benchmark's monitored metric of the first model.

    Raises:
        PotstillError: models or data that cannot be used, too little memory, a process that was lost.
    """
    quiet()
    use_kernels()
    with told(config):
        rows, sections = _judge_all(config, folder)
    return _leave(config, folder, rows, sections)


def _judge_all(config: DictConfig, folder: Path) -> tuple[list[Row], list[Section]]:
    """Every model's figures, and what the report shows of them."""
    models = models_of(config)
    names = list(config.names) if config.names is not None else _row_names(models)
    if config.benchmark.task == EFFICIENCY:
        costs: dict[str, Costs] = {}
        for name, model in zip(names, models, strict=True):
            forms = forms_of(config) if costs or len(models) == 1 else []
            costs |= measure_costs(config, name, model, folder, forms)
        time_passes(config, costs)
        found = [Row(name, own.figures) for name, own in costs.items()]
        return found, cost_sections(config, costs)
    if config.benchmark.task == RATIONALES:
        written = {
            name: judge_student(config, name, model, folder)
            for name, model in zip(names, models, strict=True)
        }
        answers = [Row(name, own.figures) for name, own in written.items()]
        return answers, student_sections(config, written)
    reference = models[0] if config.benchmark.interchange.mapping is not None else None
    judge = _judge_task if is_task(config.benchmark) else _judge
    named = list(zip(names, models, strict=True))
    rows: list[Row] = []
    for number, (name, model) in enumerate(named):
        if number or reference is None:
            forms = forms_of(config) if number or len(named) == 1 else []
            rows += judge(config, name, model, folder, reference, forms)
    _add_latencies(rows)
    _add_differences(rows, _monitored(config))
    pictures: list[Section] = []
    if reference is not None:
        pictures = [agreement for row in rows if (agreement := _agreement_map(config, row)) is not None]
        if len(pictures) < len(rows):
            log.warning(
                "%s: no agreement, as states are swapped within pairs, and there is none; give two or more examples",
                config.benchmark.name,
            )
    if is_task(config.benchmark):
        table = _task_comparison(config, rows)
        pictures = [*_further_metrics(config, rows), *pictures]
    elif reference is not None:
        table = _agreement_table(config, rows, reference)
    else:
        table = _comparison(config, rows)
    if len(rows) > 1:
        pictures.insert(0, _quality_against_latency(config, rows))
    return rows, [table, *pictures]


def _leave(config: DictConfig, folder: Path, rows: list[Row], sections: list[Section]) -> float | None:
    """Write the summary, the configuration and the report, and print the tables."""
    summary: dict[str, Any] = {}
    for row in rows:
        prefix = "" if len(rows) == 1 else f"{row.name}/"
        summary |= {f"{prefix}{name}": value for name, value in row.metrics.items()}
    summary |= provenance(config)
    write_config(folder, config)
    settings = Collapsible("Configuration", config_text(config))
    write_report(folder, title=f"benchmark={config.benchmark.name}", sections=[*sections, settings])
    write_summary(folder, summary)
    for section in sections:
        if isinstance(section, Table):
            print_table(section)
    log.info("%s", folder / "report.html")
    return rows[0].metrics.get(_monitored(config))


@dataclass(frozen=True)
class Row:
    """A model and its figures; where it was judged by example, the deciding metric as a function of these too."""

    name: str
    metrics: dict[str, Any]
    metric: Metric | None = None
    examples: int = 0
    pairing: bytes = b""  # two rows have the same examples, in the same order, only where this is the same
    timed: Timed | None = None  # the model
    length: int = 0  # of the sequences that it is timed on


def _judge(
    config: DictConfig, name: str, model: str, folder: Path, reference: str | None, forms: list[str]
) -> list[Row]:
    """Rows of a language model and of its wanted forms."""
    evaluation = build_evaluation(config, model, reference)
    trainer = _trainer(config, folder)
    found = []
    for form in _forms(evaluation, forms, folder, name):
        evaluation.module.sequences = [] if reference is None else None
        metrics = trainer.validate(evaluation.module, datamodule=evaluation.data, verbose=False)[0]
        own = {key.removeprefix("val/"): value for key, value in metrics.items()}
        row = _sized(Row(_called(name, form), own), trainer, evaluation, model, form)
        if sequences := evaluation.module.sequences:
            nats, positions = (torch.cat(side).cpu().numpy() for side in zip(*sequences, strict=True))
            row = replace(
                row, metric=_perplexity_of(nats, positions), examples=len(nats), pairing=positions.tobytes()
            )
        found.append(row)
    return found


def _perplexity_of(nats: NDArray, positions: NDArray) -> Metric:
    """Perplexity as a function of the sequences that count."""
    return lambda rows: float(np.exp(nats[rows].sum() / max(positions[rows].sum(), 1)))


def _judge_task(
    config: DictConfig, name: str, model: str, folder: Path, reference: str | None, forms: list[str]
) -> list[Row]:
    """Rows of a task model and of its wanted forms; what each predicts is written."""
    evaluation = build_task_evaluation(config, model, reference)
    trainer = _trainer(config, folder)
    only = len(models_of(config)) == 1
    found = []
    for form in _forms(evaluation, forms, folder, name):
        metrics = trainer.validate(evaluation.module, datamodule=evaluation.data, verbose=False)
        own = {key.replace("val/", "test/", 1): value for part in metrics for key, value in part.items()}
        called = _called("" if only else name, form).strip()
        row = _sized(Row(_called(name, form), own), trainer, evaluation, model, form)
        for part in evaluation.module.judges:
            ends = [end for end in (called and stem_of(called), part) if end]
            scored = _write_predictions(config, evaluation, part, folder / "_".join(["predictions", *ends]))
            if part == MAIN and scored is not None:
                metric, numbers = scored
                row = replace(row, metric=metric, examples=len(numbers), pairing=numbers.tobytes())
            if form is None and config.benchmark.part == "test" and _is_of_glue(evaluation):
                _write_submission(evaluation, part, folder / "_".join(["submission", *ends[: not only]]))
        found.append(row)
    return found


def _write_predictions(
    config: DictConfig, evaluation: TaskEvaluation, part: str, stem: Path
) -> tuple[Metric, NDArray] | None:
    """Write what is predicted of a set; its deciding metric by examples and their numbers, where there are labels."""
    judge, predicted = evaluation.module.judges[part], evaluation.module.predicted(part)
    path = judge.write(stem, *predicted[:2])
    if judge.labelled:
        return judge.metric(config.benchmark.monitor, *predicted)
    log.warning("%s has no labels; it is only predicted, in %s", config.benchmark.name, path)
    return None


def _is_of_glue(evaluation: TaskEvaluation) -> bool:
    """Whether GLUE's server takes predictions of the task: a label or a score of each row."""
    task = evaluation.module.task
    return task.name in FILES and task.kind != MULTI_LABEL


def _write_submission(evaluation: TaskEvaluation, part: str, folder: Path) -> None:
    """The file that GLUE's server takes of a test set."""
    task, (_, logits, _) = evaluation.module.task, evaluation.module.predicted(part)
    predictions: list[Any] = logits[:, 0].tolist()
    if task.labels:
        predictions = [task.labels[number] for number in logits.argmax(-1).tolist()]
    folder.mkdir(exist_ok=True)
    log.info("%s", write_submission(folder, task.name, predictions, part))


def _forms(
    evaluation: Evaluation | TaskEvaluation, forms: list[str], folder: Path, name: str
) -> Iterator[Deployed | None]:
    """The model itself (None), then each of its forms, which answers in its place."""
    yield None
    module = evaluation.module
    for form in deploy(forms, module.student, evaluation.tokenizer, folder, name):
        module.deployed = form.model
        yield form


def _called(name: str, form: Deployed | None) -> str:
    return name if form is None else f"{name} {form.form}"


def _trainer(config: DictConfig, folder: Path) -> Trainer:
    callbacks = [progress_bar()] if config.trainer.enable_progress_bar else []
    return build_trainer(config.trainer, folder, callbacks=callbacks, loggers=False)


def _add_differences(rows: list[Row], monitor: str) -> None:
    """How far each model's deciding metric is from the first's, with its interval, where both were judged by row."""
    first = rows[0]
    for row in rows[1:]:
        paired = (row.examples, row.pairing) == (first.examples, first.pairing)
        if first.metric is not None and row.metric is not None and paired:
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


def _sized(
    row: Row, trainer: Trainer, evaluation: Evaluation | TaskEvaluation, model: str, form: Deployed | None
) -> Row:
    """A row with parameters and size of its model, or of a form of it, and how that is timed."""
    student = evaluation.module.student
    own: dict[str, Any] = {} if form is None else form.figures
    timed = Timed(student, trainer.strategy.root_device) if form is None else Timed(form.model)
    metrics = {**row.metrics, **size_figures(model, student), **own}
    return replace(row, metrics=metrics, timed=timed, length=min(128, evaluation.length))


def _add_latencies(rows: list[Row]) -> None:
    """The latency of one sequence of every model, measured in turn."""
    timed = {row.name: row.timed for row in rows if row.timed is not None}
    figures = timed_figures(timed, batch=1, length=min(row.length for row in rows))
    for row in rows:
        row.metrics.update(figures[row.name])


def _costs_of(rows: list[Row]) -> tuple[list[str], list[list[Any]]]:
    """Columns of every table of models, and their cells by row."""
    columns = ["parameters", "MB", "latency ms", *([f"time of {rows[0].name}"] if len(rows) > 1 else [])]
    cells = []
    for row in rows:
        ratio = [f"{row.metrics['latency_ratio']:.2f}"] if len(rows) > 1 else []
        cells.append([row.metrics["parameters"], row.metrics["size_mb"], latency_cell(row.metrics), *ratio])
    return columns, cells


def _monitored(config: DictConfig) -> str:
    """The metric that decides, as a row has it."""
    prefixed = is_task(config.benchmark) or config.benchmark.task == RATIONALES
    return f"{'test/' if prefixed else ''}{config.benchmark.monitor}"


def _row_names(models: list[str]) -> list[str]:
    """The shortest ends of the paths that tell the models apart."""
    parts = [Path(model).parts for model in models]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(map(stem_of, names))) == len(names):
            return names
    return [f"{model} #{i + 1}" for i, model in enumerate(models)]


def _comparison(config: DictConfig, rows: list[Any]) -> Table:
    monitor, mode = config.benchmark.monitor, config.benchmark.mode
    reference = rows[0].metrics[monitor]
    named, costs = _costs_of(rows)
    columns = ["model", *named, monitor, f"share of {rows[0].name}"]
    cells: list[list[Any]] = []
    for row, (parameters, size, *latency) in zip(rows, costs, strict=True):
        value = row.metrics[monitor]
        share = reference / value if mode == "min" else value / reference
        cells.append([row.name, f"{parameters:,}", f"{size:.1f}", *latency, f"{value:.2f}", f"{share:.1%}"])
    note = f"{monitor} on {config.data.name}; {LATENCY_NOTE} Share: " + (
        f"the reference's {monitor} over the model's."
        if mode == "min"
        else f"the model's {monitor} over the reference's."
    )
    note += _add_difference_column(columns, cells, rows, monitor, "sequences")
    return Table(f"benchmark={config.benchmark.name}", columns, cells, note)


def _agreement_table(config: DictConfig, rows: list[Row], reference: str) -> Table:
    named, costs = _costs_of(rows)
    columns = ["model", *named, "agreement", "KL nats", "perplexity"]
    cells = [
        [row.name, *own, *(row.metrics.get(key) for key in (*AGREEMENT, "perplexity"))]
        for row, own in zip(rows, costs, strict=True)
    ]
    exchange = config.benchmark.interchange
    note = (
        f"Counterfactual predictions against those of {reference} on {config.data.name}, mean over the mappings "
        f"({exchange.mapping}); {exchange.proportion:.0%} {exchange.positions} positions swapped within pairs."
    )
    return Table(f"benchmark={config.benchmark.name}", columns, cells, note)


def _agreement_map(config: DictConfig, row: Row) -> HeatMap | None:
    """Agreement by the blocks of the teacher (down) and of the student (across); None where nothing was swapped."""
    prefix = f"{'test/' if is_task(config.benchmark) else ''}{AGREEMENT[0]}_"
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


def _task_comparison(config: DictConfig, rows: list[Row]) -> Table:
    """Every metric of every model; the share is of the monitored one, where there are labels."""
    monitor = _monitored(config)
    metrics, _ = _metric_names(config, rows)
    named, costs = _costs_of(rows)
    columns = ["model", *named, *(name.removeprefix("test/") for name in metrics)]
    cells = [
        [row.name, *own, *(row.metrics.get(key) for key in metrics)]
        for row, own in zip(rows, costs, strict=True)
    ]
    note = f"{config.benchmark.name}; {LATENCY_NOTE}"
    reference = rows[0].metrics.get(monitor)
    if reference:
        columns.append(f"share of {rows[0].name}")
        for row, cell in zip(rows, cells, strict=True):
            value = row.metrics[monitor]
            share = value / reference if config.benchmark.mode == "max" else reference / value
            cell.append(f"{share:.1%}")
        note += f" Share: of the reference's {config.benchmark.monitor}."
        note += _add_difference_column(columns, cells, rows, monitor, "examples")
    elif not metrics:
        note += " No labels, so no metrics: predictions.tsv holds what is predicted."
    return Table(f"benchmark={config.benchmark.name}", columns, cells, note)


def _add_difference_column(
    columns: list[str], cells: list[list[Any]], rows: list[Row], monitor: str, examples: str
) -> str:
    """Put the differences into a table, where there are any; what its note says of them."""
    if not any(f"{monitor}_{DIFFERENCE[0]}" in row.metrics for row in rows):
        return ""
    columns.append("difference")
    for row, cell in zip(rows, cells, strict=True):
        found = [row.metrics[key] for name in DIFFERENCE if (key := f"{monitor}_{name}") in row.metrics]
        cell.append(_signed(*found) if found else "")
    return f" Difference: to the reference, with the {LEVEL:.0%} interval of a paired bootstrap over the {examples}."


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
    digits = 4 if max(abs(low), abs(high)) < 10 else 2
    return f"{value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
