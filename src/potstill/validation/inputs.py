"""Faults of a teacher that reads its own tokens, and of terms that compare models token by token."""

from __future__ import annotations

from omegaconf import DictConfig

from potstill.config.defaults import TASKS, trains_task
from potstill.data.tasks.labels import CLASSIFICATION, REGRESSION
from potstill.validation.objectives import SUPERVISED

_BY_TOKEN = ("cos", "causal_ce", "causal_cos")  # terms that compare states or predictions of the same tokens


def own_input_faults(config: DictConfig) -> list[str]:
    """Of `teacher.tokenizer`, where it is given."""
    setting, objective = config.teacher.tokenizer, config.objective
    uld = objective.terms.uld.weight or objective.terms.uld.schedule != "constant"
    language = not trains_task(config) and objective.name not in SUPERVISED
    if uld and (setting is None or not language):
        right = "teacher.tokenizer=own" if language else "objective.terms.ce"
        return [
            f"objective.terms.uld.weight={objective.terms.uld.weight}: is of language models of different tokenizers; "
            f"use {right}"
        ]
    if setting is None:
        return []
    given = f"teacher.tokenizer={setting}"
    if objective.name in (*SUPERVISED, *TASKS):
        return [f"{given}: objective={objective.name} reads no teacher; null"]
    if not trains_task(config):
        return _language_faults(config, given, bool(uld))
    faults = [*_compared_by_token(config, given, _BY_TOKEN)]
    if config.benchmark is not None and config.benchmark.task not in (CLASSIFICATION, REGRESSION):
        faults.append(
            f"{given}: benchmark={config.benchmark.name} is predicted token by token, so both must have the same; null"
        )
    if config.data.augment.share:
        faults.append(
            f"data.augment.share={config.data.augment.share} with {given}: the teacher would read the rows as they "
            "were; use 0"
        )
    return faults + _layers_faults(config, given)


def _language_faults(config: DictConfig, given: str, uld: bool) -> list[str]:
    """Of language models."""
    faults = _compared_by_token(config, given, ("ce", "mse", *_BY_TOKEN))
    if not uld:
        faults.append(f"{given}: only objective.terms.uld compares other tokens; give it a weight above 0")
    if not config.student.model and not config.student.config:
        faults.append(
            f"student.model=null with {given}: a student of the teacher's layers reads the teacher's tokens; give "
            "student.model=<folder>, or a student from scratch"
        )
    return faults


def _layers_faults(config: DictConfig, given: str) -> list[str]:
    """Of a task student of the teacher's layers."""
    faults = []
    if config.data.tokenizer is not None and not config.student.model and not config.student.config:
        faults.append(
            f"data.tokenizer={config.data.tokenizer} with {given}: a student of the teacher's layers has its "
            "embeddings, of its tokens; give student.model=<folder>, or a student from scratch"
        )
    return faults


def _compared_by_token(config: DictConfig, given: str, terms: tuple[str, ...]) -> list[str]:
    """Of what needs the same tokens at the same places."""
    objective = config.objective
    faults = [
        f"objective.terms.{name}.weight={objective.terms[name].weight} with {given}: compares models token by token, "
        "and theirs differ; use 0"
        for name in terms
        if objective.terms[name].weight or objective.terms[name].schedule != "constant"
    ]
    if objective.matches:
        faults.append(
            f"objective.matches={objective.matches} with {given}: compares models token by token, and the lengths of "
            "theirs differ; use null"
        )
    if objective.interchange.mapping is not None:
        faults.append(
            f"objective.interchange.mapping={objective.interchange.mapping} with {given}: swaps states of the same "
            "tokens, and theirs differ; use null"
        )
    return faults
