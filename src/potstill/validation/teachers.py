"""Faults of several teachers, and of what is matched within them."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from potstill.config import teachers_of
from potstill.config.defaults import trains_task
from potstill.data.tasks.labels import REGRESSION
from potstill.data.tasks.splits import is_task, task_of
from potstill.errors import PotstillError
from potstill.models.head_labels import head_fault, label_order, labels_from_settings
from potstill.models.head_problems import problem_fault, settings_fault
from potstill.models.specs import ModelSpec, read_settings, vocabularies_fit
from potstill.objectives.matching import ATTENTION, MODULE, RELATION, read_matches

OF_STATES = ("cos", "causal_cos")  # terms that need models of one width
AVERAGES = ("logits", "probabilities")


def teacher_faults(config: DictConfig) -> list[str]:
    """Of the keys that say which teachers there are, and how they are averaged."""
    teacher, faults = config.teacher, []
    if teacher.average not in AVERAGES:
        faults.append(f"teacher.average={teacher.average}: one of {', '.join(AVERAGES)}")
    if teacher.models is None:
        if teacher.weights is not None:
            faults.append(
                f"teacher.weights={list(teacher.weights)}: are of several teachers, teacher.models=[a,b]"
            )
        return faults
    given = f"teacher.models={list(teacher.models)}"
    if not teacher.models:
        faults.append(f"{given}: name two or more folders or hub ids, or use teacher.model")
    if teacher.model is not None:
        faults.append(f"{given} with teacher.model={teacher.model}: give one of them")
    weights = teacher.weights
    if weights is not None and len(weights) != len(teacher.models):
        faults.append(f"teacher.weights={list(weights)}: a number for each of {len(teacher.models)} teachers")
    if not trains_task(config):
        faults.append(
            f"{given}: objective={config.objective.name} of a language model has one teacher; teacher.model="
        )
    elif len(teacher.models) > 1 and is_task(config.benchmark):
        faults += _alone(config, given)
    return faults


def _alone(config: DictConfig, given: str) -> list[str]:
    """What only one teacher can be read for."""
    objective = config.objective
    faults = [
        f"objective.terms.{term}.weight={objective.terms[term].weight}: reads one teacher, and {given} "
        "names more; use 0"
        for term in ("cos", "causal_ce", "causal_cos")
        if objective.terms[term].weight
    ]
    if objective.interchange.mapping is not None:
        faults.append(
            f"objective.interchange.mapping={objective.interchange.mapping}: needs one teacher, and {given} names more"
        )
    if config.teacher.average == "probabilities" and (
        objective.soft_target == "mse" or objective.terms.mse.weight or config.benchmark.task == REGRESSION
    ):
        faults.append(
            "teacher.average=probabilities: distances of logits and of scores need the mean of logits; use logits"
        )
    return faults


def label_faults(config: DictConfig) -> list[str]:
    """Of teachers of a task whose heads tell other labels apart than the benchmark's, or each other's."""
    if not is_task(config.benchmark):
        return []
    try:
        task = task_of(config.benchmark)
    except PotstillError:
        return []  # reported with the benchmark
    key, faults = "teacher.models" if config.teacher.models else "teacher.model", []
    labels: tuple[str, ...] | None = task.labels if task.labels or task.kind == REGRESSION else None
    first: str | None = None
    for name in teachers_of(config):
        try:
            settings = read_settings(key, name)
        except PotstillError:
            continue  # reported where its sizes are read
        if fault := settings_fault(settings) or problem_fault(settings, task.head, task.problem):
            faults.append(f"{key}={name}: {fault}")
            continue
        found = labels_from_settings(settings, task.head)
        if found is not None and labels is None:
            labels, first = found, name
        elif found is None or label_order(found, labels or (), task.ordered) is None:
            than = f" (those of {first})" if first else ""
            faults.append(f"{key}={name}{than}: {head_fault(found, labels, task.head)}")
    return faults


def match_faults(config: DictConfig, teachers: list[ModelSpec], student: ModelSpec) -> list[str]:
    """Of intermediate matches between models of these sizes."""
    value = OmegaConf.to_container(OmegaConf.create({"of": config.objective.matches}), resolve=True)
    try:
        matches = read_matches(value["of"], teachers, student)  # type: ignore[index,call-overload]
    except PotstillError as fault:
        return [str(fault)]
    hooked = [match for match in matches if match.feature in (ATTENTION, RELATION, MODULE)]
    if hooked and config.compile:
        return [
            f"objective.matches: feature={hooked[0].feature} reads within a block, which compile=true hides; use "
            "compile=false, or match hidden states"
        ]
    return []


def width_faults(config: DictConfig, teacher: ModelSpec, student: ModelSpec) -> list[str]:
    """Of terms that compare hidden states of models of these widths."""
    if teacher.width == student.width:
        return []
    match = f"[{{teacher: {teacher.depth}, student: {student.depth}, loss: cos, projection: linear}}]"
    return [
        f"objective.terms.{name}.weight={term.weight}: compares hidden states, and the student's are {student.width} "
        f"wide, the teacher's {teacher.width}; use 0"
        + (f", or project them, objective.matches={match}" if name == "cos" else "")
        for name, term in config.objective.terms.items()
        if name in OF_STATES and (term.weight or term.schedule != "constant")
    ]


def vocabulary_faults(teachers: list[ModelSpec]) -> list[str]:
    """Of teachers that cannot read the same tokens."""
    sizes = [spec.vocab_size for spec in teachers]
    return [
        f"teacher.models: have vocabularies of {sizes[0]} and {size}: all must use one tokenizer"
        for size in sizes[1:]
        if not vocabularies_fit(sizes[0], size)
    ][:1]
