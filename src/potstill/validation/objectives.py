"""Faults of an objective: its terms and their weights."""

from __future__ import annotations

import math

from omegaconf import DictConfig

from potstill.validation.interchange import interchange_faults

SUPERVISED = ("mlm", "clm")
CAUSAL = ("causal_ce", "causal_cos")
TASKS = ("finetune",)  # objectives of task models that learn from labels alone; they train on a benchmark
EITHER = ("diito",)  # objectives of task models where a benchmark is given, else of language models


def trains_task(config: DictConfig) -> bool:
    """Whether a training run's objective is one of a task model, given its benchmark."""
    name = config.objective.name
    return name in TASKS or (name in EITHER and config.benchmark is not None)


def objective_faults(objective: DictConfig) -> list[str]:
    """Of temperature, positions, weights, and terms that do not suit the objective."""
    faults = []
    if not (objective.temperature > 0 and math.isfinite(objective.temperature)):
        faults.append(f"objective.temperature={objective.temperature}: must be above 0")
    if objective.positions not in ("all", "masked"):
        faults.append(f"objective.positions={objective.positions}: all or masked")
    weights = {name: term.weight for name, term in objective.terms.items()}
    for name, weight in weights.items():
        if weight is not None and not (weight >= 0 and math.isfinite(weight)):
            faults.append(f"objective.terms.{name}.weight={weight}: must be 0 or more")
    if objective.name in (*SUPERVISED, *TASKS) and objective.interchange.mapping is not None:
        faults.append(
            f"objective.interchange.mapping={objective.interchange.mapping}: objective={objective.name} has no teacher "
            "to compare with; use objective=diito or kd"
        )
    if objective.name in TASKS:
        return faults + [
            f"objective.terms.{name}.weight={weight}: objective={objective.name} learns from the labels alone"
            for name, weight in weights.items()
            if weight and name != "label"
        ]
    if all(weight == 0 for weight in weights.values()):
        faults.append(
            f"objective.terms: all weights are 0; give one of {', '.join(weights)} a weight above 0"
        )
    swapping = [f"{name}.weight={weights[name]}" for name in CAUSAL if weights[name]]
    if objective.interchange.mapping is not None:
        faults += interchange_faults(objective.interchange, "objective.interchange")
    elif swapping:
        faults.append(
            f"objective.terms.{swapping[0]}: swaps states between inputs, and objective.interchange.mapping=null names "
            "none; use objective=diito, or name a mapping"
        )
    if objective.name in SUPERVISED:
        faults += [
            f"objective.terms.{name}.weight={weight}: objective={objective.name} has no teacher; use objective=kd"
            for name, weight in weights.items()
            if weight and name != objective.name
        ]
    return faults
