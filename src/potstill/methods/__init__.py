"""Training methods and evaluations: one package for each, chosen by the options of a run.

`objective.method` and `benchmark.evaluator` name a class of the user's own by its dotted path.
"""

from __future__ import annotations

from typing import TypeVar

from potstill.config import EvaluateConfig, TrainConfig
from potstill.errors import ConfigError
from potstill.methods.base import Evaluator, Method, Training
from potstill.runtime.dotted import find

__all__ = ["Evaluator", "Method", "Training", "evaluator_of", "method_of"]

_Kind = TypeVar("_Kind", Method, Evaluator)


def method_of(config: TrainConfig) -> Method:
    """The method of a training run.

    Raises:
        ConfigError: `objective.method` is not a method.
    """
    if config.objective.method is not None:
        return _named("objective.method", config.objective.method, Method)  # type: ignore[type-abstract]
    from potstill.methods.custom import Custom
    from potstill.methods.embedding import Embedding
    from potstill.methods.generative import Generative
    from potstill.methods.language import Language
    from potstill.methods.multitask import Multitask
    from potstill.methods.step_by_step import StepByStep
    from potstill.methods.task import TaskModels

    methods: tuple[Method, ...] = (Multitask(), Custom(), StepByStep(), Generative(), Embedding(), TaskModels())
    return next((method for method in methods if method.applies(config)), Language())


def evaluator_of(config: EvaluateConfig) -> Evaluator:
    """The evaluator of a benchmark.

    Raises:
        ConfigError: `benchmark.evaluator` is not an evaluator, or is null for an option without a kind.
    """
    if config.benchmark.evaluator is not None:
        return _named("benchmark.evaluator", config.benchmark.evaluator, Evaluator)  # type: ignore[type-abstract]
    from potstill.methods.efficiency import EfficiencyEvaluator
    from potstill.methods.embedding import EncoderEvaluator
    from potstill.methods.generative import GenerationEvaluation
    from potstill.methods.language import LanguageEvaluator
    from potstill.methods.step_by_step import StepByStepEvaluator
    from potstill.methods.task import TaskEvaluator

    known: tuple[Evaluator, ...] = (
        LanguageEvaluator(), EncoderEvaluator(), TaskEvaluator(), GenerationEvaluation(), StepByStepEvaluator(),
        EfficiencyEvaluator(),
    )  # fmt: skip
    for own in known:
        if own.applies(config):
            return own
    raise ConfigError(
        f"benchmark.evaluator=null: benchmark={config.benchmark.name} is of no kind; name its evaluator, or begin its "
        "file with the schema of a kind, defaults: [/schema/benchmark/classification@_here_, _self_]"
    )


def _named(key: str, path: str, kind: type[_Kind]) -> _Kind:
    found = find(key, path)
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ConfigError(f"{key}={path}: not a subclass of potstill.methods.{kind.__name__}")
    return found()
