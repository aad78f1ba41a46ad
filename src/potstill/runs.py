"""A whole run: build, train or evaluate, and leave its results in the output folder."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import re
import subprocess
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel

import potstill
from potstill.build import (
    Evaluation,
    TaskEvaluation,
    TaskTraining,
    Training,
    build_callbacks,
    build_evaluation,
    build_loggers,
    build_task_evaluation,
    build_task_training,
    build_trainer,
    build_training,
)
from potstill.callbacks import BestStudent, progress_bar
from potstill.data.tasks.composition import is_task, text_name
from potstill.errors import CheckpointError
from potstill.evaluation.efficiency import count_parameters, latency_ms, size_mb
from potstill.evaluation.predictions import write_predictions
from potstill.evaluation.report import (
    Collapsible,
    Curves,
    HeatMap,
    Section,
    Table,
    print_table,
    read_metrics,
    write_report,
)
from potstill.interchange.agreement import AGREEMENT
from potstill.models.load import save_student
from potstill.models.specs import local_folder
from potstill.tracking import finish, log_summary
from potstill.validation import models_of

log = logging.getLogger(__name__)


def train(config: DictConfig, folder: Path) -> float | None:
    """Train as configured; writes summary.json, metrics.csv, student/, checkpoints/ and report.html.

    Returns:
        The validation perplexity, or a benchmark's monitored metric, where there is one, else None: what a sweep is
        told of the run.
    """
    _quiet()
    started = time.perf_counter()
    # Devices that this machine lacks should be found before the corpus is read.
    build_trainer(config.trainer, folder, callbacks=[], loggers=False)
    is_task_run = is_task(config.benchmark)
    training = build_task_training(config) if is_task_run else build_training(config)
    bar = config.trainer.enable_progress_bar
    callbacks, throughput = build_callbacks(config, folder, bar)
    monitor = f"val/{config.benchmark.monitor}" if is_task_run else "val/perplexity"
    best = BestStudent(monitor, config.benchmark.mode) if is_task_run else None
    callbacks += [best] if best is not None else []
    loggers = build_loggers(config, folder)
    failed = True
    try:
        validate = bool(training.data.evaluation)
        trainer = build_trainer(
            config.trainer, folder, callbacks=callbacks, loggers=loggers, validate=validate
        )
        if config.trainer.max_steps != 0:
            _fit(trainer, training, config.ckpt_path)
        if best is not None:
            _take_best(trainer, training, best)
        metrics = _final_metrics(trainer, training) if validate else {}
        summary = {
            **training.module.last_step,
            **throughput.summary(),
            **metrics,
            "train/steps": trainer.global_step,
            **({"train/best_step": best.step} if best is not None else {}),
            **{f"data/{name}": count for name, count in training.figures.items()},
            "student/parameters": count_parameters(training.module.student)["total"],
            **({"teacher/parameters": training.teacher_parameters} if training.teacher_parameters else {}),
            "seconds": time.perf_counter() - started,
            **_provenance(config),
        }
        if trainer.is_global_zero:
            save_student(
                training.module.student, training.vocabulary.path, folder / "student", _card(config, summary)
            )
            _write_json(folder / "summary.json", summary)
            OmegaConf.save(config, folder / "config.yaml", resolve=True)
            log_summary(loggers, summary)
            for logger in loggers:
                logger.save()
            _ensure_metrics(folder / "metrics.csv")
            _train_report(config, folder, summary)
            log.info("%s", folder / "report.html")
        failed = False
    finally:
        finish(loggers, failed=failed)
    return summary.get(monitor)


def evaluate(config: DictConfig, folder: Path) -> float | None:
    """Judge the models as configured; writes summary.json and report.html, prints the table.

    Returns:
        The benchmark's monitored metric of the first model.
    """
    _quiet()
    models = models_of(config)
    names = list(config.names) if config.names is not None else _row_names(models)
    reference = models[0] if config.benchmark.interchange.mapping is not None else None
    judge = _judge_task if is_task(config.benchmark) else _judge
    rows = [
        judge(config, name, model, folder, reference)
        for name, model in list(zip(names, models, strict=True))[reference is not None :]
    ]
    monitor = _monitored(config)
    summary: dict[str, Any] = {}
    for row in rows:
        prefix = "" if len(rows) == 1 else f"{row.name}/"
        summary |= {f"{prefix}{name}": value for name, value in row.metrics.items()}
    summary |= _provenance(config)
    _write_json(folder / "summary.json", summary)
    OmegaConf.save(config, folder / "config.yaml", resolve=True)
    pictures: list[Section] = []
    if reference is not None:
        pictures = [_agreement_map(config, row) for row in rows]
    if is_task(config.benchmark):
        table = _task_comparison(config, rows)
    elif reference is not None:
        table = _agreement_table(config, rows, reference)
    else:
        table = _comparison(config, rows)
    blocks: list[Section] = [
        table,
        *pictures,
        Collapsible("Configuration", OmegaConf.to_yaml(config, resolve=True)),
    ]
    write_report(folder, title=f"benchmark={config.benchmark.name}", sections=blocks)
    print_table(table)
    log.info("%s", folder / "report.html")
    return rows[0].metrics.get(monitor)


@dataclass(frozen=True)
class Row:
    """A model and its figures."""

    name: str
    metrics: dict[str, Any]


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
    for part, rows in evaluation.rows.items():
        ends = ([] if only else [re.sub(r"[^\w.-]", "_", name)]) + ([part] if part else [])
        path = folder / f"{'_'.join(['predictions', *ends])}.tsv"
        numbers, logits, _ = evaluation.module.predicted(part)
        write_predictions(path, evaluation.module.task, rows, numbers, logits)
        if rows.labels is None:
            log.warning(
                "%s: has no labels; %s is only predicted, in %s", rows.name, config.benchmark.name, path
            )
    return Row(name, own | _efficiency(trainer, evaluation, model))


def _efficiency(trainer: Trainer, evaluation: Evaluation | TaskEvaluation, model: str) -> dict[str, Any]:
    """Parameters, size and latency of a model."""
    student = evaluation.module.student
    evaluation.module.to(trainer.strategy.root_device)
    latency = latency_ms(student, batch=1, length=min(128, evaluation.length))
    counts = count_parameters(student)
    return {
        "parameters": counts["total"],
        "parameters_without_embeddings": counts["without_embeddings"],
        "size_mb": _size_mb(model, student),
        "latency_ms": latency["p50"],
    }


def _monitored(config: DictConfig) -> str:
    """The metric that decides, as a row has it."""
    return f"{'test/' if is_task(config.benchmark) else ''}{config.benchmark.monitor}"


def _size_mb(model: str, loaded: PreTrainedModel) -> float:
    """On disk where the model is a folder, else as loaded."""
    folder = local_folder("model", model)
    return size_mb(folder) if folder else sum(p.nbytes for p in loaded.parameters()) / 1e6


def _row_names(models: list[str]) -> list[str]:
    """The shortest ends of the paths that tell the models apart."""
    parts = [Path(model).parts for model in models]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{model} #{i + 1}" for i, model in enumerate(models)]


def _fit(trainer: Trainer, training: Training | TaskTraining, ckpt_path: str | None) -> None:
    path = str(Path(ckpt_path).expanduser()) if ckpt_path else None
    if path:
        _check_readable(path)
    trainer.fit(training.module, datamodule=training.data, ckpt_path=path, weights_only=True)


def _check_readable(path: str) -> None:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as fault:  # whatever is in the file, torch's own words are no help
        raise CheckpointError(f"ckpt_path={path}: no readable checkpoint ({type(fault).__name__})") from fault
    if "objective" not in saved or "state_dict" not in saved:
        raise CheckpointError(
            f"ckpt_path={path}: no checkpoint of this program; name a checkpoints/last.ckpt"
        )


def _take_best(trainer: Trainer, training: Training | TaskTraining, best: BestStudent) -> None:
    """Judge the student as it ended, where that was not done, and give it back its best weights."""
    if not best.is_validated(trainer):
        trainer.validate(training.module, datamodule=training.data, verbose=False)
    best.restore(training.module)


def _final_metrics(trainer: Trainer, training: Training | TaskTraining) -> dict[str, float]:
    metrics = trainer.validate(training.module, datamodule=training.data, verbose=False)
    return dict(metrics[0]) if metrics else {}


def _quiet() -> None:
    # What Lightning and torch advise here is either done elsewhere or does not apply.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*your dataloader is not resumable.*",  # its position follows from the number of steps
        ".*sync_dist=True.*",  # the module's means are over all ranks already
        ".*lr_scheduler.step.*",
        ".*Experiment logs directory .* exists and is not empty.*",  # Hydra's record is in it
        ".*smaller than the logging interval.*",
        r".*module\(s\) in eval mode at the start of training.*",  # the teacher's
    ):
        warnings.filterwarnings("ignore", message)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _provenance(config: DictConfig) -> dict[str, Any]:
    packages = ("torch", "lightning", "transformers", "tokenizers")
    versions = {
        "potstill": potstill.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
    }
    return {
        "seed": config.seed,
        "git_commit": _git_commit(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _git_commit() -> str | None:
    """The commit that this code is checked out at, `-dirty` where it was changed; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return f"{commit}-dirty" if git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fresh.write_text(json.dumps(content, indent=2) + "\n")
    fresh.replace(path)


def _ensure_metrics(path: Path) -> None:
    """Its header alone, where a run ended before it logged anything."""
    if not path.exists():
        path.write_text("epoch,step\n")


def _card(config: DictConfig, summary: dict[str, Any]) -> str:
    teacher = config.teacher.model or "none"
    figures = "\n".join(
        f"- {name}: {value:.4g}" for name, value in summary.items() if isinstance(value, float)
    )
    judged = is_task(config.benchmark)
    opener = "AutoModelForSequenceClassification" if judged else "AutoModel"
    more = "" if judged else " (or the class for its head)"
    return (
        "---\nlibrary_name: transformers\ntags: [distillation, potstill]\n---\n\n"
        f"# Student\n\nTrained with `objective={config.objective.name}` on `{text_name(config)}`; teacher: {teacher}; "
        f"seed {config.seed}.\n\n{figures}\n\n"
        f"Open it with `transformers.{opener}.from_pretrained`{more}.\n"
    )


def _train_report(config: DictConfig, folder: Path, summary: dict[str, Any]) -> None:
    figures = [[name, value] for name, value in summary.items()]
    blocks: list[Section] = [Table("Final figures", ["figure", "value"], figures, "")]
    metrics = read_metrics(folder / "metrics.csv")
    losses = {name: series for name, series in metrics.items() if name.startswith("train/loss")}
    judged = is_task(config.benchmark)
    validated = {
        name: series
        for name, series in metrics.items()
        if (name.startswith("val/") and "loss" not in name if judged else name.endswith("perplexity"))
    }
    if losses:
        blocks.append(Curves("Training loss", losses, "step", "loss", True))
    if validated and judged:
        blocks.append(Curves("Validation", validated, "step", "metric"))
    elif validated:
        blocks.append(Curves("Validation perplexity", validated, "step", "perplexity", True))
    blocks.append(Collapsible("Configuration", OmegaConf.to_yaml(config, resolve=True)))
    write_report(folder, title=f"objective={config.objective.name}, {text_name(config)}", sections=blocks)


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
    metrics = [  # the table has the means of agreement, the map each mapping's
        name
        for name in rows[0].metrics
        if name.startswith("test/")
        and not name.removeprefix("test/").startswith(tuple(f"{a}_" for a in AGREEMENT))
    ]
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
    elif not metrics:
        note += " No labels, so no metrics: predictions.tsv holds what is predicted."
    return Table(f"benchmark={config.benchmark.name}", columns, cells, note)
