"""Checks of training runs and evaluations that the methods share. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from potstill.config import EvaluateConfig, TrainConfig
from potstill.config.benchmarks import swaps_of
from potstill.validation.benchmarks import benchmark_problems, comparison_problems
from potstill.validation.exports import export_problems
from potstill.validation.models import length_problems, model_problems, spec_of
from potstill.validation.objectives import objective_problems


def distillation_problems(config: TrainConfig, data: list[str], *, kind: str | None, models: bool = True) -> list[str]:
    """User errors of a run that trains one transformer on a corpus or on a task.

    Args:
        config: of the run.
        data: user errors of its data, which are of the right kind.
        kind: of a task; None for a language model.
        models: whether the models exist already.
    """
    return [
        *objective_problems(config.losses, kind),
        *own_module_problems(config),
        *benchmark_problems(config),
        *data,
        *(model_problems(config) if models else []),
    ]


def evaluation_problems(
    config: EvaluateConfig, models: Sequence[str], own: list[str], *, masked: bool | None = None
) -> list[str]:
    """User errors of an evaluation of transformers that read one sequence.

    Args:
        config: of the evaluation.
        models: folders or hub ids.
        own: user errors of the benchmark and its data.
        masked: whether the models must be masked, or causal, language models; None: any.
    """
    problems, specs = list(own), []
    for model in models:
        spec = spec_of("model", model, problems)
        problems += length_problems(config.data, {f"model={model}": spec})
        if spec and masked is not None and not spec.depth:
            problems.append(f"model={model}: makes vectors of texts; benchmark=sts or retrieval")
        elif spec and masked is not None and (spec.kind == "masked") != masked:
            right = "clm" if spec.kind == "causal" else "mlm"
            problems.append(f"benchmark={config.benchmark.name}: {model} is a {spec.kind} language model; use {right}")
        specs.append(spec)
    if swaps_of(config.benchmark).mapping is not None:
        problems += comparison_problems(config, list(models), specs)
    return problems + export_problems(config)


def own_module_paths(config: TrainConfig) -> dict[str, str | None]:
    """The dotted paths of `custom`, by key; None where a path is not given."""
    own = config.custom
    made = {f"custom.{key}": getattr(own, key) for key in ("teacher", "student", "data")} | own.every_teacher
    paths = {f"{key}._target_": settings.get("_target_") for key, settings in made.items()}
    return paths | own.teacher_adaptors | {f"custom.{key}": getattr(own, key) for key in ("adaptor", "forward")}


def own_module_problems(config: TrainConfig) -> list[str]:
    """Modules of the user's own, given to a method that trains transformers."""
    return [
        f"{key}={value}: is of objective=custom; leave it out"
        for key, value in own_module_paths(config).items()
        if value is not None
    ]
