"""The objective of several tasks of one student: each step is of one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from potstill.objectives.task import TaskObjective


class SharedMatches:
    """Parameters that the matches of several tasks train with the student.

    Args:
        tasks: objectives by the name of their task.
    """

    def __init__(self, tasks: Mapping[str, TaskObjective]):
        self.projections = nn.ModuleDict()
        self.rates: dict[str, float | None] = {}
        for task, objective in tasks.items():
            if objective.matches is None:
                continue
            for name, rate in objective.matches.rates.items():
                own = f"{task}-{name}"  # neither has a hyphen
                self.projections[own] = objective.matches.projections[name]
                self.rates[own] = rate


@dataclass(frozen=True)
class SharedObjective:
    """Objectives by the name of their task; a term is called `<term>_<task>`."""

    tasks: Mapping[str, TaskObjective]

    @property
    def active(self) -> tuple[str, ...]:
        """Terms with a weight, of all tasks."""
        return tuple(f"{term}_{name}" for name, objective in self.tasks.items() for term in objective.active)

    @property
    def matches(self) -> SharedMatches:
        """Projections of all tasks."""
        return SharedMatches(self.tasks)
