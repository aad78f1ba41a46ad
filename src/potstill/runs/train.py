"""A training run: build, fit, judge the student, and leave the results in the output folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from omegaconf import DictConfig
from transformers import PreTrainedModel

from potstill.build import (
    AdaptedTraining,
    AnyTraining,
    RationaleTraining,
    SharedTraining,
    TaskTraining,
    build_any_training,
    build_callbacks,
    build_loggers,
    build_optimizer,
    build_trainer,
    configured_callbacks,
    monitored,
)
from potstill.build.adapted import student_card
from potstill.config import teachers_of
from potstill.data.rationales.splits import STEP_BY_STEP
from potstill.data.tasks.labels import CLASSIFICATION, MULTI_LABEL, TOKENS
from potstill.data.tasks.splits import MAIN, is_task, text_name
from potstill.errors import CheckpointError, ConfigError, PotstillError, StoppedError
from potstill.evaluation.classes import class_table, entity_table
from potstill.evaluation.constant import compared_with_constant
from potstill.evaluation.efficiency import count_parameters
from potstill.models.backbone import task_head
from potstill.models.folders import fresh_folder
from potstill.models.head_labels import SUFFIXES
from potstill.models.load import check_savable, save_module, save_student
from potstill.models.multitask import SharedStudent
from potstill.reporting.artifacts import log_student
from potstill.reporting.loggers import Resumed, finish, log_summary, log_table
from potstill.reporting.model_card import code_span, figure_list
from potstill.reporting.report import Collapsible, Curves, Section, Table, read_metrics, write_report
from potstill.runs.folder import begin
from potstill.runs.machine_errors import told
from potstill.runs.resuming import check_resumed, checkpoint_in, finish_epoch
from potstill.runs.step_by_step import samples_of, test_metrics
from potstill.runs.summary import config_text, provenance, write_config, write_summary
from potstill.runtime.checksums import is_sealed
from potstill.runtime.kernels import use_kernels
from potstill.runtime.process import is_first_rank, quiet
from potstill.training.callbacks import BestStudent, newest_checkpoint
from potstill.training.monitored_callbacks import is_missing_metric
from potstill.training.sharding import gather
from potstill.validation.adapted import is_adapted
from potstill.validation.resuming import identity_of

log = logging.getLogger(__name__)


def train(config: DictConfig, folder: Path, defaults: Mapping[str, Any] | None = None) -> float | None:
    """Train as configured; writes summary.json, metrics.csv, student/, checkpoints/ and report.html.

    A student of several tasks is a folder a task, student/<task>/, each whole by itself.

    Args:
        config: of the run, its defaults settled.
        folder: of the run.
        defaults: values that were chosen for the objective and student; logged once the run begins.

    Returns:
        The validation perplexity, or the monitored metric of a benchmark or of several tasks, where there is one, else
        None: what a sweep is told of the run.
    """
    quiet()
    use_kernels()
    started = time.perf_counter()
    # Devices that this machine lacks, and settings that a class does not take, are found before the corpus is read.
    planned = build_trainer(config.trainer, folder, callbacks=[], loggers=False)
    build_optimizer(config.optimizer, torch.nn.Linear(1, 1))
    configured_callbacks(config)
    identity = identity_of(config, planned.num_devices * planned.num_nodes)
    if config.resume == "auto" and (found := newest_checkpoint(folder)):
        config.ckpt_path = str(found)
        log.info("resumed from %s", found)
    resumed = _resumed(config, folder, identity) if config.ckpt_path is not None else None
    training = build_any_training(config)
    _check_savable(training)
    training.module.nonfinite = config.trainer.nonfinite
    monitor, mode = monitored(config)
    best = BestStudent(monitor, mode) if mode is not None else None
    bar = config.trainer.enable_progress_bar
    callbacks, throughput = build_callbacks(config, folder, bar, monitor, identity)
    if best is not None:
        callbacks.insert(0, best)
    begin(folder, anew=resumed is None)
    if defaults and is_first_rank():
        log.info("defaults: %s", ", ".join(f"{key}={value}" for key, value in defaults.items()))
    loggers = build_loggers(config, folder, resumed)
    code = 1
    try:
        validate = bool(training.data.evaluation)
        trainer = build_trainer(
            config.trainer, folder, callbacks=callbacks, loggers=loggers, validate=validate
        )
        with told(config):
            if config.trainer.max_steps != 0:
                _fit(trainer, training, config.ckpt_path)
            metrics = _judged(trainer, training, best) if validate else {}
            if isinstance(training, RationaleTraining):
                metrics |= test_metrics(trainer, training)
            compared = _compared(training, metrics) if validate else {}  # by all ranks
            tables = _tables(training, metrics) if validate else {}  # by all ranks
            gather(training.module.student)  # by all ranks
        summary = {
            **training.module.last_step,
            **throughput.summary(),
            **metrics,
            **compared,
            "train/steps": trainer.global_step,
            **({"train/best_step": best.step} if best is not None else {}),
            **{f"data/{name}": count for name, count in training.figures.items()},
            "student/parameters": count_parameters(training.module.student)["total"],
            **({"teacher/parameters": training.teacher_parameters} if training.teacher_parameters else {}),
            "seconds": time.perf_counter() - started,
            **provenance(config),
        }
        if trainer.is_global_zero:
            _save(config, training, summary, folder / "student")
            write_config(folder, config)
            log_summary(loggers, summary)
            for name, table in tables.items():
                log_table(loggers, name, table)
            log_student(loggers, folder / "student", teachers_of(config), summary, config.logger.artifact_mb)
            for logger in loggers:
                logger.save()
            _report(config, folder, summary, list(tables.values()))
            write_summary(folder, summary)
            log.info("%s", folder / "report.html")
        code = 0
    except StoppedError as stopped:
        code = stopped.code
        raise
    except PotstillError:
        code = 2
        raise
    finally:
        finish(loggers, code=code)
    return summary.get(monitor)


def _check_savable(training: AnyTraining) -> None:
    student = training.module.student
    models = [student.model(task) for task in student] if isinstance(student, SharedStudent) else [student]
    for model in models:
        if isinstance(model, PreTrainedModel):
            check_savable(model)


def _save(
    config: DictConfig,
    training: AnyTraining,
    summary: dict[str, Any],
    folder: Path,
) -> None:
    student = training.module.student
    if isinstance(training, AdaptedTraining):
        save_module(student, folder, student_card(config, summary))
        return
    if isinstance(student, SharedStudent):
        with fresh_folder(folder) as fresh:
            for task in student:
                model = student.apart(task)
                card = _card(config, summary, _opener(model), own=model.config.model_type == "bigru")
                save_student(model, training.vocabulary.path, fresh / task, card)
        return
    assert isinstance(student, PreTrainedModel)
    card = _card(config, summary, _opener(student), own=student.config.model_type == "bigru")
    save_student(student, training.vocabulary.path, folder, card)


def _fit(trainer: Trainer, training: AnyTraining, ckpt_path: str | None) -> None:
    path = str(Path(ckpt_path).expanduser()) if ckpt_path else None
    try:
        trainer.fit(training.module, datamodule=training.data, ckpt_path=path, weights_only=True)
    except RuntimeError as fault:
        if is_missing_metric(fault):
            raise ConfigError(f"callbacks: {fault}") from fault
        raise
    finish_epoch(trainer)


def _resumed(config: DictConfig, folder: Path, identity: dict[str, Any]) -> Resumed | None:
    """Where the run of this folder is resumed; None where it is resumed from the checkpoint of another folder.

    Raises:
        CheckpointError: it cannot be resumed from this checkpoint.
    """
    saved = _readable(str(Path(config.ckpt_path).expanduser()))
    check_resumed(saved, identity, config, partial(build_optimizer, config.optimizer))
    return Resumed(int(saved["global_step"])) if checkpoint_in(config, folder) else None


def _readable(path: str) -> dict[str, Any]:
    """What a checkpoint holds, its tensors left on the disk.

    Raises:
        CheckpointError: it is no checkpoint of this program's.
    """
    try:
        if not is_sealed(Path(path)):
            raise CheckpointError(
                f"ckpt_path={path}: damaged, or no checkpoint of this version; its checksum is wrong or missing"
            )
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except Exception as fault:  # whatever is in the file, torch's own words are no help
        raise CheckpointError(f"ckpt_path={path}: no readable checkpoint ({type(fault).__name__})") from fault
    if "objective" not in saved or "state_dict" not in saved:
        raise CheckpointError(
            f"ckpt_path={path}: no checkpoint of this program; name a checkpoints/last.ckpt"
        )
    return saved


def _judged(trainer: Trainer, training: AnyTraining, best: BestStudent | None) -> dict[str, float]:
    """What validation says of the student that is kept: the best, where it is known; none is judged twice."""
    metrics = _validated(trainer, training)
    if best is not None and best.step not in (None, trainer.global_step):
        best.restore(training.module)
        training.module.validated_at = None
        metrics = _validated(trainer, training)
    return metrics


def _validated(trainer: Trainer, training: AnyTraining) -> dict[str, float]:
    """The figures of the student as it is now; logged once, also where the process that logged them was killed."""
    logged = training.module.validated_at == trainer.global_step
    if not logged or not any(name.startswith("val/") for name in trainer.callback_metrics):
        loggers, trainer.loggers = trainer.loggers, [] if logged else trainer.loggers
        trainer.validate(training.module, datamodule=training.data, verbose=False)
        trainer.loggers = loggers
    found = trainer.callback_metrics.items()
    return {name: float(value) for name, value in found if name.startswith("val/")}


def _compared(training: AnyTraining, metrics: Mapping[str, float]) -> dict[str, float | bool]:
    """What the same prediction for every example of a task would score, and whether the student is better."""
    if isinstance(training, TaskTraining):
        module = training.module
        predicted = module.predicted(MAIN)
        return compared_with_constant(module.task, module.judges[MAIN], predicted, metrics)
    if isinstance(training, SharedTraining):
        found: dict[str, float | bool] = {}
        for name, lane in training.module.lanes.items():
            predicted = training.module.predicted(name, MAIN)
            found |= compared_with_constant(lane.task, lane.judges[MAIN], predicted, metrics, f"_{name}")
        return found
    return {}


def _tables(training: AnyTraining, metrics: Mapping[str, float]) -> dict[str, Table]:
    """What a validated run shows beside its curves: what a seq2seq student wrote, how each class of a task does."""
    if isinstance(training, RationaleTraining):
        return {"samples": samples_of(training.module)}
    if isinstance(training, TaskTraining) and training.module.judges[MAIN].labelled:
        task = training.module.task
        if task.kind in (CLASSIFICATION, MULTI_LABEL):
            _, logits, labels = training.module.predicted(MAIN)
            return {"classes": class_table(task.labels, logits, labels)}
        if task.kind == TOKENS and (table := entity_table(metrics)) is not None:
            return {"classes": table}
    return {}


def _opener(student: PreTrainedModel) -> str:
    """The class of transformers that opens a student."""
    if student.config.is_encoder_decoder:
        return "AutoModelForSeq2SeqLM"
    head = task_head(student)
    return f"AutoModel{SUFFIXES[head]}" if head else "AutoModel"


def _card(config: DictConfig, summary: dict[str, Any], opener: str, own: bool = False) -> str:
    teacher = ", ".join(map(code_span, teachers_of(config))) or "none"
    more = "" if opener != "AutoModel" else " (or the class for its head)"
    return (
        "---\nlibrary_name: transformers\ntags: [distillation, potstill]\n---\n\n"
        f"# Student\n\nTrained with {code_span(f'objective={config.objective.name}')} on "
        f"{code_span(text_name(config))}; teacher: {teacher}; "
        f"seed {config.seed}.\n\n{figure_list(summary)}\n\n"
        f"Open it with `transformers.{opener}.from_pretrained`{more}"
        # transformers does not know the class of a recurrent student.
        + (", after `import potstill.models.bigru`: transformers alone cannot.\n" if own else ".\n")
    )


def _report(config: DictConfig, folder: Path, summary: dict[str, Any], tables: list[Table]) -> None:
    blocks: list[Section] = []
    metrics = read_metrics(folder / "metrics.csv")
    losses = {name: series for name, series in metrics.items() if name.startswith("train/loss")}
    judged = (
        bool(config.tasks)
        or is_task(config.benchmark)
        or config.objective.name == STEP_BY_STEP
        or is_adapted(config)
    )
    validated = {
        name: series
        for name, series in metrics.items()
        if (name.startswith("val/") and "loss" not in name if judged else name.endswith("perplexity"))
    }
    if validated and judged:
        blocks.append(Curves("Validation", validated, "step", "metric"))
    elif validated:
        blocks.append(Curves("Validation perplexity", validated, "step", "perplexity", True))
    if losses:
        blocks.append(Curves("Training loss", losses, "step", "loss", True))
    blocks += tables
    blocks.append(Table("Final figures", ["figure", "value"], [[*item] for item in summary.items()]))
    blocks.append(Collapsible("Configuration", config_text(config)))
    write_report(folder, title=f"objective={config.objective.name}, {text_name(config)}", sections=blocks)
