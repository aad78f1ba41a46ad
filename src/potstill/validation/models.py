"""Problems of teacher and student, from their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from potstill.config import TrainConfig, teachers_of
from potstill.config.benchmarks import SpansConfig
from potstill.config.data import ConversationsDataConfig, DataConfig, SequenceDataConfig
from potstill.config.defaults import trains_task
from potstill.config.models import CacheConfig, StudentConfig
from potstill.config.objectives.base import exchange_of, matches_of
from potstill.config.objectives.language import KdConfig
from potstill.errors import PotstillError
from potstill.models.heads import settings_problem
from potstill.models.specs import (
    ModelSpec,
    attention_error,
    check_layers,
    check_pair,
    default_layers,
    read_settings,
    read_spec,
    spec_from_settings,
)
from potstill.validation.inputs import own_input_problems
from potstill.validation.interchange import mapping_problems
from potstill.validation.teachers import (
    label_problems,
    match_problems,
    teacher_problems,
    vocabulary_problems,
    width_problems,
)

ATTENTION = ("sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")


def spec_of(key: str, value: str, problems: list[str]) -> ModelSpec | None:
    """A model's facts; None, and one more error, where they cannot be read."""
    try:
        return read_spec(key, value)
    except PotstillError as error:
        problems.append(str(error))
        return None


def attention_problems(config: TrainConfig) -> list[str]:
    """Attention implementations that transformers does not know; a name with a slash is a kernel on the hub."""
    return [
        f"{key}.attention={name}: one of {', '.join(ATTENTION)}"
        for key, name in (("teacher", config.teacher.attention), ("student", config.student.attention))
        if name not in ATTENTION and "/" not in name
    ]


def model_problems(config: TrainConfig, made: ModelSpec | None = None) -> list[str]:
    """Problems of teacher and student: each alone, together, and with the objective and the data.

    Args:
        config: of a training run.
        made: the student's facts, where it is made of the layers of another task's teacher.
    """
    problems = [*teacher_problems(config), *own_input_problems(config)]
    key = "teacher.models" if config.teacher.models else "teacher.model"
    teachers = [spec_of(key, name, problems) for name in teachers_of(config)]
    learner = made or learner_of(config.student, problems)
    if problems:
        return problems
    known = [spec for spec in teachers if spec is not None]
    teacher = known[0] if known else None
    layered = not config.student.model and not config.student.config and made is None
    if vectors := [spec for spec in (*known, learner) if spec is not None and not spec.depth]:
        return [f"objective={config.objective.name}: a {vectors[0].model_type} model makes vectors of texts; use embed"]
    problems += student_problems(config)
    problems += _missing_problems(config, teacher, layered)
    if teacher is not None:
        problems += layer_problems(config.student, teacher) if layered else []
        problems += _pair_problems(config, known, learner, fixed=bool(config.student.model or made))
    spec = learner or (teacher if layered else None)
    problems += [
        f"{key}.attention={name}: {error}"
        for key, name, model in (
            ("teacher", config.teacher.attention, teacher),
            ("student", config.student.attention, spec),
        )
        if model is not None and (error := attention_error(model.model_type, name))
    ]
    problems += length_problems(
        config.data, {"teacher.model": teacher if config.objective.taught or layered else None, "the student": learner}
    )
    if spec and not spec.is_transformer:
        problems += _recurrent_problems(config, spec)
    if trains_task(config):
        return problems + _task_problems(config)
    return problems + _language_problems(config, teacher, spec)


def student_problems(config: TrainConfig) -> list[str]:
    """Problems of the keys that name the student, its attention and its checkpointing."""
    student, problems = config.student, attention_problems(config)
    if student.model and (student.layers or student.config):
        both = f"layers={student.layers}" if student.layers else f"config={student.config}"
        problems.append(f"student.model={student.model} with student.{both}: give one of them")
    elif student.layers and student.config:
        problems.append(
            f"student.layers={student.layers} with student.config={student.config}: a student from scratch has none of "
            "the teacher's layers; give one of them"
        )
    if student.checkpointing == "selective" and config.compile:
        problems.append("student.checkpointing=selective: a compiled block hides its parts; use full, or compile=false")
    return problems


def _missing_problems(config: TrainConfig, teacher: ModelSpec | None, layered: bool) -> list[str]:
    """Problems of a teacher, student or tokenizer that is not named; `layered`: a student of the teacher's layers."""
    name, student = config.objective.name, config.student
    stored = not trains_task(config) and config.teacher.cache.replaces_teacher
    taught = config.objective.taught and config.teacher.cache.file is None
    if teacher is None and taught and not stored:
        return [
            f"teacher.model=null: objective={name} needs a teacher, a folder or hub id; "
            "train one with `objective=mlm student=bert_small`"
        ]
    if teacher is None and layered:
        return [
            f"student.model=null: objective={name} trains student.model=<folder or hub id>, or a model from scratch "
            "(student=bert_small), or one made of the layers of teacher.model"
        ]
    alone = trains_task(config) and not taught
    if alone and student.config and not student.model and not (teacher or config.data.tokenizer):
        return [
            f"data.tokenizer=null: objective={name} of a model from scratch needs a tokenizer; "
            "data.tokenizer=<folder or hub id>"
        ]
    return []


def layer_problems(student: StudentConfig, teacher: ModelSpec) -> list[str]:
    """Problems of the layers that a student is built from."""
    if not teacher.depth:
        return [
            f"student.model=null: a {teacher.model_type} teacher has no layers that a student could be made of; give a "
            "folder, or a student from scratch"
        ]
    if student.layers is None:
        return []
    try:
        check_layers(list(student.layers), teacher.depth, "student.layers", teacher.model_type)
    except PotstillError as error:
        return [str(error)]
    return []


def _pair_problems(
    config: TrainConfig, teachers: list[ModelSpec], learner: ModelSpec | None, *, fixed: bool
) -> list[str]:
    """Problems of student and teachers together, and of what is compared within them.

    Args:
        config: of a training run.
        teachers: their facts, the first one first.
        learner: facts of a student that is not made of the teacher's layers.
        fixed: whether the student has a vocabulary of its own.
    """
    teacher, student, problems = teachers[0], config.student, []
    shared = config.teacher.tokenizer is None  # all read the student's tokens
    if learner and config.objective.taught:
        problems += _token_problems(config, teacher, learner) if fixed and shared else []
        problems += width_problems(config, teacher, learner)
    if not trains_task(config):
        problems += _kept_problems(config.teacher.cache, teacher)
    if shared:
        problems += vocabulary_problems(teachers)
    compared = learner or replace(teacher, depth=len(student.layers or default_layers(teacher.depth)))
    if matches_of(config.objective) is not None:
        problems += match_problems(config, teachers, compared)
    exchange = exchange_of(config.objective)
    if exchange.mapping is not None and not problems:
        problems += mapping_problems(exchange, teacher, compared, "objective.interchange")
        if exchange.pairing == "in_batch" and config.data.max_tokens is None:
            problems += _source_problems(config.data.batch_size)
    return problems


def _task_problems(config: TrainConfig) -> list[str]:
    """Problems of task models: their labels and heads, and what only masked language models have."""
    problems = label_problems(config) if config.objective.taught else []
    problems += _head_problems(config.student.model)
    exchange = exchange_of(config.objective)
    if exchange.mapping is not None and exchange.positions == "masked":
        problems.append("objective.interchange.positions=masked: a task model masks nothing; use consecutive or free")
    return problems


def _language_problems(config: TrainConfig, teacher: ModelSpec | None, student: ModelSpec | None) -> list[str]:
    """Problems of masked and causal language models with terms and keys of the other kind."""
    problems = []
    if config.teacher.tokenizer is not None:
        problems += [
            f"teacher.tokenizer={config.teacher.tokenizer}: {key} is a masked language model, which predicts what is "
            "hidden; other tokens are compared by causal ones"
            for key, model in (("teacher.model", teacher), ("the student", student))
            if model is not None and model.kind == "masked"
        ]
    if student is None:
        return problems
    if student.kind == "masked" and isinstance(config.data, ConversationsDataConfig):
        problems.append(f"data={config.data.name}: completions are learned by causal models, the student is masked")
    right, wrong = ("mlm", "clm") if student.kind == "masked" else ("clm", "mlm")
    problems += [
        f"objective.terms.{name}.weight={term.weight}: the student is a {student.kind} language model; use {right}"
        for name, term in config.losses.terms.given(wrong).items()
    ]
    if student.kind == "causal" and isinstance(config.objective, KdConfig) and config.objective.positions == "masked":
        problems.append("objective.positions=masked: a causal language model masks nothing; use all")
    return problems


def _kept_problems(cache: CacheConfig, teacher: ModelSpec) -> list[str]:
    """Problems of storing more tokens than the vocabulary has; the default stores all of a small vocabulary."""
    if not cache.enabled or cache.form != "top" or cache.k <= max(teacher.vocab_size, CacheConfig().k):
        return []
    return [f"teacher.cache.k={cache.k}: the teacher's vocabulary has {teacher.vocab_size} tokens; that or fewer"]


def _head_problems(model: str | None) -> list[str]:
    """Problems of a student whose config.json contradicts itself about its head."""
    if model is None:
        return []
    error = settings_problem(read_settings("student.model", model))
    return [f"student.model={model}: {error}"] if error else []


def _recurrent_problems(config: TrainConfig, spec: ModelSpec) -> list[str]:
    """Problems of a recurrent student of a task."""
    problems = []
    if not trains_task(config):
        problems.append(
            f"student.config.model_type={spec.model_type}: has no language-model head; use "
            "objective=task_kd or finetune"
        )
    elif isinstance(config.benchmark, SpansConfig):
        problems.append(
            f"student.config.model_type={spec.model_type}: has no head for answers that are pieces of a text; choose a "
            "transformer, student=t3"
        )
    return problems + attentionless_problems(config, spec)


def attentionless_problems(config: TrainConfig, spec: ModelSpec) -> list[str]:
    """Problems of what only transformers have."""
    student, problems = config.student, list[str]()
    if spec.is_transformer:
        return problems
    if student.checkpointing is not None:
        problems.append(f"student.checkpointing={student.checkpointing}: a {spec.model_type} makes nothing again; null")
    if config.compile:
        problems.append(f"compile=true: the packed sequences of a {spec.model_type} cannot be compiled; use false")
    return problems


def _token_problems(config: TrainConfig, teacher: ModelSpec, student: ModelSpec) -> list[str]:
    """User errors of two models that must read the same tokens."""
    own = "or let the teacher read its own, teacher.tokenizer=own"
    if isinstance(config.data, ConversationsDataConfig):
        own = "or compare other tokens on a corpus, data=text_files objective=kd teacher.tokenizer=own (uld)"
    return [f"{error}; {own}" if "one tokenizer" in error else error for error in check_pair(teacher, student)]


def _source_problems(batch_size: int) -> list[str]:
    if batch_size > 1:
        return []
    return [
        f"data.batch_size={batch_size}: with objective.interchange.pairing=in_batch a sequence's source is another "
        "one of its batch; use data.batch_size=2 or more, or pairing=dataset"
    ]


def learner_of(student: StudentConfig, problems: list[str]) -> ModelSpec | None:
    """The student's facts where it is a model of its own; None where it is made of the teacher's layers."""
    if student.model:
        return spec_of("student.model", student.model, problems)
    if not student.config:
        return None
    try:
        return spec_from_settings(student.config, "student.config")
    except PotstillError as error:
        problems.append(str(error))
        return None


def length_problems(data: DataConfig, models: dict[str, ModelSpec | None]) -> list[str]:
    """Problems of sequences that are longer than the models' maximum."""
    longest = data.max_length if isinstance(data, SequenceDataConfig) else None
    return [
        f"data.max_length={longest}: {key} reads at most {spec.max_length} tokens"
        for key, spec in models.items()
        if spec and longest is not None and longest > spec.max_length
    ]


def planned_student(config: TrainConfig, planned: Mapping[str, ModelSpec]) -> ModelSpec | None:
    """The facts of the student that a run makes, before it runs; None where its models cannot be read.

    Args:
        config: of a training run.
        planned: facts of models that earlier stages will write, by folder.
    """
    student, names = config.student, teachers_of(config)
    if student.model:
        return _planned(student.model, planned)
    if student.config:
        return learner_of(student, [])
    teacher = _planned(names[0], planned) if names else None
    if teacher is None:
        return None
    depth = len(student.layers or default_layers(teacher.depth))
    return replace(teacher, depth=depth, model_type=student.architecture or teacher.model_type)


def planned_problems(config: TrainConfig, planned: Mapping[str, ModelSpec]) -> list[str]:
    """Problems of a later stage's comparisons, as far as the sizes of its models are known before it runs.

    Args:
        config: of a training run.
        planned: as in `planned_student`.
    """
    if not config.objective.taught:
        return []
    teachers = [spec for name in teachers_of(config) if (spec := _planned(name, planned)) is not None]
    student = planned_student(config, planned)
    if student is None or not teachers or len(teachers) < len(teachers_of(config)):
        return []
    problems = width_problems(config, teachers[0], student)
    return problems + (match_problems(config, teachers, student) if matches_of(config.objective) is not None else [])


def _planned(name: str, planned: Mapping[str, ModelSpec]) -> ModelSpec | None:
    return planned.get(str(name)) or spec_of("model", name, [])
