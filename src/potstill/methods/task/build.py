"""Task models and their data from configuration."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from potstill.config import EvaluateConfig, TrainConfig, teachers_of
from potstill.config.benchmarks import TaskBenchmarkConfig, swaps_of
from potstill.config.data import AugmentConfig, TaskDataConfig, data_of
from potstill.config.objectives.base import exchange_of
from potstill.data.common.steps import BatchSettings
from potstill.data.common.tokenizers import Vocabulary
from potstill.data.tasks.augment import Augmentation, Noise
from potstill.data.tasks.datamodule import OwnInputs, TaskDataModule
from potstill.data.tasks.labels import Task
from potstill.data.tasks.readers import Rows
from potstill.data.tasks.splits import MAIN, evaluated_parts, task_of, training_parts
from potstill.errors import DataError
from potstill.evaluation.evaluators import Evaluator
from potstill.methods.common.candidates import control_of
from potstill.methods.common.data import batch_settings, own_vocabulary, sequence_length, vocabulary_of
from potstill.methods.common.models import (
    build_interchange,
    build_optimization,
    build_plan,
    build_task_objective,
    check_vocabulary,
    compile_blocks,
    prepare_student,
    suit_hardware,
)
from potstill.methods.common.teacher_cache import store_task_teachers
from potstill.methods.task.parts import Part, Preparer, check_labels, read_joined, with_labels_of, with_own_labels
from potstill.models.backbone import backbone_of
from potstill.models.heads import labels_from_settings
from potstill.models.load import load_task_model
from potstill.models.specs import default_layers, read_settings
from potstill.models.students import check_tokens, student_from_config, student_from_layers
from potstill.objectives.task import Stored, TaskObjective
from potstill.teacher_cache.files import FileLogits, task_logits
from potstill.training.task import ONLY, Downstream, TaskPart

log = logging.getLogger(__name__)


@dataclass
class TaskTraining:
    """The parts of a task model's training run."""

    module: Downstream
    data: TaskDataModule
    vocabulary: Vocabulary
    task: Task
    figures: dict[str, int]
    teacher_parameters: int | None


class Reader(NamedTuple):
    """A teacher, and its own tokenizer's vocabulary; None of one that reads the student's tokens."""

    model: PreTrainedModel
    vocabulary: Vocabulary | None


class ReadTask(NamedTuple):
    """A task with its labels, what is trained on, and the evaluation sets by name."""

    task: Task
    train: Part
    evaluation: dict[str, Part]


@dataclass
class TaskEvaluation:
    """A single task model, what it is evaluated on, the longest sequence in tokens, and the tokenizer's folder."""

    module: Downstream
    data: TaskDataModule
    length: int
    tokenizer: str


def build_task_training(config: TrainConfig) -> TaskTraining:
    """Examples, labels, tokenizer, model, features and module of a training run; what can fail early comes first.

    Raises:
        PotstillError: files, tokenizer or models that cannot be used, or that do not fit each other.
    """
    read = read_task(config)
    stored: Sequence[Stored] = _own_logits(config, read)
    vocabulary = student_vocabulary(config)
    torch.manual_seed(config.seed)  # the fresh parts of a student are a function of the seed
    # Without a teacher in the objective, or with logits in its place, teacher.model only gives its layers.
    readers = load_teachers(config, read.task, vocabulary) if config.objective.taught and not stored else []
    teachers = [reader.model for reader in readers]
    student = build_student(config, read.task, vocabulary, teachers[0] if teachers else None)
    check_pairs(vocabulary, readers, student)
    prepare_student(config.student, student)
    objective = build_task_objective(config, read.task, backbone_of(student), [backbone_of(one) for one in teachers])
    optimization = build_optimization(config, student)
    settings = batch_settings(config, build_plan(exchange_of(config.objective)))
    data, evaluators, counts = prepare_task(config, read, vocabulary, readers, student, settings)
    parameters = sum(teacher.num_parameters() for teacher in teachers) or None
    if config.teacher.cache.enabled:
        every_token = objective.every_token
        stored = store_task_teachers(config, teachers, data, vocabulary, read.task, every_token=every_token)
        teachers = []
    suit_hardware(config, teachers, student)
    part = TaskPart(read.task, student, objective, evaluators, teachers, stored)
    module = Downstream(student, {ONLY: part}, optimization)
    return TaskTraining(module, data, vocabulary, read.task, counts, parameters)


def _own_logits(config: TrainConfig, read: ReadTask) -> list[FileLogits]:
    """The logits of `teacher.cache.file`, if there is one.

    Raises:
        DataError: they are not those of the rows.
    """
    if config.teacher.cache.file is None:
        return []
    assert isinstance(read.train, Rows)
    path, rows = Path(config.teacher.cache.file).expanduser(), len(read.train.texts[0])
    return [task_logits(path, "teacher.cache.file", rows=rows, labels=read.task.labels)]


def read_task(config: TrainConfig) -> ReadTask:
    """The rows of a benchmark and what is asked of them; nothing is tokenised yet.

    Raises:
        PotstillError: files that cannot be used, or labels that the task does not have.
    """
    task = task_of(config.task_benchmark)
    data = data_of(config, TaskDataConfig)
    parts = training_parts(config.task_benchmark, data.max_examples, data.skip)
    train, evaluation = read_joined(parts.train), {name: source.read() for name, source in parts.eval.items()}
    task = with_labels_of(task, train, config.task_benchmark)
    adopt_metrics(config.task_benchmark, task)
    check_labels(train, *evaluation.values(), task=task)
    return ReadTask(task, train, evaluation)


def adopt_metrics(benchmark: TaskBenchmarkConfig, task: Task) -> None:
    """Set the metrics of a benchmark to those of its task, which depend on the labels."""
    if benchmark.monitor and task.monitor != benchmark.monitor:
        log.info("%s: its tags mark no entities, so accuracy decides", task.name)
    benchmark.metrics, benchmark.monitor, benchmark.mode = list(task.metrics), task.monitor, task.mode


def load_teachers(config: TrainConfig, task: Task, vocabulary: Vocabulary) -> list[Reader]:
    """The teachers of a task, all with its head, and what they read.

    Raises:
        PotstillError: one cannot be used, or does not know every token.
    """
    teachers = []
    key = "teacher.models" if config.teacher.models else "teacher.model"
    for name in teachers_of(config):
        teacher = load_task_model(
            key,
            name,
            labels=task.labels,
            ordered=task.ordered,
            head=task.head,
            problem=task.problem,
            need_head=True,
            attention=config.teacher.attention,
        )
        own = own_vocabulary(config.teacher.tokenizer, key, name, vocabulary)
        check_vocabulary(own or vocabulary, key, teacher)
        teachers.append(Reader(teacher, own))
    return teachers


def check_pairs(vocabulary: Vocabulary, teachers: Sequence[Reader], student: PreTrainedModel) -> None:
    """All that share a tokenizer read the same tokens.

    Raises:
        PotstillError: one does not.
    """
    check_vocabulary(vocabulary, "the student", student)
    for teacher in teachers:
        if teacher.vocabulary is None:
            check_tokens(teacher.model, student)


def prepare_task(
    config: TrainConfig,
    read: ReadTask,
    vocabulary: Vocabulary,
    teachers: Sequence[Reader],
    student: PreTrainedModel,
    settings: BatchSettings,
) -> tuple[TaskDataModule, dict[str, Evaluator], dict[str, int]]:
    """The batches of a task, the evaluators of its evaluation sets by name, and what was counted.

    Raises:
        PotstillError: the rows cannot be tokenised, or not for these models.
    """
    models = [*(teacher.model for teacher in teachers if teacher.vocabulary is None), student]
    rows = data_of(config, TaskDataConfig)
    length = sequence_length(rows, vocabulary, models, config.task_benchmark.max_length)
    preparer = Preparer(rows, config.task_benchmark, read.task, vocabulary, length)
    train_set = preparer.part("train", read.train).set
    prepared = {name: preparer.part(_part_name(name), part, read.train) for name, part in read.evaluation.items()}
    data = TaskDataModule(
        train_set,
        {name: part.set for name, part in prepared.items()},
        pad_id=vocabulary.pad_id,
        token_types=any(backbone_of(m).token_types > 1 for m in models),
        settings=settings,
        causal=backbone_of(student).kind == "causal",
        noise=_noise(rows.augment, vocabulary),
        teachers=[_own_inputs(config, read, teacher) for teacher in teachers],
    )
    return data, {name: part.evaluator for name, part in prepared.items()}, preparer.counts


def _own_inputs(config: TrainConfig, read: ReadTask, teacher: Reader) -> OwnInputs | None:
    """The training rows in a teacher's own tokens."""
    model, vocabulary = teacher
    if vocabulary is None:
        return None
    rows = data_of(config, TaskDataConfig)
    length = sequence_length(rows, vocabulary, [model], config.task_benchmark.max_length)
    preparer = Preparer(rows, config.task_benchmark, read.task, vocabulary, length)
    features = preparer.part("train", read.train).set.features
    return OwnInputs(features, vocabulary.pad_id, backbone_of(model).token_types > 1)


def build_task_evaluation(
    config: EvaluateConfig, model: str, reference: str | None = None, control: str | None = None
) -> TaskEvaluation:
    """A task model and the rows that it is evaluated on, tokenised with its own tokenizer.

    Args:
        config: of `evaluate.py`.
        model: evaluated.
        reference: the teacher that it is compared with, where states are swapped.
        control: what takes the model's place, see `Candidate`.

    Raises:
        PotstillError: a model or files that cannot be used, or that do not fit each other.
    """
    benchmark, rows = config.task_benchmark, data_of(config, TaskDataConfig)
    task = task_of(benchmark)
    sources = evaluated_parts(benchmark, rows.max_examples, rows.skip)
    parts = {name: source.read() for name, source in sources.items()}
    task = with_own_labels(task, labels_from_settings(read_settings("model", model), task.head) or ())
    adopt_metrics(benchmark, task)
    given = ("model", model) if config.data.tokenizer is None else ("data.tokenizer", config.data.tokenizer)
    vocabulary = vocabulary_of(*given)
    loaded = [
        load_task_model(
            "model",
            name,
            labels=task.labels,
            ordered=task.ordered,
            head=task.head,
            problem=task.problem,
            need_head=True,
        )
        for name in (model, reference)
        if name is not None
    ]
    if control and reference:
        loaded[0] = control_of(config, control, *loaded)
    for part in loaded:
        check_vocabulary(vocabulary, "model", part)
    classifier, teacher = loaded[0], loaded[1] if reference else None
    objective, plan = TaskObjective(task.kind), None
    if teacher is not None:
        check_tokens(teacher, classifier)
        swaps = swaps_of(benchmark)
        plan = build_plan(swaps)
        exchange = build_interchange(swaps, backbone_of(teacher), backbone_of(classifier), "benchmark.interchange")
        objective = replace(objective, interchange=exchange)
    length = sequence_length(rows, vocabulary, loaded, benchmark.max_length)
    preparer = Preparer(rows, benchmark, task, vocabulary, length)
    prepared = {name: preparer.part(_part_name(name), part) for name, part in parts.items()}
    data = TaskDataModule(
        None,
        {name: part.set for name, part in prepared.items()},
        pad_id=vocabulary.pad_id,
        token_types=any(backbone_of(m).token_types > 1 for m in loaded),
        settings=batch_settings(config, plan),
        causal=backbone_of(classifier).kind == "causal",
    )
    if config.compile:
        for part in loaded:
            compile_blocks(part)
    evaluators = {name: part.evaluator for name, part in prepared.items()}
    module = Downstream(classifier, {ONLY: TaskPart(task, classifier, objective, evaluators, loaded[1:])})
    return TaskEvaluation(module, data, length, vocabulary.path)


def _noise(settings: AugmentConfig, vocabulary: Vocabulary) -> Noise | None:
    """How training rows change.

    Raises:
        DataError: tokens are to be hidden, and the tokenizer has no mask token.
    """
    if not settings.share:
        return None
    if settings.mask and vocabulary.mask_id is None:
        raise DataError(
            f"data.augment.mask={settings.mask}: the tokenizer {vocabulary.path} has no mask token; "
            "use data.augment.mask=0"
        )
    special = tuple(token for token in vocabulary.special_ids if token != vocabulary.unk_id)
    return Noise(Augmentation(**asdict(settings)), special, vocabulary.mask_id)


def _part_name(name: str) -> str:
    return "eval" if name == MAIN else f"eval_{name}"


def student_vocabulary(config: TrainConfig) -> Vocabulary:
    """The tokenizer of `data.tokenizer`, else of the student, else of the teacher that the student is built from."""
    given = {
        "data.tokenizer": config.data.tokenizer,
        "student.model": config.student.model,
        "teacher.model": next(iter(teachers_of(config)), None),
    }
    return vocabulary_of(*next((key, value) for key, value in given.items() if value is not None), saved=True)


def build_student(
    config: TrainConfig, task: Task, vocabulary: Vocabulary, teacher: PreTrainedModel | None
) -> PreTrainedModel:
    """The student of a task: that of `student.model`, from scratch, or of the layers of `teacher`."""
    s = config.student
    if s.model:
        student = load_task_model(
            "student.model",
            s.model,
            labels=task.labels,
            ordered=task.ordered,
            head=task.head,
            problem=task.problem,
            need_head=False,
            attention=s.attention,
        )
    elif s.config:
        student = student_from_config(
            s.config,
            vocab_size=vocabulary.size,
            pad_token_id=vocabulary.pad_id,
            bos_token_id=vocabulary.start_id,
            eos_token_id=vocabulary.end_id,
            labels=task.labels,
            head=task.head,
            problem=task.problem,
            attention=s.attention,
        )
    else:
        teacher = teacher or load_task_model(
            "teacher.model",
            teachers_of(config)[0],
            labels=task.labels,
            ordered=task.ordered,
            head=task.head,
            problem=task.problem,
            need_head=False,
            attention=config.teacher.attention,
        )
        layers = list(s.layers) if s.layers is not None else default_layers(backbone_of(teacher).depth)
        student = student_from_layers(
            teacher, layers, architecture=s.architecture, vocab_transform=s.vocab_transform, attention=s.attention
        )
    if student.config.pad_token_id is None:  # a causal classifier reads a batch only where it knows its padding
        student.config.pad_token_id = vocabulary.pad_id
    return student
