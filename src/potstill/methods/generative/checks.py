"""Problems of generative distillation: what is sampled, by whom, and what reads it."""

from __future__ import annotations

from collections.abc import Mapping

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.benchmarks import generation_benchmark_of
from potstill.config.data import ConversationsDataConfig, data_of
from potstill.config.objectives.base import matches_of
from potstill.config.objectives.generative import generative_of
from potstill.methods.common.checks import evaluation_problems
from potstill.models.specs import ModelSpec
from potstill.validation.data import text_problems
from potstill.validation.exports import forms_of
from potstill.validation.launch import SHARDED
from potstill.validation.models import planned_student, spec_of

SCORES = ("exact_match", "rouge_l")  # metrics of completions


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
    if config.trainer.strategy in SHARDED:
        problems.append(
            f"trainer.strategy={config.trainer.strategy}: a rank with a part of the weights cannot write by itself; "
            "use strategy=ddp, or objective=kd, which writes nothing"
        )
    if models and (objective.on_policy or objective.sequence_kd):
        problems += _length_problems(config, objective.sampling.max_new_tokens)
    return problems


def _length_problems(config: TrainConfig, wanted: int) -> list[str]:
    specs = {"the student": planned_student(config, {})}
    if config.teacher.model is not None:
        specs["teacher.model"] = spec_of("teacher.model", config.teacher.model, [])
    return _too_many("objective.sampling.max_new_tokens", wanted, specs)


def evaluated_generation_problems(config: EvaluateConfig, models: list[str]) -> list[str]:
    """Problems of an evaluation with `benchmark=generation`."""
    benchmark, data = generation_benchmark_of(config.benchmark), data_of(config, ConversationsDataConfig)
    problems = text_problems(data, evaluating=True, eval_file=benchmark.eval_file)
    if benchmark.monitor not in SCORES:
        problems.append(f"benchmark.monitor={benchmark.monitor}: one of {', '.join(SCORES)}")
    if forms := forms_of(config):
        problems.append(f"export={','.join(forms)}: an exported model writes nothing by itself; export=null")
    problems = evaluation_problems(config, models, problems, masked=False)
    specs = {f"model={model}": spec_of("model", model, []) for model in models}
    return problems + _too_many("benchmark.max_new_tokens", benchmark.max_new_tokens, specs)


def _too_many(key: str, wanted: int, specs: Mapping[str, ModelSpec | None]) -> list[str]:
    """The problem of completions that leave no position for a prompt."""
    return [
        f"{key}={wanted}: {name} reads at most {spec.max_length} tokens, with the prompt; use at most "
        f"{spec.max_length - 1}"
        for name, spec in specs.items()
        if spec is not None and wanted >= spec.max_length
    ][:1]
