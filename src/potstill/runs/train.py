"""A training run: build, fit, evaluate the student, and write the results into the run folder."""

from __future__ import annotations

import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from potstill.config import TrainConfig, teachers_of
from potstill.errors import CheckpointError, ConfigError, PotstillError, StoppedError
from potstill.evaluation.efficiency import count_parameters
from potstill.methods import Method, Training, method_of
from potstill.methods.common.models import build_optimizer
from potstill.reporting.artifacts import log_student
from potstill.reporting.loggers import Resumed, finish, log_summary, log_table
from potstill.reporting.report import Collapsible, Curves, Section, Table, read_metrics, write_report
from potstill.runs.folder import begin
from potstill.runs.machine_errors import as_user_errors
from potstill.runs.summary import config_text, provenance, write_config, write_summary
from potstill.runtime.checksums import has_valid_checksum
from potstill.runtime.kernels import use_kernels
from potstill.runtime.process import is_first_rank, quiet
from potstill.training.callbacks import BestStudent, newest_checkpoint
from potstill.training.monitoring import is_missing_metric
from potstill.training.resuming import check_resumed, checkpoint_in, finish_epoch
from potstill.training.sharding import gather
from potstill.training.trainer import build_callbacks, build_loggers, build_trainer, configured_callbacks
from potstill.validation.resuming import identity_of

log = logging.getLogger(__name__)


def train(config: TrainConfig, folder: Path) -> float | None:
    """Train as configured; writes summary.json, metrics.csv, student/, checkpoints/ and report.html.

    A student of several tasks has one folder per task, student/<task>/, each complete by itself.

    Args:
        config: of the run.
        folder: of the run.

    Returns:
        The validation perplexity, or the monitored metric of a benchmark or of several tasks, where there is one, else
        None; the value that a sweep optimizes.
    """
    quiet()
    use_kernels()
    started = time.perf_counter()
    # Devices that this machine lacks, and settings that a class does not take, are found before the corpus is read.
    planned = build_trainer(config.trainer, folder, callbacks=[], loggers=False)
    blocks = torch.nn.ModuleList([torch.nn.Linear(1, 1)])
    build_optimizer(config.optimizer, torch.nn.ModuleDict({"blocks": blocks}))
    configured_callbacks(config)
    identity = identity_of(config, planned.num_devices * planned.num_nodes)
    if config.resume == "auto" and (found := newest_checkpoint(folder)):
        config.ckpt_path = str(found)
        log.info("resumed from %s", found)
    resumed = _resumed(config, folder, identity) if config.ckpt_path is not None else None
    method = method_of(config)
    training = method.build(config)
    method.check_savable(training)
    training.module.nonfinite = config.trainer.nonfinite
    monitor, mode = method.monitored(config)
    best = BestStudent(monitor, mode) if mode is not None else None
    bar = config.trainer.enable_progress_bar
    write = partial(method.save, config, training)
    callbacks, throughput = build_callbacks(config, folder, bar, monitor, identity, method.unit, write)
    if best is not None:
        callbacks.insert(0, best)
    begin(folder, anew=resumed is None)
    if config.defaults and is_first_rank():
        log.info("defaults: %s", ", ".join(f"{key}={value}" for key, value in config.defaults.items()))
    loggers = build_loggers(config, folder, method.data_name(config), resumed)
    code = 1
    try:
        validate = bool(training.data.evaluation)
        trainer = build_trainer(config.trainer, folder, callbacks=callbacks, loggers=loggers, validate=validate)
        with as_user_errors(config):
            if config.trainer.max_steps != 0:
                _fit(trainer, training, config.ckpt_path)
            metrics = _final_metrics(trainer, training, best) if validate else {}
            further = method.test(trainer, training, metrics) if validate else {}  # on all ranks
            tables = method.tables(training, metrics) if validate else {}  # on all ranks
            gather(training.module.student)  # by all ranks
        summary = {
            **training.module.last_step,
            **throughput.summary(),
            **metrics,
            **further,
            "train/steps": trainer.global_step,
            **({"train/best_step": best.step} if best is not None else {}),
            **{f"data/{name}": count for name, count in training.figures.items()},
            "student/parameters": count_parameters(training.module.student)["total"],
            **({"teacher/parameters": training.teacher_parameters} if training.teacher_parameters else {}),
            "seconds": time.perf_counter() - started,
            **provenance(config),
        }
        if trainer.is_global_zero:
            method.save(config, training, summary, folder / "student")
            write_config(folder, config)
            log_summary(loggers, summary)
            for name, table in tables.items():
                log_table(loggers, name, table)
            log_student(loggers, folder / "student", teachers_of(config), summary, config.logger.artifact_mb)
            for logger in loggers:
                logger.save()
            _report(config, method, folder, summary, list(tables.values()))
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


def _fit(trainer: Trainer, training: Training, ckpt_path: str | None) -> None:
    path = str(Path(ckpt_path).expanduser()) if ckpt_path else None
    try:
        trainer.fit(training.module, datamodule=training.data, ckpt_path=path, weights_only=True)
    except RuntimeError as error:
        if is_missing_metric(error):
            raise ConfigError(f"callbacks: {error}") from error
        raise
    finish_epoch(trainer)


def _resumed(config: TrainConfig, folder: Path, identity: dict[str, Any]) -> Resumed | None:
    """Where the run of this folder is resumed; None where it is resumed from the checkpoint of another folder.

    Raises:
        CheckpointError: it cannot be resumed from this checkpoint.
    """
    saved = _readable(str(Path(str(config.ckpt_path)).expanduser()))
    check_resumed(saved, identity, config, partial(build_optimizer, config.optimizer))
    return Resumed(int(saved["global_step"])) if checkpoint_in(config, folder) else None


def _readable(path: str) -> dict[str, Any]:
    """The content of a checkpoint, with memory-mapped tensors.

    Raises:
        CheckpointError: not a checkpoint of this package.
    """
    try:
        if not has_valid_checksum(Path(path)):
            raise CheckpointError(
                f"ckpt_path={path}: damaged, or no checkpoint of this version; its checksum is wrong or missing"
            )
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except Exception as error:  # whatever is in the file, torch's own words are no help
        raise CheckpointError(f"ckpt_path={path}: no readable checkpoint ({type(error).__name__})") from error
    if "objective" not in saved or "state_dict" not in saved:
        raise CheckpointError(f"ckpt_path={path}: no checkpoint of this program; name a checkpoints/last.ckpt")
    return saved


def _final_metrics(trainer: Trainer, training: Training, best: BestStudent | None) -> dict[str, float]:
    """Validation metrics of the student that is saved, the best one if it is known; no student is validated twice."""
    metrics = _validated(trainer, training)
    if best is not None and best.step not in (None, trainer.global_step):
        best.restore(training.module)
        training.module.validated_at = None
        metrics = _validated(trainer, training)
    return metrics


def _validated(trainer: Trainer, training: Training) -> dict[str, float]:
    """The figures of the student as it is now; logged once, also where the process that logged them was killed."""
    logged = training.module.validated_at == trainer.global_step
    if not logged or not any(name.startswith("val/") for name in trainer.callback_metrics):
        loggers, trainer.loggers = trainer.loggers, [] if logged else trainer.loggers
        trainer.validate(training.module, datamodule=training.data, verbose=False)
        trainer.loggers = loggers
    found = trainer.callback_metrics.items()
    return {name: float(value) for name, value in found if name.startswith("val/")}


def _report(config: TrainConfig, method: Method, folder: Path, summary: dict[str, Any], tables: list[Table]) -> None:
    metrics = read_metrics(folder / "metrics.csv")
    losses = {name: series for name, series in metrics.items() if name.startswith("train/loss")}
    sections: list[Section] = [*method.curves(metrics)]
    if losses:
        sections.append(Curves("Training loss", losses, "step", "loss", True))
    sections += tables
    sections.append(Table("Final figures", ["figure", "value"], [[*item] for item in summary.items()]))
    sections.append(Collapsible("Configuration", config_text(config)))
    title = f"objective={config.objective.name}, {method.data_name(config)}"
    write_report(folder, title=title, sections=sections)
