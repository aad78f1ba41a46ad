"""Problems of modules of the user's own, as far as they are seen without importing them."""

from __future__ import annotations

from typing import Any

from potstill.config import TrainConfig, value_of
from potstill.errors import PotstillError
from potstill.methods.common.checks import own_module_paths
from potstill.objectives.matching import read_matches
from potstill.runtime.dotted import is_path
from potstill.validation.launch import SHARDED

# Keys of language and task models, and their values where they are not given.
_FOREIGN: dict[str, Any] = {
    "benchmark": None, "teacher.model": None, "teacher.models": None, "teacher.tokenizer": None,
    "student.model": None, "student.config": {}, "student.config_file": None, "student.layers": None,
    "student.architecture": None, "student.dropout": None, "student.checkpointing": None,
    "student.freeze_positions": False, "student.freeze_token_types": False, "compile": False,
}  # fmt: skip


def custom_problems(config: TrainConfig) -> list[str]:
    """Problems of the keys of `custom`, and keys of other methods."""
    paths = own_module_paths(config)
    needed = {
        "custom.student._target_": "my.models.make_student",
        "custom.data._target_": "my.data.make_loaders",
        "custom.adaptor": "my.models.adaptor",
    }
    problems = [
        f"{key}=null: objective=custom needs a dotted path, such as {example}"
        for key, example in needed.items()
        if paths[key] is None
    ]
    problems += [
        f"{key}={value}: a dotted path, such as my.models.{key.split('.')[1].partition('[')[0]}"
        for key, value in paths.items()
        if value is not None and not is_path(value)
    ]
    problems += _teacher_problems(config)
    problems += _taught_problems(config)
    for key, plain in _FOREIGN.items():
        value = value_of(config, key)
        if value != plain:
            shown = value.name if key == "benchmark" else value
            problems.append(f"{key}={shown}: is of language and task models; objective=custom has its own, custom.*")
    if config.doctor:
        problems.append("doctor=true: not with objective=custom, whose batches are its loaders' own")
    if config.trainer.strategy in SHARDED:
        problems.append(
            f"trainer.strategy={config.trainer.strategy}: shards the weights of transformers; objective=custom keeps "
            "them whole on every device, strategy=ddp"
        )
    return problems


def _teacher_problems(config: TrainConfig) -> list[str]:
    """Problems of several teachers, their adaptors and their mean."""
    own, mean, problems = config.custom, config.teacher, []
    given = f"custom.teachers={own.teachers}"
    if own.teachers and own.teacher.get("_target_") is not None:
        problems.append(f"{given} with custom.teacher._target_={own.teacher['_target_']}: give one of them")
    problems += [
        f"{key}._target_=null: a dotted path, such as my.models.make_teacher"
        for key, settings in own.every_teacher.items()
        if settings.get("_target_") is None
    ]
    count = len(own.every_teacher)
    if isinstance(own.teacher_adaptor, list) and len(own.teacher_adaptor) != count:
        problems.append(f"custom.teacher_adaptor={own.teacher_adaptor}: one path, or one for each of {count} teachers")
    if mean.weights is not None and len(mean.weights) != len(own.teachers):
        problems.append(f"teacher.weights={list(mean.weights)}: a number for each of {len(own.teachers)} teachers")
    distances = config.losses.terms.given("mse") or config.taught.soft_target == "mse"  # type: ignore[attr-defined]
    if mean.average == "probabilities" and own.teachers and distances:
        problems.append("teacher.average=probabilities: distances of logits need the mean of logits; use logits")
    return problems


def _taught_problems(config: TrainConfig) -> list[str]:
    """Problems of terms and matches."""
    try:
        matches = read_matches(config.taught.matches, [None] * max(len(config.custom.every_teacher), 1))
    except PotstillError as error:
        return [str(error)]
    taught = config.taught.terms.given("ce", "mse")
    if config.custom.every_teacher or config.teacher.cache.file is not None or not (taught or matches):
        return []
    what = f"objective.terms.{next(iter(taught))}" if taught else "objective.matches"
    return [f"custom.teacher._target_=null: {what} compares with a teacher; name one, or use the label term alone"]
