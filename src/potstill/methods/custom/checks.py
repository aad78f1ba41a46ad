"""Faults of modules of the user's own, as far as they are seen without importing them."""

from __future__ import annotations

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

from potstill.errors import PotstillError
from potstill.methods.common.checks import own_module_paths
from potstill.objectives.custom_matching import read_adapted_matches

_PATH = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+"
_TERMS = ("label", "ce", "mse")
# Keys of language and task models, and their values where they are not given.
_FOREIGN: dict[str, Any] = {
    "benchmark": None, "teacher.model": None, "teacher.models": None, "teacher.tokenizer": None,
    "student.model": None, "student.config": {}, "student.layers": None, "student.architecture": None,
    "student.dropout": None, "student.checkpointing": None,
    "student.freeze_positions": False, "student.freeze_token_types": False, "data.train_files": None,
    "data.eval_files": None, "objective.interchange.mapping": None, "compile": False,
}  # fmt: skip


def adapted_faults(config: DictConfig) -> list[str]:
    """Of the keys of `adapted`, and of other models' keys where they are used."""
    paths = own_module_paths(config)
    needed = {
        "adapted.student._target_": "my.models.make_student",
        "adapted.data._target_": "my.data.make_loaders",
        "adapted.adaptor": "my.models.adaptor",
    }
    faults = [
        f"{key}=null: objective=adapted needs a dotted path, such as {example}"
        for key, example in needed.items()
        if paths[key] is None
    ]
    faults += [
        f"{key}={value}: a dotted path, such as my.models.{key.split('.')[1]}"
        for key, value in paths.items()
        if value is not None and not re.fullmatch(_PATH, str(value))
    ]
    faults += _taught_faults(config)
    for key, plain in _FOREIGN.items():
        value = OmegaConf.select(config, key)
        if value != plain:
            shown = value.name if key == "benchmark" else value
            faults.append(
                f"{key}={shown}: is of language and task models; objective=adapted has its own, adapted.*"
            )
    if config.doctor:
        faults.append("doctor=true: not with objective=adapted, whose batches are its loaders' own")
    if config.trainer.devices not in (1, "1") or config.trainer.num_nodes != 1:
        faults.append(
            f"trainer.devices={config.trainer.devices}: objective=adapted trains on one device; use 1"
        )
    return faults


def _taught_faults(config: DictConfig) -> list[str]:
    """Of terms and matches."""
    objective = config.objective
    faults = [
        f"objective.terms.{name}.weight={term.weight}: objective=adapted has the terms {', '.join(_TERMS)} and matches"
        for name, term in objective.terms.items()
        if name not in _TERMS and (term.weight or term.schedule != "constant")
    ]
    value = OmegaConf.to_container(OmegaConf.create({"of": objective.matches}), resolve=True)
    try:
        matches = read_adapted_matches(value["of"])  # type: ignore[index,call-overload]
    except PotstillError as fault:
        return [*faults, str(fault)]
    if config.adapted.teacher.get("_target_") is not None:
        return faults
    taught = [name for name in ("ce", "mse") if objective.terms[name].weight or objective.terms[name].end]
    if taught or matches:
        what = f"objective.terms.{taught[0]}" if taught else "objective.matches"
        faults.append(
            f"adapted.teacher._target_=null: {what} compares with a teacher; name one, or use the label term alone"
        )
    return faults
