"""Schedules of the weights of terms: their keys, and the weight at each step.

The keys are checked without torch, so an invalid schedule is rejected before anything is loaded.

Source: Yang et al. 2020 (TextBrewer, arXiv:2002.12620), weight schedulers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from potstill.errors import ConfigError
from potstill.runtime.dotted import find, is_path, reason
from potstill.runtime.ranges import WEIGHT

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
}
# Of torch.optim.lr_scheduler: those that need no function, metric or known end.
TORCH_SCHEDULES = (
    "StepLR", "MultiStepLR", "ConstantLR", "LinearLR", "ExponentialLR", "PolynomialLR", "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
)  # fmt: skip


@dataclass(frozen=True)
class WeightSchedule:
    """Weight of a term at each step.

    Attributes:
        kind: `linear` or `cosine`, from `start` to `end`; a learning-rate schedule of torch that scales `start`; or
            the dotted path of a function of the progress, 0 to 1, that returns a factor of `start`.
        start: weight at the first step.
        end: weight after `steps` optimizer steps, of `linear` and `cosine`.
        steps: optimizer steps until the progress is 1; 0: those of the run.
        arguments: arguments of torch's schedule, without the optimizer.
    """

    kind: str
    start: float
    end: float = 0.0
    steps: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> float:
        """The weight after all steps of `linear` and `cosine`; of others, whose last is not known, the start weight."""
        return self.end if self.kind in SHAPES else self.start

    def __call__(self, step: int, total: int = 0) -> float:
        """The weight at an optimizer step.

        Args:
            step: counted from 0.
            total: steps of the run, if `steps` is 0.

        Raises:
            ConfigError: torch's schedule does not accept the arguments, or the user's own function does not exist or
                returns no weight.
        """
        progress = min(step / max(self.steps or total, 1), 1.0)
        if self.kind in SHAPES:
            return self.start + (self.end - self.start) * SHAPES[self.kind](progress)
        return self._own(progress) if is_path(self.kind) else self._torch(step)

    def _own(self, progress: float) -> float:
        try:
            factor = float(self._function(progress))
        except ConfigError:
            raise
        except Exception as error:  # whatever the user's code raises
            raise ConfigError(f"schedule={self.kind}: {reason(error)}; a function of the progress, 0 to 1") from error
        if factor * self.start not in WEIGHT:
            raise ConfigError(f"schedule={self.kind}: makes the weight {factor * self.start}; {WEIGHT}")
        return factor * self.start

    @cached_property
    def _function(self) -> Callable[[float], float]:
        return find("schedule", self.kind)

    @cached_property
    def _torch(self) -> Callable[[int], float]:
        """Weights of torch's schedule; a resumed run replays the earlier steps, which takes microseconds each."""
        import torch

        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=self.start)
        try:
            schedule = getattr(torch.optim.lr_scheduler, self.kind)(optimizer, **self.arguments)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"schedule_args={dict(self.arguments)}: not of schedule={self.kind} ({error})") from error
        weights = [float(optimizer.param_groups[0]["lr"])]

        def weight(step: int) -> float:
            while len(weights) <= step:
                optimizer.step()
                schedule.step()
                weights.append(float(optimizer.param_groups[0]["lr"]))
            return weights[step]

        return weight


def schedule_problem(schedule: str, end: float | None, steps: int, arguments: Any) -> str | None:
    """Error in the keys of a schedule; None if they are valid."""
    if is_path(schedule):
        return None if end is None and not arguments else f"schedule={schedule}: has no end and no schedule_args"
    if schedule in TORCH_SCHEDULES:
        return _torch_schedule_problem(schedule, end, steps, arguments)
    if schedule != "constant" and schedule not in SHAPES:
        return f"schedule={schedule}: one of constant, {', '.join((*SHAPES, *TORCH_SCHEDULES))}, or a dotted path"
    if arguments:
        return f"schedule_args={arguments}: schedule={schedule} has none; those of torch do, such as ExponentialLR"
    if schedule == "constant":
        if end is not None or steps:
            return f"schedule=constant: keeps its weight, without end={end} and steps={steps}; use linear or cosine"
        return None
    if end is None:
        return f"end=null: schedule={schedule} needs the weight at its end"
    return None


def _torch_schedule_problem(schedule: str, end: float | None, steps: int, arguments: Any) -> str | None:
    if end is not None or steps:
        return f"end={end}, steps={steps}: schedule={schedule} takes schedule_args={{...}} instead"
    if not isinstance(arguments, Mapping):
        return f"schedule_args={arguments}: the arguments of torch's {schedule} by name"
    for name, value in arguments.items():
        if not all(n in WEIGHT or isinstance(n, bool) for n in (value if isinstance(value, list | tuple) else [value])):
            return f"schedule_args.{name}={value}: a number, 0 or more, or a list of them"
    try:
        WeightSchedule(schedule, 1.0, arguments=arguments)(1)
    except ConfigError as error:
        return str(error)
    return None
