"""Problems of several teachers, and of what is matched within them."""

from __future__ import annotations

from potstill.config import TrainConfig, teachers_of
from potstill.config.benchmarks import RegressionConfig, TaskBenchmarkConfig
from potstill.config.defaults import trains_task
from potstill.config.objectives.base import SoftTargetsConfig, exchange_of, matches_of
from potstill.data.tasks.labels import REGRESSION
from potstill.data.tasks.splits import task_of
from potstill.errors import PotstillError
from potstill.models.heads import head_problem, label_order, labels_from_settings, problem_type_error, settings_problem
from potstill.models.specs import ModelSpec, read_settings, vocabularies_fit
from potstill.objectives.matching import ATTENTION, COUNTERFACTUAL, MODULE, RELATION, read_matches

OF_STATES = ("cos", "causal_cos")  # terms that need models of one width


def teacher_problems(config: TrainConfig) -> list[str]:
    """Problems of the keys that name teachers and average them."""
    teacher, problems = config.teacher, []
    if teacher.models is None:
        if teacher.weights is not None:
            problems.append(f"teacher.weights={list(teacher.weights)}: are of several teachers, teacher.models=[a,b]")
        return problems
    given = f"teacher.models={list(teacher.models)}"
    if not teacher.models:
        problems.append(f"{given}: name two or more folders or hub ids, or use teacher.model")
    if teacher.model is not None:
        problems.append(f"{given} with teacher.model={teacher.model}: give one of them")
    weights = teacher.weights
    if weights is not None and len(weights) != len(teacher.models):
        problems.append(f"teacher.weights={list(weights)}: a number for each of {len(teacher.models)} teachers")
    if not trains_task(config):
        problems.append(f"{given}: objective={config.objective.name} has one teacher; teacher.model=")
    elif len(teacher.models) > 1:
        problems += _alone(config, given)
    return problems


def _alone(config: TrainConfig, given: str) -> list[str]:
    """Terms and keys that need a single teacher."""
    objective, exchange = config.losses, exchange_of(config.objective)
    problems = [
        f"objective.terms.{name}.weight={term.weight}: reads one teacher, and {given} names more; use 0"
        for name, term in objective.terms.given("cos", "causal_ce", "causal_cos").items()
    ]
    if exchange.mapping is not None:
        problems.append(f"objective.interchange.mapping={exchange.mapping}: needs one teacher, and {given} names more")
    if config.teacher.average == "probabilities" and (
        (isinstance(objective, SoftTargetsConfig) and objective.soft_target == "mse")
        or objective.terms.given("mse")
        or isinstance(config.benchmark, RegressionConfig)
    ):
        problems.append(
            "teacher.average=probabilities: distances of logits and of scores need the mean of logits; use logits"
        )
    return problems


def label_problems(config: TrainConfig) -> list[str]:
    """Problems of teachers whose labels are not those of the benchmark or of each other."""
    if not isinstance(config.benchmark, TaskBenchmarkConfig):
        return []
    try:
        task = task_of(config.benchmark)
    except PotstillError:
        return []  # reported with the benchmark
    key, problems = "teacher.models" if config.teacher.models else "teacher.model", []
    labels: tuple[str, ...] | None = task.labels if task.labels or task.kind == REGRESSION else None
    first: str | None = None
    for name in teachers_of(config):
        try:
            settings = read_settings(key, name)
        except PotstillError:
            continue  # reported where its sizes are read
        if error := settings_problem(settings) or problem_type_error(settings, task.head, task.problem):
            problems.append(f"{key}={name}: {error}")
            continue
        found = labels_from_settings(settings, task.head)
        if found is not None and labels is None:
            labels, first = found, name
        elif found is None or label_order(found, labels or (), task.ordered) is None:
            than = f" (those of {first})" if first else ""
            problems.append(f"{key}={name}{than}: {head_problem(found, labels, task.head)}")
    return problems


def match_problems(config: TrainConfig, teachers: list[ModelSpec], student: ModelSpec) -> list[str]:
    """Problems of intermediate matches between models of these sizes."""
    try:
        matches = read_matches(matches_of(config.objective), teachers, student)
    except PotstillError as error:
        return [str(error)]
    swapped = [match.term for match in matches if match.run == COUNTERFACTUAL]
    if swapped and exchange_of(config.objective).mapping is None:
        return [
            f"objective.matches: run=counterfactual ({', '.join(swapped)}) reads states after an intervention, and "
            "objective.interchange.mapping=null names none; use objective=diito, or name a mapping"
        ]
    hooked = [match for match in matches if match.feature in (ATTENTION, RELATION, MODULE)]
    if hooked and config.compile:
        return [
            f"objective.matches: feature={hooked[0].feature} reads within a block, which compile=true hides; use "
            "compile=false, or match hidden states"
        ]
    return []


def width_problems(config: TrainConfig, teacher: ModelSpec, student: ModelSpec) -> list[str]:
    """Problems of terms that compare hidden states of different widths."""
    if teacher.width == student.width:
        return []
    match = f"[{{teacher: {teacher.depth}, student: {student.depth}, loss: cos, projection: linear}}]"
    return [
        f"objective.terms.{name}.weight={term.weight}: compares hidden states, and the student's are {student.width} "
        f"wide, the teacher's {teacher.width}; use 0"
        + (f", or project them, objective.matches={match}" if name == "cos" else "")
        for name, term in config.losses.terms.given(*OF_STATES).items()
    ]


def vocabulary_problems(teachers: list[ModelSpec]) -> list[str]:
    """Problems of teachers with different vocabularies."""
    sizes = [spec.vocab_size for spec in teachers]
    return [
        f"teacher.models: have vocabularies of {sizes[0]} and {size}: all must use one tokenizer"
        for size in sizes[1:]
        if not vocabularies_fit(sizes[0], size)
    ][:1]
