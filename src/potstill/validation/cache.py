"""Problems of a teacher whose outputs are stored: of what is stored, and of what would read more than that."""

from __future__ import annotations

from pathlib import Path

from potstill.config import TrainConfig
from potstill.config.data import augment_of
from potstill.config.defaults import trains_task
from potstill.config.models import CacheConfig
from potstill.config.objectives import OBJECTIVES, TaughtConfig, exchange_of, matches_of
from potstill.validation.folders import writable

FORMS = ("top", "sampled")
PRECISIONS = ("float16", "float32")
KEPT = {True: ("ce", "mse"), False: ("ce",)}  # terms that read stored outputs, by whether they are of a task


def cache_problems(config: TrainConfig) -> list[str]:
    """Problems of `teacher.cache`; none if it is off."""
    cache, objective = config.teacher.cache, config.objective
    if not cache.enabled:
        return []
    if not (isinstance(objective, TaughtConfig) and objective.cacheable):
        able = ", ".join(name for name, own in OBJECTIVES.items() if own.cacheable)
        return [
            f"teacher.cache.enabled=true: objective={objective.name} learns from no outputs that could be stored; use "
            f"teacher/cache=off, or one of {able}"
        ]
    problems = _more_problems(config, objective)
    if cache.folder is not None:
        problems += writable("teacher.cache.folder", Path(cache.folder).expanduser())
    return problems if trains_task(config) else problems + _form_problems(cache, objective.temperature)


def _more_problems(config: TrainConfig, objective: TaughtConfig) -> list[str]:
    """Keys that need more than a teacher's outputs, or outputs that change."""
    kept, exchange, matches = KEPT[trains_task(config)], exchange_of(objective), matches_of(objective)
    off = "teacher/cache=on keeps no more than the teacher's outputs"
    problems = [
        f"objective.terms.{name}.weight={term.weight}: {off}; use 0, or teacher/cache=off"
        for name, term in objective.terms.given("mse", "cos", "causal_ce", "causal_cos", "uld").items()
        if name not in kept
    ]
    if matches is not None:
        problems.append(f"objective.matches={matches}: {off}, nothing within it; use teacher/cache=off")
    if exchange.mapping is not None:
        problems.append(
            f"objective.interchange.mapping={exchange.mapping}: swaps states in the teacher, and {off}; "
            "use teacher/cache=off"
        )
    if not objective.terms.given(*kept):
        problems.append(
            f"objective.terms.ce.weight={objective.terms['ce'].weight}: nothing would be read of what teacher/cache=on "
            "stores; give it a weight above 0, or use teacher/cache=off"
        )
    if config.teacher.tokenizer is not None:
        problems.append(
            f"teacher.tokenizer={config.teacher.tokenizer}: stored outputs are of the student's own tokens; use "
            "teacher.tokenizer=null, or teacher/cache=off"
        )
    if config.tasks:
        problems.append("tasks: outputs are stored of one task; use teacher/cache=off")
    if share := augment_of(config.data).share:
        problems.append(
            f"data.augment.share={share}: rows change in every epoch, and their stored outputs do "
            "not; use data.augment.share=0, or teacher/cache=off"
        )
    return problems


def _form_problems(cache: CacheConfig, temperature: float) -> list[str]:
    """Problems of the format in which the outputs over a vocabulary are stored."""
    key = "teacher.cache"
    problems = [
        f"{key}.{name}={getattr(cache, name)}: one of {', '.join(known)}"
        for name, known in (("form", FORMS), ("precision", PRECISIONS))
        if getattr(cache, name) not in known
    ]
    if cache.temperatures is None:
        return problems
    given = f"{key}.temperatures={list(cache.temperatures)}"
    if not cache.temperatures:
        problems.append(f"{given}: one or more temperatures, or null for objective.temperature")
    elif cache.form == "sampled":
        problems.append(f"{given}: tokens are drawn at objective.temperature alone; use null, or form=top")
    elif temperature not in cache.temperatures:
        problems.append(
            f"objective.temperature={temperature}: {given} holds no tail for it; add it there, or use one of these"
        )
    return problems
