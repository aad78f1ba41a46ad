"""Several tasks of one student: each as the configuration of a run on it alone. No torch.

So everything that reads, checks or builds a task is that of a single one.
"""

from __future__ import annotations

import copy
import re

from potstill.config import TrainConfig
from potstill.config.data import TaskDataConfig, data_of
from potstill.config.objectives.base import TaughtConfig
from potstill.config.typed import benchmark_of
from potstill.data.tasks.splits import MEAN, settle_labels, task_of
from potstill.errors import ConfigError


def task_configs(config: TrainConfig) -> dict[str, TrainConfig]:
    """The configuration of a run on each task, by the task's name, in the order of `tasks`.

    Args:
        config: of a training run; its own `benchmark`, `teacher.model` and `objective.matches` give way to a task's.

    Raises:
        ConfigError: a task without benchmark or teacher, an unknown benchmark or key of one, an invalid name, or
            two tasks of one name.
    """
    made: dict[str, TrainConfig] = {}
    for number, entry in enumerate(config.tasks):
        key = f"tasks[{number}]"
        benchmark = benchmark_of(entry.benchmark, entry.options, key)
        settle_labels(benchmark, data_of(config, TaskDataConfig).skip, training=True)
        name = str(entry.name or benchmark.name)
        if not re.fullmatch(r"\w+", name) or name == MEAN:
            raise ConfigError(f"{key}.name={name}: letters, digits and _, and not {MEAN}; a folder is called so")
        if name in made:
            raise ConfigError(f"{key}.name={name}: two tasks have this name; give each its own, name: <name>")
        if entry.teacher is None:
            raise ConfigError(
                f"{key}.teacher=null: {name} needs a teacher of its own, a folder or hub id; fine-tune one with "
                "objective=finetune"
            )
        own = copy.deepcopy(config)
        own.tasks, own.benchmark = [], benchmark
        own.teacher.model, own.teacher.models = entry.teacher, None
        if entry.matches is not None and isinstance(own.objective, TaughtConfig):
            own.objective.matches = entry.matches
        made[name] = own
    return made


def monitored(config: TrainConfig) -> tuple[str, str]:
    """The metric that says which student is best, as it is logged, and whether it is to be `min` or `max`.

    Raises:
        ConfigError: it is of no task, or a mean of metrics that go opposite ways.
    """
    tasks, monitor = task_configs(config), config.mixing.monitor
    if monitor == MEAN:
        modes = {own.task_benchmark.mode for own in tasks.values()}
        if len(modes) > 1:
            shown = ", ".join(f"{task_of(own.task_benchmark).monitor} of {name}" for name, own in tasks.items())
            raise ConfigError(
                f"mixing.monitor={MEAN}: of {shown} some are best high and some low; name the task that decides"
            )
        return f"val/{MEAN}", modes.pop()
    if monitor not in tasks:
        raise ConfigError(f"mixing.monitor={monitor}: {MEAN}, or one of the tasks {', '.join(tasks)}")
    task = task_of(tasks[monitor].task_benchmark)
    return f"val/{task.monitor}_{monitor}", task.mode
