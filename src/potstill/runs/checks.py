"""Checks of a composed configuration, without torch; all user errors are reported together.

What needs text or weights read (an unusable file, a damaged checkpoint) is found by the part that reads it; checked
here are values, combinations, files, and whether the models fit each other, from their config.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.defaults import settle
from potstill.data.tasks.splits import settle_labels
from potstill.errors import ConfigError
from potstill.methods import evaluator_of, method_of
from potstill.validation.cache import cache_faults
from potstill.validation.folders import output_faults
from potstill.validation.generation import generation_faults
from potstill.validation.launch import launch_faults, strategy_faults
from potstill.validation.names import models_of, name_faults
from potstill.validation.ranges import range_faults, section_of
from potstill.validation.sweeps import sweep_faults
from potstill.validation.training import (
    checkpoint_faults,
    logger_faults,
    optimizer_faults,
    trainer_faults,
)
from potstill.validation.unread import unread_keys


def validate_train(config: DictConfig, *, models: bool = True) -> None:
    """Raise one ConfigError with every user error of a training configuration.

    Args:
        config: the composed configuration; its defaults are settled.
        models: whether its models exist already; those of a pipeline's later stages do not.
    """
    _check_values(config, TrainConfig)
    settle(config)
    settle_labels(config.benchmark, config.data.skip, training=True)
    if config.stage != "train":
        _raise([*generation_faults(config), *output_faults()])
        return
    _raise(
        [
            *method_of(config).problems(config, models=models),
            *trainer_faults(config.trainer),
            *optimizer_faults(config),
            *checkpoint_faults(config),
            *logger_faults(config.logger),
            *strategy_faults(config),
            *launch_faults(config),
            *cache_faults(config),
            *output_faults(),
        ]
    )


def validate_evaluate(config: DictConfig) -> None:
    """Raise one ConfigError with every user error of an evaluation configuration."""
    _check_values(config, EvaluateConfig)
    settle_labels(config.benchmark, config.data.skip, training=False)
    models = models_of(config)
    if config.sweep.folder is not None:
        _raise([*sweep_faults(config, models), *output_faults()])
        return
    faults = trainer_faults(config.trainer)
    if config.trainer.devices not in (1, "1"):
        faults.append(
            f"trainer.devices={config.trainer.devices}: evaluation runs on one device; trainer.devices=1"
        )
    if not models:
        faults.append("model=: name at least one folder or hub id, model=<folder> or model=[a,b]")
    if config.names is not None and len(config.names) != len(models):
        faults.append(f"names={list(config.names)}: {len(models)} models need as many names")
    faults += name_faults([str(name) for name in config.names or ()])
    _raise([*faults, *evaluator_of(config).problems(config, models), *output_faults()])


def _raise(faults: list[str]) -> None:
    if faults:
        raise ConfigError("; ".join(dict.fromkeys(faults)))


def _check_values(config: DictConfig, schema: type) -> None:
    """Refuse unknown and unread keys and numbers out of their range; what is checked later relies on them."""
    OmegaConf.to_container(config, resolve=True)  # an interpolation that leads nowhere is a fault of now
    # `+key=value` opens the struct; whatever is not in the schema would be ignored, so it is refused.
    for key, value in _unknown(config, schema):
        raise ConfigError(f"{key}={value}: no such key; `--cfg job` shows all keys")
    _raise([*range_faults(config, schema), *unread_keys(config, schema)])


def _unknown(config: Any, schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(schema)
    if not isinstance(config, DictConfig):  # an interpolation may give anything
        raise ConfigError(f"{prefix.removesuffix('.')}={config}: a section of keys, {', '.join(hints)}")
    for key in map(str, config):
        if key not in hints:
            yield f"{prefix}{key}", OmegaConf.select(config, key)
            continue
        if OmegaConf.is_missing(config, key) or (value := config[key]) is None:
            continue
        kinds = {get_origin(hint) for hint in (hints[key], *get_args(hints[key]))}
        # A free dictionary (`optimizer`, `student.config`) takes any key; a section takes its own.
        if list in kinds:
            if not OmegaConf.is_list(value):
                raise ConfigError(f"{prefix}{key}={value}: a list")
        elif dict in kinds:
            if not OmegaConf.is_dict(value):
                raise ConfigError(f"{prefix}{key}={value}: a dictionary")
        elif section := section_of(hints[key]):
            yield from _unknown(value, section, f"{prefix}{key}.")
