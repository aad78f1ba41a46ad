"""Faults of teacher and student, from their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from omegaconf import DictConfig, OmegaConf

from potstill.config import teachers_of
from potstill.config.defaults import TASKS, trains_task
from potstill.config.learning import CacheConfig
from potstill.data.tasks.labels import SPANS
from potstill.errors import PotstillError
from potstill.models.head_problems import settings_fault
from potstill.models.specs import (
    ModelSpec,
    check_layers,
    check_pair,
    default_layers,
    read_settings,
    read_spec,
    spec_from_settings,
)
from potstill.validation.inputs import own_input_faults
from potstill.validation.interchange import mapping_faults
from potstill.validation.objectives import SUPERVISED
from potstill.validation.teachers import (
    label_faults,
    match_faults,
    teacher_faults,
    vocabulary_faults,
    width_faults,
)

CHECKPOINTING = ("selective", "full")
ATTENTION = ("sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")


def spec_of(key: str, value: str, faults: list[str]) -> ModelSpec | None:
    """A model's facts; None, and one more fault, where they cannot be read."""
    try:
        return read_spec(key, value)
    except PotstillError as fault:
        faults.append(str(fault))
        return None


def attention_faults(config: DictConfig) -> list[str]:
    """Of names that transformers does not know; one with a slash is a kernel on the hub."""
    return [
        f"{key}.attention={config[key].attention}: one of {', '.join(ATTENTION)}"
        for key in ("teacher", "student")
        if config[key].attention not in ATTENTION and "/" not in config[key].attention
    ]


def model_faults(config: DictConfig, made: ModelSpec | None = None) -> list[str]:
    """Of teacher and student: each by itself, together, and with the objective and the data.

    Args:
        config: of a training run.
        made: the student's facts, where it is made of the layers of another task's teacher.
    """
    faults: list[str] = []
    objective, student, name = config.objective, config.student, config.objective.name
    faults += [*teacher_faults(config), *own_input_faults(config)]
    own = config.teacher.tokenizer is not None  # teachers read their own tokens
    key = "teacher.models" if config.teacher.models else "teacher.model"
    teachers = [spec_of(key, name, faults) for name in teachers_of(config)]
    teacher = teachers[0] if teachers else None
    learner = made or _learner(student, faults)
    if faults:
        return faults
    if student.model and (student.layers or student.config):
        both = "student.layers" if student.layers else "student.config"
        faults.append(
            f"student.model={student.model} with {both}={student[both.split('.')[1]]}: give one of them"
        )
    elif student.layers and student.config:
        faults.append(
            f"student.layers={student.layers} with student.config={student.config}: a student from scratch has none of "
            "the teacher's layers; give one of them"
        )
    faults += attention_faults(config)
    if student.checkpointing not in (None, *CHECKPOINTING):
        faults.append(
            f"student.checkpointing={student.checkpointing}: one of {', '.join(CHECKPOINTING)}, or null"
        )
    elif student.checkpointing == "selective" and config.compile:
        faults.append(
            "student.checkpointing=selective: a compiled block hides its parts; use full, or compile=false"
        )
    needs_layers = not student.model and not student.config and made is None
    if teacher is None and name not in SUPERVISED + TASKS:
        faults.append(
            f"teacher.model=null: objective={name} needs a teacher, a folder or hub id; "
            "train one with `objective=mlm student=bert_small`"
        )
    elif teacher is None and needs_layers:
        faults.append(
            f"student.model=null: objective={name} trains student.model=<folder or hub id>, or a model from scratch "
            "(student=bert_small), or one made of the layers of teacher.model"
        )
    if name in TASKS and student.config and not student.model and not (teacher or config.data.tokenizer):
        faults.append(
            f"data.tokenizer=null: objective={name} of a model from scratch needs a tokenizer; "
            "data.tokenizer=<folder or hub id>"
        )
    if teacher and needs_layers and student.layers is not None:
        try:
            check_layers(list(student.layers), teacher.depth, "student.layers")
        except PotstillError as fault:
            faults.append(str(fault))
    if teacher and learner and (student.model or made) and name not in SUPERVISED + TASKS:
        faults += [] if own else _pair_faults_of(teacher, learner)
    if teacher and learner and name not in SUPERVISED + TASKS:
        faults += width_faults(config, teacher, learner)
    known = [spec for spec in teachers if spec is not None]
    if teacher and not trains_task(config):
        faults += _kept_faults(config.teacher.cache, teacher)
    faults += [] if own else vocabulary_faults(known)
    if trains_task(config):
        faults += label_faults(config) if name not in TASKS else []
        faults += _head_faults(student.model)
    if teacher and objective.matches is not None:
        depth = len(student.layers or default_layers(teacher.depth))
        faults += match_faults(config, known, learner or replace(teacher, depth=depth))
    if teacher and objective.interchange.mapping is not None and not faults:
        layers = student.layers or default_layers(teacher.depth)
        pupil = learner or replace(teacher, depth=len(layers))
        faults += mapping_faults(objective.interchange, teacher, pupil, "objective.interchange")
        if objective.interchange.pairing == "in_batch" and config.data.max_tokens is None:
            faults += _pair_faults(config.data.batch_size)
    needed = {
        "teacher.model": teacher if name not in SUPERVISED + TASKS or needs_layers else None,
        "the student": learner,
    }
    faults += length_faults(config.data, needed)
    spec = learner or (teacher if needs_layers else None)
    if (
        objective.interchange.mapping is not None
        and trains_task(config)
        and objective.interchange.positions == "masked"
    ):
        faults.append(
            "objective.interchange.positions=masked: a task model masks nothing; use consecutive or free"
        )
    if spec and not spec.is_transformer:
        faults += _recurrent_faults(config, spec)
    if own and not trains_task(config):
        faults += [
            f"teacher.tokenizer={config.teacher.tokenizer}: {key} is a masked language model, which predicts what is "
            "hidden; other tokens are compared by causal ones"
            for key, model in (("teacher.model", teacher), ("the student", learner))
            if model is not None and model.kind == "masked"
        ]
    if spec and not trains_task(config):
        kind = spec.kind
        wrong = "clm" if kind == "masked" else "mlm"
        if objective.terms[wrong].weight:
            right = "mlm" if kind == "masked" else "clm"
            faults.append(
                f"objective.terms.{wrong}.weight={objective.terms[wrong].weight}: the student is a {kind} language "
                f"model; use {right}"
            )
        if kind == "causal" and objective.positions == "masked":
            faults.append("objective.positions=masked: a causal language model masks nothing; use all")
    return faults


def _kept_faults(cache: DictConfig, teacher: ModelSpec) -> list[str]:
    """Of more tokens than there are; the default keeps all of a small vocabulary."""
    if not cache.enabled or cache.form != "top" or cache.k <= max(teacher.vocab_size, CacheConfig().k):
        return []
    return [
        f"teacher.cache.k={cache.k}: the teacher's vocabulary has {teacher.vocab_size} tokens; that or fewer"
    ]


def _head_faults(model: str | None) -> list[str]:
    """Of a student whose config.json contradicts itself about its head."""
    if model is None:
        return []
    fault = settings_fault(read_settings("student.model", model))
    return [f"student.model={model}: {fault}"] if fault else []


def _recurrent_faults(config: DictConfig, spec: ModelSpec) -> list[str]:
    """Of a student without attention."""
    student, faults = config.student, []
    if not trains_task(config):
        faults.append(
            f"student.config.model_type={spec.model_type}: has no language-model head; use "
            "objective=task_kd or finetune"
        )
    elif config.benchmark is not None and config.benchmark.task == SPANS:
        faults.append(
            f"student.config.model_type={spec.model_type}: has no head for answers that are pieces of a text; choose a "
            "transformer, student=t3"
        )
    if student.checkpointing is not None:
        faults.append(
            f"student.checkpointing={student.checkpointing}: a {spec.model_type} makes nothing again; null"
        )
    if config.compile:
        faults.append(
            f"compile=true: the packed sequences of a {spec.model_type} cannot be compiled; use false"
        )
    return faults


def _pair_faults_of(teacher: ModelSpec, student: ModelSpec) -> list[str]:
    """Of two models that read the same tokens."""
    return [
        f"{fault}; or let the teacher read its own, teacher.tokenizer=own"
        if "one tokenizer" in fault
        else fault
        for fault in check_pair(teacher, student)
    ]


def _pair_faults(batch_size: int) -> list[str]:
    if batch_size > 1:
        return []
    return [
        f"data.batch_size={batch_size}: with objective.interchange.pairing=in_batch a sequence's source is another "
        "one of its batch; use data.batch_size=2 or more, or pairing=dataset"
    ]


def _learner(student: DictConfig, faults: list[str]) -> ModelSpec | None:
    """The student's facts where it is a model of its own; None where it is made of the teacher's layers."""
    if student.model:
        return spec_of("student.model", student.model, faults)
    if not student.config:
        return None
    try:
        settings = OmegaConf.to_container(student.config, resolve=True)
        return spec_from_settings(settings, "student.config")  # type: ignore[arg-type]
    except PotstillError as fault:
        faults.append(str(fault))
        return None


def length_faults(data: DictConfig, models: dict[str, ModelSpec | None]) -> list[str]:
    """Of sequences that are longer than models read."""
    return [
        f"data.max_length={data.max_length}: {key} reads at most {spec.max_length} tokens"
        for key, spec in models.items()
        if spec and data.max_length is not None and data.max_length > spec.max_length
    ]


def planned_student(config: DictConfig, planned: Mapping[str, ModelSpec]) -> ModelSpec | None:
    """The facts of the student that a run makes, before it runs; None where its models cannot be read.

    Args:
        config: of a training run.
        planned: facts of models that earlier stages will write, by folder.
    """
    student, names = config.student, teachers_of(config)
    if student.model:
        return _planned(student.model, planned)
    if student.config:
        return _learner(student, [])
    teacher = _planned(names[0], planned) if names else None
    if teacher is None:
        return None
    depth = len(student.layers or default_layers(teacher.depth))
    return replace(teacher, depth=depth, model_type=student.architecture or teacher.model_type)


def planned_faults(config: DictConfig, planned: Mapping[str, ModelSpec]) -> list[str]:
    """Of what a later stage of a recipe compares, as far as the sizes of its models are known before it runs.

    Args:
        config: of a training run.
        planned: as in `planned_student`.
    """
    if config.objective.name in SUPERVISED + TASKS:
        return []
    teachers = [spec for name in teachers_of(config) if (spec := _planned(name, planned)) is not None]
    student = planned_student(config, planned)
    if student is None or not teachers or len(teachers) < len(teachers_of(config)):
        return []
    faults = width_faults(config, teachers[0], student)
    return faults + (match_faults(config, teachers, student) if config.objective.matches is not None else [])


def _planned(name: str, planned: Mapping[str, ModelSpec]) -> ModelSpec | None:
    return planned.get(str(name)) or spec_of("model", name, [])
