"""Checks of training runs and evaluations that the methods share. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from potstill.validation.benchmarks import benchmark_faults, comparison_faults
from potstill.validation.exports import export_faults
from potstill.validation.models import length_faults, model_faults, spec_of
from potstill.validation.objectives import objective_faults


def distillation_problems(
    config: DictConfig, data: list[str], *, kind: str | None, models: bool = True
) -> list[str]:
    """User errors of a run that trains one transformer on a corpus or on a task.

    Args:
        config: of the run.
        data: user errors of its data.
        kind: of a task; None for a language model.
        models: whether the models exist already.
    """
    return rationale_set_problems(config.data, f"objective={config.objective.name}") or [
        *objective_faults(config.objective, kind),
        *own_module_problems(config),
        *benchmark_faults(config),
        *data,
        *(model_faults(config) if models else []),
    ]


def evaluation_problems(
    config: DictConfig, models: Sequence[str], own: list[str], *, kind: str | None = None
) -> list[str]:
    """User errors of an evaluation of transformers that read one sequence.

    Args:
        config: of the evaluation.
        models: folders or hub ids.
        own: user errors of the benchmark and its data.
        kind: `masked` or `causal` where the models must be of that kind.
    """
    faults = rationale_set_problems(config.data, f"benchmark={config.benchmark.name}") or list(own)
    specs = []
    for model in models:
        spec = spec_of("model", model, faults)
        faults += length_faults(config.data, {f"model={model}": spec})
        if spec and kind and spec.kind != kind:
            right = "clm" if spec.kind == "causal" else "mlm"
            faults.append(
                f"benchmark={config.benchmark.name}: {model} is a {spec.kind} language model; use {right}"
            )
        specs.append(spec)
    if config.benchmark.interchange.mapping is not None:
        faults += comparison_faults(config, list(models), specs)
    return faults + export_faults(config)


def own_module_paths(config: DictConfig) -> dict[str, str | None]:
    """The dotted paths of `adapted`, by key; None where a path is not given."""
    own = config.adapted
    paths = {f"adapted.{key}._target_": own[key].get("_target_") for key in ("teacher", "student", "data")}
    return paths | {f"adapted.{key}": own[key] for key in ("adaptor", "teacher_adaptor", "forward")}


def own_module_problems(config: DictConfig) -> list[str]:
    """Modules of the user's own, given to a method that trains transformers."""
    return [
        f"{key}={value}: is of objective=adapted; leave it out"
        for key, value in own_module_paths(config).items()
        if value is not None
    ]


def rationale_set_problems(data: DictConfig, wanted: str) -> list[str]:
    """Data with rationales where `wanted`, an objective or a benchmark, reads something else."""
    if data.set is None:
        return []
    return [
        f"data.set={data.set}: its rows have rationales, which {wanted} does not read; use objective=step_by_step "
        "(evaluate.py: benchmark=step_by_step), or another data=<option>"
    ]
