"""Faults of an objective: its terms and their weights."""

from __future__ import annotations

from omegaconf import DictConfig

from potstill.config.defaults import TASKS
from potstill.data.tasks.labels import MULTI_LABEL, REGRESSION, SPANS
from potstill.objectives.matching import schedule_fault
from potstill.validation.interchange import interchange_faults

SUPERVISED = ("mlm", "clm")
SOFT_TARGETS = ("kl", "cross_entropy", "mse", "reverse_kl", "jsd")
TEMPERATURES = ("constant", "flsw", "cwsm")
CAUSAL = ("causal_ce", "causal_cos")


def objective_faults(objective: DictConfig, task: str | None = None) -> list[str]:
    """Of temperature, positions, weights, and terms that do not suit the objective; `task` is a task model's kind."""
    faults = []
    if objective.positions not in ("all", "masked"):
        faults.append(f"objective.positions={objective.positions}: all or masked")
    weights = {name: term.weight for name, term in objective.terms.items()}
    for name in weights:
        faults += _schedule_faults(name, objective.terms[name])
    faults += _soft_target_faults(objective, task)
    if objective.name in (*SUPERVISED, *TASKS) and objective.interchange.mapping is not None:
        faults.append(
            f"objective.interchange.mapping={objective.interchange.mapping}: objective={objective.name} has no teacher "
            "to compare with; use objective=diito or kd"
        )
    if objective.name in (*SUPERVISED, *TASKS) and objective.matches is not None:
        faults.append(
            f"objective.matches={objective.matches}: objective={objective.name} has no teacher to match; use "
            "objective=task_kd or kd"
        )
    if objective.name in TASKS:
        return faults + [
            f"objective.terms.{name}.weight={weight}: objective={objective.name} learns from the labels alone"
            for name, weight in weights.items()
            if weight and name != "label"
        ]
    effective = [objective.hard_weight if weight is None else weight for weight in weights.values()]
    unscheduled = all(term.schedule == "constant" for term in objective.terms.values())
    if unscheduled and not objective.matches and not any(effective):
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


def _schedule_faults(name: str, term: DictConfig) -> list[str]:
    """Of how a weight changes."""
    if term.schedule == "constant" and term.start is not None:
        return [
            f"objective.terms.{name}.start={term.start}: schedule=constant keeps the weight; use linear or cosine"
        ]
    fault = schedule_fault(term.schedule, term.end, term.steps, term.schedule_args)
    return [f"objective.terms.{name}.{fault}"] if fault else []


def _soft_target_faults(objective: DictConfig, task: str | None) -> list[str]:
    """Of the loss of soft targets and its temperatures."""
    faults = [
        f"objective.{key}={objective[key]}: one of {', '.join(known)}"
        for key, known in (("soft_target", SOFT_TARGETS), ("temperature_schedule", TEMPERATURES))
        if objective[key] not in known
    ]
    if task == SPANS:  # the number of tokens is another one in each micro-batch
        faults += [
            f"objective.{key}={value}: depends on the padding of answers' logits; use {instead}"
            for key, value, instead in (
                ("soft_target", "mse", "kl"),
                ("temperature_schedule", "flsw", "cwsm"),
            )
            if objective[key] == value
        ]
    if task == MULTI_LABEL and objective.temperature_schedule == "flsw":
        faults.append(
            "objective.temperature_schedule=flsw: compares the distributions over all labels of a row, which sets of "
            "labels have none of; use cwsm"
        )
    if task not in (None, REGRESSION):
        return faults
    own: dict[str, str | bool] = {"temperature_schedule": "constant", "probability_shift": False}
    if task is None:  # soft targets of a regression are the scores, whatever the loss is of distributions
        own["soft_target"] = "kl"
    where = "of task models alone; objective=task_kd" if task is None else "a regression has no distribution"
    return faults + [
        f"objective.{key}={objective[key]}: {where}, or leave it {plain}"
        for key, plain in own.items()
        if objective[key] != plain
    ]
