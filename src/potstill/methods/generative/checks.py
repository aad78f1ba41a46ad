"""Problems of generative distillation: what is sampled, by whom, and what reads it."""

from __future__ import annotations

from potstill.config import TrainConfig
from potstill.config.objectives import generative_of, matches_of
from potstill.validation.launch import SHARDED
from potstill.validation.models import planned_student, spec_of


def generative_problems(config: TrainConfig, *, models: bool = True) -> list[str]:
    """Problems of a training run with `objective=gkd`.

    Args:
        config: of the run.
        models: whether the models exist already.
    """
    objective, problems = generative_of(config), []
    compared = objective.terms.given("ce", "mse", "cos") or matches_of(objective)
    if objective.on_policy and not compared:
        problems.append(
            f"objective.on_policy={objective.on_policy}: no term compares student and teacher on what is sampled; give "
            "objective.terms.ce a weight above 0, or use 0"
        )
    if config.trainer.strategy in SHARDED and (objective.on_policy or objective.sequence_kd):
        problems.append(
            f"trainer.strategy={config.trainer.strategy}: a rank with a part of the weights cannot write by itself; "
            "use strategy=ddp, or objective.on_policy=0 objective.sequence_kd=false"
        )
    if models and (objective.on_policy or objective.sequence_kd):
        problems += _length_problems(config, objective.sampling.max_new_tokens)
    return problems


def _length_problems(config: TrainConfig, wanted: int) -> list[str]:
    specs = {"the student": planned_student(config, {})}
    if config.teacher.model is not None:
        specs["teacher.model"] = spec_of("teacher.model", config.teacher.model, [])
    return [
        f"objective.sampling.max_new_tokens={wanted}: {key} reads at most {spec.max_length} tokens, with the prompt; "
        f"use at most {spec.max_length - 1}"
        for key, spec in specs.items()
        if spec is not None and wanted >= spec.max_length
    ][:1]
