"""Problems of an objective: its terms and their weights."""

from __future__ import annotations

from potstill.config.objectives.base import LossConfig, SoftTargetsConfig, TaughtConfig, exchange_of, matches_of
from potstill.config.objectives.terms import TermConfig
from potstill.data.tasks.labels import MULTI_LABEL, REGRESSION, SPANS
from potstill.objectives.schedules import schedule_problem


def objective_problems(objective: LossConfig, task: str | None = None) -> list[str]:
    """Problems of temperature and weights; `task` is a task model's kind."""
    problems = []
    for name, term in objective.terms.items():
        problems += _schedule_problems(name, term)
    if isinstance(objective, SoftTargetsConfig):
        problems += _soft_target_problems(objective, task)
    hard_weight = objective.hard_weight if isinstance(objective, TaughtConfig) else 0.0
    effective = [hard_weight if term.weight is None else term.weight for term in objective.terms.values()]
    unscheduled = all(term.schedule == "constant" for term in objective.terms.values())
    if unscheduled and not matches_of(objective) and not any(effective):
        names = ", ".join(name for name, _ in objective.terms.items())
        problems.append(f"objective.terms: all weights are 0; give one of {names} a weight above 0")
    if exchange_of(objective).mapping is not None:
        return problems
    return problems + [
        f"objective.terms.{name}.weight={term.weight}: swaps states between inputs, and objective.interchange.mapping="
        "null names none; use objective=diito, or name a mapping"
        for name, term in objective.terms.given("causal_ce", "causal_cos").items()
    ]


def _schedule_problems(name: str, term: TermConfig) -> list[str]:
    """Problems of the schedule of a weight."""
    if term.schedule == "constant" and term.start is not None:
        return [f"objective.terms.{name}.start={term.start}: schedule=constant keeps the weight; use linear or cosine"]
    error = schedule_problem(term.schedule, term.end, term.steps, term.schedule_args)
    return [f"objective.terms.{name}.{error}"] if error else []


def _soft_target_problems(objective: SoftTargetsConfig, task: str | None) -> list[str]:
    """Problems of the loss of soft targets and of its temperatures."""
    problems = []
    if task == SPANS and objective.temperature_schedule == "flsw":
        problems.append("objective.temperature_schedule=flsw: depends on the padding of answers' logits; use cwsm")
    if task == MULTI_LABEL and objective.temperature_schedule == "flsw":
        problems.append(
            "objective.temperature_schedule=flsw: compares the distributions over all labels of a row, which sets of "
            "labels have none of; use cwsm"
        )
    if task not in (None, REGRESSION):
        return problems
    own: dict[str, str | bool] = {"temperature_schedule": "constant", "probability_shift": False}
    if task is None:  # soft targets of a regression are the scores, whatever the loss is of distributions
        own["soft_target"] = "kl"
    where = "of task models alone; objective=task_kd" if task is None else "a regression has no distribution"
    return problems + [
        f"objective.{key}={str(objective[key]).lower()}: {where}, or leave it {str(plain).lower()}"
        for key, plain in own.items()
        if objective[key] != plain
    ]
