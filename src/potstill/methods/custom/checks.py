"""Problems of modules of the user's own, as far as they are seen without importing them."""

from __future__ import annotations

from typing import Any

from potstill.config import TrainConfig, value_of
from potstill.errors import PotstillError
from potstill.methods.common.checks import own_module_paths
from potstill.objectives.matching import read_matches
from potstill.runtime.dotted import is_path

# Keys of language and task models, and their values where they are not given.
_FOREIGN: dict[str, Any] = {
    "benchmark": None, "teacher.model": None, "teacher.models": None, "teacher.tokenizer": None,
    "student.model": None, "student.config": {}, "student.layers": None, "student.architecture": None,
    "student.dropout": None, "student.checkpointing": None,
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
        f"{key}={value}: a dotted path, such as my.models.{key.split('.')[1]}"
        for key, value in paths.items()
        if value is not None and not is_path(value)
    ]
    problems += _taught_problems(config)
    for key, plain in _FOREIGN.items():
        value = value_of(config, key)
        if value != plain:
            shown = value.name if key == "benchmark" else value
            problems.append(f"{key}={shown}: is of language and task models; objective=custom has its own, custom.*")
    if config.doctor:
        problems.append("doctor=true: not with objective=custom, whose batches are its loaders' own")
    if config.trainer.devices not in (1, "1") or config.trainer.num_nodes != 1:
        problems.append(f"trainer.devices={config.trainer.devices}: objective=custom trains on one device; use 1")
    return problems


def _taught_problems(config: TrainConfig) -> list[str]:
    """Problems of terms and matches."""
    try:
        matches = read_matches(config.taught.matches)
    except PotstillError as error:
        return [str(error)]
    taught = config.taught.terms.given("ce", "mse")
    if config.custom.teacher.get("_target_") is not None or not (taught or matches):
        return []
    what = f"objective.terms.{next(iter(taught))}" if taught else "objective.matches"
    return [f"custom.teacher._target_=null: {what} compares with a teacher; name one, or use the label term alone"]
