"""Faults of a teacher whose outputs are stored: of what is stored, and of what would read more than that."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from potstill.config.defaults import TAUGHT_TASKS, trains_task
from potstill.validation.folders import writable

FORMS = ("top", "sampled")
PRECISIONS = ("float16", "float32")
KEPT = {True: ("ce", "mse"), False: ("ce",)}  # terms that read stored outputs, by whether they are of a task
LANGUAGE = ("kd",)  # objectives of language models that can do without the rest of the teacher


def cache_faults(config: DictConfig) -> list[str]:
    """Of `teacher.cache`; none where it is off."""
    cache, name = config.teacher.cache, config.objective.name
    if not cache.enabled:
        return []
    if name not in (*TAUGHT_TASKS, *LANGUAGE):
        able = ", ".join((*TAUGHT_TASKS, *LANGUAGE))
        return [
            f"teacher.cache.enabled=true: objective={name} learns from no outputs that could be stored; use "
            f"teacher/cache=off, or one of {able}"
        ]
    faults = _more_faults(config)
    if cache.folder is not None:
        faults += writable("teacher.cache.folder", Path(cache.folder).expanduser())
    return faults if trains_task(config) else faults + _form_faults(config)


def _more_faults(config: DictConfig) -> list[str]:
    """Of what reads more of a teacher than its outputs, or outputs that change."""
    objective, task = config.objective, trains_task(config)
    off = "teacher/cache=on keeps no more than the teacher's outputs"
    faults = [
        f"objective.terms.{name}.weight={term.weight}: {off}; use 0, or teacher/cache=off"
        for name, term in objective.terms.items()
        if name in ("mse", "cos", "causal_ce", "causal_cos", "uld")
        and name not in KEPT[task]
        and _has_weight(term)
    ]
    if objective.matches is not None:
        faults.append(
            f"objective.matches={objective.matches}: {off}, nothing within it; use teacher/cache=off"
        )
    if objective.interchange.mapping is not None:
        faults.append(
            f"objective.interchange.mapping={objective.interchange.mapping}: swaps states in the teacher, and {off}; "
            "use teacher/cache=off"
        )
    if not any(_has_weight(objective.terms[name]) for name in KEPT[task]):
        faults.append(
            f"objective.terms.ce.weight={objective.terms.ce.weight}: nothing would be read of what teacher/cache=on "
            "stores; give it a weight above 0, or use teacher/cache=off"
        )
    if config.teacher.tokenizer is not None:
        faults.append(
            f"teacher.tokenizer={config.teacher.tokenizer}: stored outputs are of the student's own tokens; use "
            "teacher.tokenizer=null, or teacher/cache=off"
        )
    if config.tasks:
        faults.append("tasks: outputs are stored of one task; use teacher/cache=off")
    if config.data.augment.share:
        faults.append(
            f"data.augment.share={config.data.augment.share}: rows change in every epoch, and their stored outputs do "
            "not; use data.augment.share=0, or teacher/cache=off"
        )
    return faults


def _has_weight(term: DictConfig) -> bool:
    return bool(term.weight) or term.schedule != "constant"


def _form_faults(config: DictConfig) -> list[str]:
    """Of the form in which a vocabulary's outputs are kept."""
    cache, key, temperature = config.teacher.cache, "teacher.cache", config.objective.temperature
    faults = [
        f"{key}.{name}={cache[name]}: one of {', '.join(known)}"
        for name, known in (("form", FORMS), ("precision", PRECISIONS))
        if cache[name] not in known
    ]
    if cache.temperatures is None:
        return faults
    given = f"{key}.temperatures={list(cache.temperatures)}"
    if not cache.temperatures:
        faults.append(f"{given}: one or more temperatures, or null for objective.temperature")
    elif cache.form == "sampled":
        faults.append(
            f"{given}: tokens are drawn at objective.temperature alone; use null, or teacher.cache.form=top"
        )
    elif temperature not in cache.temperatures:
        faults.append(
            f"objective.temperature={temperature}: {given} holds no tail for it; add it there, or use one of these"
        )
    return faults
