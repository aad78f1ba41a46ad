"""Faults of several tasks that one student learns: of each as of a single one, and of them together."""

from __future__ import annotations

from dataclasses import replace

from omegaconf import DictConfig

from potstill.config import BenchmarkConfig
from potstill.config.defaults import TAUGHT_TASKS
from potstill.data.tasks.splits import kind_of
from potstill.errors import PotstillError
from potstill.methods.multitask.tasks import monitored, task_configs
from potstill.models.specs import ModelSpec, default_layers, read_spec
from potstill.validation.benchmarks import benchmark_faults
from potstill.validation.launch import DEEPSPEED
from potstill.validation.models import model_faults
from potstill.validation.objectives import objective_faults
from potstill.validation.ranges import range_faults


def shared_task_faults(config: DictConfig, *, models: bool = True) -> list[str]:
    """Of `tasks` and `mixing`; what is wrong with one task alone begins with its name.

    Args:
        config: with `tasks`.
        models: whether its models are there yet.
    """
    faults = _together(config)
    try:
        tasks = task_configs(config)
        monitored(config)
    except PotstillError as fault:
        faults.append(str(fault))
    if faults:
        return faults
    made = _maker(tasks) if models else None
    found = {
        name: [
            *range_faults(own.benchmark, BenchmarkConfig, "options."),
            *objective_faults(own.objective, kind_of(own.benchmark)),
            *benchmark_faults(own),
            *(model_faults(own, made=made if number else None) if models else []),
        ]
        for number, (name, own) in enumerate(tasks.items())
    }
    of_all = set.intersection(*map(set, found.values()))
    shared = [fault for fault in next(iter(found.values())) if fault in of_all]
    return shared + [
        f"tasks.{name}: {fault}" for name, own in found.items() for fault in own if fault not in of_all
    ]


def _together(config: DictConfig) -> list[str]:
    """Of keys that do not go together with several tasks."""
    name, teacher = config.objective.name, config.teacher
    if name not in TAUGHT_TASKS:
        return [f"tasks: objective={name} trains on one task or on text; use objective=task_kd, or tasks=[]"]
    faults = []
    if len(config.tasks) < 2:
        faults.append("tasks: name two or more; a single one is benchmark=<task> teacher.model=<folder>")
    if config.benchmark is not None:
        faults.append(
            f"benchmark={config.benchmark.name} with tasks: each task names its own; give one of them"
        )
    for key in ("model", "models"):
        if teacher[key] is not None:
            faults.append(
                f"teacher.{key}={teacher[key]} with tasks: each task names its own, teacher: <folder>"
            )
    if config.objective.interchange.mapping is not None:
        faults.append(
            f"objective.interchange.mapping={config.objective.interchange.mapping}: states are swapped within one "
            "task; use null, or benchmark=<task>"
        )
    trainer = config.trainer
    if trainer.strategy in DEEPSPEED:
        faults.append(
            f"tasks: not with trainer.strategy={trainer.strategy}, which updates the other tasks' heads as if their "
            "gradient were 0; trainer.strategy=ddp_find_unused_parameters_true"
        )
    refused = trainer.strategy in DEEPSPEED  # by the strategy itself, on one device too
    if trainer.devices not in (1, "1") and "find_unused" not in trainer.strategy and not refused:
        faults.append(
            f"trainer.strategy={trainer.strategy}: a step of one task leaves the other heads without a gradient; use "
            "trainer.strategy=ddp_find_unused_parameters_true"
        )
    return faults


def _maker(tasks: dict[str, DictConfig]) -> ModelSpec | None:
    """The student of the first teacher's layers; None where it is made otherwise, or that teacher cannot be read."""
    first = next(iter(tasks.values()))
    student = first.student
    if student.model or student.config:
        return None
    try:
        teacher = read_spec("teacher.model", first.teacher.model)
    except PotstillError:
        return None  # reported with its task
    model_type = student.architecture or teacher.model_type
    return replace(teacher, depth=len(student.layers or default_layers(teacher.depth)), model_type=model_type)
