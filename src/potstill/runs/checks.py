"""Checks of a composed configuration, without torch; all user errors are reported together.

What needs text or weights read (an unusable file, a damaged checkpoint) is found by the part that reads it; checked
here are values, combinations, files, and whether the models fit each other, from their config.json.
"""

from __future__ import annotations

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.data import TaskDataConfig
from potstill.data.tasks.splits import settle_labels
from potstill.errors import ConfigError
from potstill.methods import evaluator_of, method_of
from potstill.validation.cache import cache_problems
from potstill.validation.folders import output_problems
from potstill.validation.generation import OUTPUTS, generation_problems
from potstill.validation.launch import launch_problems, strategy_problems
from potstill.validation.names import models_of, name_problems
from potstill.validation.ranges import check_keys, range_problems
from potstill.validation.sweeps import sweep_problems
from potstill.validation.training import checkpoint_problems, logger_problems, optimizer_problems, trainer_problems
from potstill.validation.unread import unread_keys


def validate_train(config: TrainConfig, *, models: bool = True) -> None:
    """Raise one ConfigError with every user error of a training configuration.

    Args:
        config: of the run.
        models: whether its models exist already; those of a pipeline's later stages do not.
    """
    if config.stage == OUTPUTS:
        config.teacher.cache.enabled = True
    _check_values(config)
    if isinstance(config.data, TaskDataConfig):
        settle_labels(config.benchmark, config.data.skip, training=True)
    if config.stage == OUTPUTS:
        _raise([*method_of(config).served_problems(config), *output_problems()])
        return
    if config.stage != "train":
        _raise([*generation_problems(config), *output_problems()])
        return
    _raise(
        [
            *method_of(config).problems(config, models=models),
            *trainer_problems(config.trainer),
            *optimizer_problems(config),
            *checkpoint_problems(config),
            *logger_problems(config.logger),
            *strategy_problems(config),
            *launch_problems(config),
            *cache_problems(config, models=models),
            *output_problems(),
        ]
    )


def validate_evaluate(config: EvaluateConfig) -> None:
    """Raise one ConfigError with every user error of an evaluation configuration."""
    _check_values(config)
    if isinstance(config.data, TaskDataConfig):
        settle_labels(config.benchmark, config.data.skip, training=False)
    models = models_of(config)
    if config.sweep.folder is not None:
        _raise([*sweep_problems(config, models), *output_problems()])
        return
    problems = trainer_problems(config.trainer)
    if config.trainer.devices not in (1, "1"):
        problems.append(f"trainer.devices={config.trainer.devices}: evaluation runs on one device; trainer.devices=1")
    if not models:
        problems.append("model=: name at least one folder or hub id, model=<folder> or model=[a,b]")
    if config.names is not None and len(config.names) != len(models):
        problems.append(f"names={list(config.names)}: {len(models)} models need as many names")
    problems += name_problems([str(name) for name in config.names or ()])
    _raise([*problems, *evaluator_of(config).problems(config, models), *output_problems()])


def _raise(problems: list[str]) -> None:
    if problems:
        raise ConfigError("; ".join(dict.fromkeys(problems)))


def _check_values(config: TrainConfig | EvaluateConfig) -> None:
    """Reject unknown and unread keys and numbers out of their range; what is checked later relies on them."""
    check_keys(config)
    _raise([*range_problems(config), *unread_keys(config)])
