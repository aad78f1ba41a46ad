"""Problems of several tasks that one student learns: of each as of a single one, and of them together."""

from __future__ import annotations

from dataclasses import replace

from potstill.config import TrainConfig
from potstill.config.data import TaskDataConfig, data_of
from potstill.config.objectives.base import exchange_of
from potstill.config.objectives.task import TaskKdConfig
from potstill.data.tasks.splits import kind_of
from potstill.errors import PotstillError
from potstill.methods.common.checks import own_module_problems
from potstill.methods.multitask.tasks import monitored, task_configs
from potstill.models.specs import ModelSpec, default_layers, read_spec
from potstill.validation.benchmarks import benchmark_problems
from potstill.validation.data import kind_problems, task_data_problems
from potstill.validation.launch import DEEPSPEED
from potstill.validation.models import model_problems
from potstill.validation.objectives import objective_problems
from potstill.validation.ranges import range_problems


def shared_task_problems(config: TrainConfig, *, models: bool = True) -> list[str]:
    """Problems of `tasks` and `mixing`; those of a single task begin with its name.

    Args:
        config: with `tasks`.
        models: whether its models exist already.
    """
    if problems := _objective_problems(config) or kind_problems(config.data, TaskDataConfig, "tasks"):
        return problems
    data = task_data_problems(data_of(config, TaskDataConfig))
    problems = [*own_module_problems(config), *data, *_together(config)]
    try:
        tasks = task_configs(config)
        monitored(config)
    except PotstillError as error:
        problems.append(str(error))
    if problems:
        return problems
    made = _maker(tasks) if models else None
    found = {
        name: [
            *range_problems(own.benchmark, "options."),
            *objective_problems(own.losses, kind_of(own.task_benchmark)),
            *benchmark_problems(own),
            *(model_problems(own, made=made if number else None) if models else []),
        ]
        for number, (name, own) in enumerate(tasks.items())
    }
    of_all = set.intersection(*map(set, found.values()))
    shared = [error for error in next(iter(found.values())) if error in of_all]
    return shared + [f"tasks.{name}: {error}" for name, own in found.items() for error in own if error not in of_all]


def _objective_problems(config: TrainConfig) -> list[str]:
    """The problem of an objective that does not learn several tasks."""
    objective = config.objective
    if isinstance(objective, TaskKdConfig) and objective.trains_task:
        return []
    return [f"tasks: objective={objective.name} trains on one task or on text; use objective=task_kd, or tasks=[]"]


def _together(config: TrainConfig) -> list[str]:
    """Keys that cannot be combined with several tasks."""
    exchange, teacher = exchange_of(config.objective), config.teacher
    problems = []
    if len(config.tasks) < 2:
        problems.append("tasks: name two or more; a single one is benchmark=<task> teacher.model=<folder>")
    if config.benchmark is not None:
        problems.append(f"benchmark={config.benchmark.name} with tasks: each task names its own; give one of them")
    for key in ("model", "models"):
        if teacher[key] is not None:
            problems.append(f"teacher.{key}={teacher[key]} with tasks: each task names its own, teacher: <folder>")
    if exchange.mapping is not None:
        problems.append(
            f"objective.interchange.mapping={exchange.mapping}: states are swapped within one "
            "task; use null, or benchmark=<task>"
        )
    trainer = config.trainer
    if trainer.strategy in DEEPSPEED:
        problems.append(
            f"tasks: not with trainer.strategy={trainer.strategy}, which updates the other tasks' heads as if their "
            "gradient were 0; trainer.strategy=ddp_find_unused_parameters_true"
        )
    refused = trainer.strategy in DEEPSPEED  # by the strategy itself, on one device too
    if trainer.devices not in (1, "1") and "find_unused" not in trainer.strategy and not refused:
        problems.append(
            f"trainer.strategy={trainer.strategy}: a step of one task leaves the other heads without a gradient; use "
            "trainer.strategy=ddp_find_unused_parameters_true"
        )
    return problems


def _maker(tasks: dict[str, TrainConfig]) -> ModelSpec | None:
    """The student of the first teacher's layers; None where it is made otherwise, or that teacher cannot be read."""
    first = next(iter(tasks.values()))
    student = first.student
    if student.model or student.config:
        return None
    try:
        teacher = read_spec("teacher.model", str(first.teacher.model))
    except PotstillError:
        return None  # reported with its task
    model_type = student.architecture or teacher.model_type
    return replace(teacher, depth=len(student.layers or default_layers(teacher.depth)), model_type=model_type)
