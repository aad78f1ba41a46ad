"""Training methods and evaluations: one package for each, chosen by the options of a run.

`objective.method` and `benchmark.evaluator` name a class of the user's own by its dotted path.
"""

from __future__ import annotations

from typing import TypeVar

from omegaconf import DictConfig

from potstill.config.instantiate import find
from potstill.errors import ConfigError
from potstill.methods.base import Evaluator, Method, Training

__all__ = ["Evaluator", "Method", "Training", "evaluator_of", "method_of"]

_Kind = TypeVar("_Kind", Method, Evaluator)  # type: ignore[type-abstract]


def method_of(config: DictConfig) -> Method:
    """The method of a training run.

    Raises:
        ConfigError: `objective.method` is no method.
    """
    if config.objective.method is not None:
        return _named("objective.method", config.objective.method, Method)  # type: ignore[type-abstract]
    from potstill.methods.custom import Custom
    from potstill.methods.language import Language
    from potstill.methods.multitask import Multitask
    from potstill.methods.step_by_step import StepByStep
    from potstill.methods.task import TaskModels

    methods: tuple[Method, ...] = (Multitask(), Custom(), StepByStep(), TaskModels())
    return next((method for method in methods if method.applies(config)), Language())


def evaluator_of(config: DictConfig) -> Evaluator:
    """The evaluator of a benchmark.

    Raises:
        ConfigError: `benchmark.evaluator` is no evaluator.
    """
    if config.benchmark.evaluator is not None:
        return _named("benchmark.evaluator", config.benchmark.evaluator, Evaluator)  # type: ignore[type-abstract]
    from potstill.methods.efficiency import EfficiencyEvaluator
    from potstill.methods.language import LanguageEvaluator
    from potstill.methods.step_by_step import StepByStepEvaluator
    from potstill.methods.task import TaskEvaluator

    evaluators: tuple[Evaluator, ...] = (EfficiencyEvaluator(), StepByStepEvaluator(), TaskEvaluator())
    return next((own for own in evaluators if own.applies(config)), LanguageEvaluator())


def _named(key: str, path: str, kind: type[_Kind]) -> _Kind:
    found = find(key, path)
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ConfigError(f"{key}={path}: not a subclass of potstill.methods.{kind.__name__}")
    return found()
