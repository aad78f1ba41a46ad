"""Task models and their data from configuration."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel

from potstill.build.data import batch_settings, local_tokenizer, sequence_length
from potstill.build.models import (
    build_interchange,
    build_optimizer,
    build_plan,
    build_schedule,
    build_task_objective,
    check_vocabulary,
    compile_blocks,
    prepare_student,
    suit_hardware,
)
from potstill.data.corpus.progress import counting
from potstill.data.corpus.tokenizers import Vocabulary, describe
from potstill.data.tasks.augment import Augmentation, Noise
from potstill.data.tasks.composition import MAIN, judged_parts, task_of, training_parts
from potstill.data.tasks.datamodule import TaskDataModule, TaskSet
from potstill.data.tasks.features import Features, features_of
from potstill.data.tasks.labels import CLASSIFICATION, Task, encode_labels, labels_of
from potstill.data.tasks.preflight import oddities, overlap, warnings_of
from potstill.data.tasks.readers import Rows, RowSource
from potstill.errors import DataError
from potstill.models.head_labels import read_labels
from potstill.models.load import load_classifier
from potstill.models.specs import default_layers
from potstill.models.students import check_tokens, student_from_config, student_from_layers
from potstill.models.trunk import trunk_of
from potstill.modules.downstream import Downstream
from potstill.objectives.task import TaskObjective

log = logging.getLogger(__name__)

SUPERVISED_TASKS = ("finetune",)  # objectives that learn from labels alone; a teacher only gives its layers


@dataclass
class TaskTraining:
    """The parts of a task model's training run."""

    module: Downstream
    data: TaskDataModule
    vocabulary: Vocabulary
    task: Task
    figures: dict[str, int]
    teacher_parameters: int | None


@dataclass
class TaskEvaluation:
    """A single task model, the rows that it is judged on by set, and the longest sequence in tokens."""

    module: Downstream
    data: TaskDataModule
    rows: dict[str, Rows]
    length: int


def build_task_training(config: DictConfig) -> TaskTraining:
    """Rows, labels, tokenizer, model, features and module of a training run; what can fail early comes first.

    Raises:
        PotstillError: files, tokenizer or models that cannot be used, or that do not fit each other.
    """
    task = task_of(config.benchmark)
    parts = training_parts(config.benchmark, config.data.max_examples)
    train, evaluation = parts.train.rows(), _read(parts.eval)
    if task.kind == CLASSIFICATION and not task.labels:
        task = task.with_labels(labels_of(train))
    labels = {name: encode_labels(rows, task) for name, rows in evaluation.items()}
    train_labels = encode_labels(train, task)
    vocabulary = describe(_tokenizer_folder(config))
    torch.manual_seed(config.seed)  # the fresh parts of a student are a function of the seed
    teacher = None
    if config.objective.name not in SUPERVISED_TASKS:
        teacher = load_classifier(
            "teacher.model",
            config.teacher.model,
            labels=task.labels,
            need_head=True,
            attention=config.teacher.attention,
        )
        check_vocabulary(vocabulary, "teacher.model", teacher)
    student = _build_classifier(config, task, vocabulary, teacher)
    check_vocabulary(vocabulary, "the student", student)
    if teacher is not None:
        check_tokens(teacher, student)
    prepare_student(config.student, student)
    objective = build_task_objective(
        config.objective, task, trunk_of(student), trunk_of(teacher) if teacher is not None else None
    )
    # Made once for nothing: a fault in its arguments should not wait for the features.
    build_schedule(config.schedule, build_optimizer(config.optimizer, student), steps=1)
    models = [m for m in (teacher, student) if m is not None]
    length = sequence_length(config.data, vocabulary, models)
    tokenised = _Parts(config.data, vocabulary, length)
    train_set = TaskSet(tokenised.features("train", train), train_labels)
    data = TaskDataModule(
        train_set,
        {
            name: TaskSet(tokenised.features(_part_name(name), rows, train), labels[name])
            for name, rows in evaluation.items()
        },
        pad_id=vocabulary.pad_id,
        token_types=any(trunk_of(m).token_types > 1 for m in models),
        settings=batch_settings(config, build_plan(config.objective.interchange)),
        causal=trunk_of(student).kind == "causal",
        noise=_noise(config.data.augment, vocabulary),
    )
    parameters = teacher.num_parameters() if teacher is not None else None
    suit_hardware(config, teacher, student)
    module = Downstream(
        student,
        teacher,
        objective,
        task,
        list(evaluation),
        optimizer=lambda model: build_optimizer(config.optimizer, model),
        schedule=lambda optimizer, steps: build_schedule(config.schedule, optimizer, steps),
        clip=config.trainer.gradient_clip_val,
    )
    return TaskTraining(module, data, vocabulary, task, tokenised.counts, parameters)


def build_task_evaluation(config: DictConfig, model: str, reference: str | None = None) -> TaskEvaluation:
    """A task model and the rows that it is judged on, tokenised with its own tokenizer.

    Args:
        config: of `evaluate.py`.
        model: judged.
        reference: the teacher that it is compared with, where states are swapped.

    Raises:
        PotstillError: a model or files that cannot be used, or that do not fit each other.
    """
    task = task_of(config.benchmark)
    rows = _read(judged_parts(config.benchmark, config.data.max_examples))
    if task.kind == CLASSIFICATION and not task.labels:
        task = task.with_labels(read_labels("model", model) or ())
    labels = {name: encode_labels(part, task) for name, part in rows.items()}
    given = ("model", model) if config.data.tokenizer is None else ("data.tokenizer", config.data.tokenizer)
    vocabulary = describe(local_tokenizer(*given))
    loaded = [
        load_classifier("model", name, labels=task.labels, need_head=True)
        for name in (model, reference)
        if name is not None
    ]
    for part in loaded:
        check_vocabulary(vocabulary, "model", part)
    classifier, teacher = loaded[0], loaded[1] if reference else None
    objective, plan = TaskObjective(task.kind), None
    if teacher is not None:
        check_tokens(teacher, classifier)
        plan = build_plan(config.benchmark.interchange)
        exchange = build_interchange(
            config.benchmark.interchange, trunk_of(teacher), trunk_of(classifier), "benchmark.interchange"
        )
        objective = replace(objective, interchange=exchange)
    length = sequence_length(config.data, vocabulary, loaded)
    tokenised = _Parts(config.data, vocabulary, length)
    data = TaskDataModule(
        None,
        {name: TaskSet(tokenised.features(part.name, part), labels[name]) for name, part in rows.items()},
        pad_id=vocabulary.pad_id,
        token_types=any(trunk_of(m).token_types > 1 for m in loaded),
        settings=batch_settings(config, plan),
        causal=trunk_of(classifier).kind == "causal",
    )
    if config.compile:
        for part in loaded:
            compile_blocks(part)
    module = Downstream(classifier, teacher, objective, task, list(rows))
    return TaskEvaluation(module, data, rows, length)


def _read(sources: Mapping[str, RowSource]) -> dict[str, Rows]:
    return {name: source.rows() for name, source in sources.items()}


def _noise(settings: DictConfig, vocabulary: Vocabulary) -> Noise | None:
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
    return Noise(
        Augmentation(**{str(key): value for key, value in settings.items()}), special, vocabulary.mask_id
    )


def _part_name(name: str) -> str:
    return "eval" if name == MAIN else f"eval_{name}"


class _Parts:
    """Makes features of parts, and tells what is odd about them."""

    def __init__(self, data: DictConfig, vocabulary: Vocabulary, length: int):
        self.data, self.vocabulary, self.length = data, vocabulary, length
        self.counts: dict[str, int] = {}

    def features(self, name: str, rows: Rows, train: Rows | None = None) -> Features:
        """Features of a part; what it has in common with `train` is counted too."""
        with counting(f"tokenising {rows.name}") as progress:
            features = features_of(
                rows,
                self.vocabulary,
                max_length=self.length,
                cache=Path(self.data.cache).expanduser(),
                progress=progress,
            )
        counts = oddities(rows, features, self.vocabulary)
        if train is not None:
            counts["overlap"] = overlap(train, rows)
        log.info("%s: %s", rows.name, ", ".join(f"{count:,} {key}" for key, count in counts.items()))
        for line in warnings_of(rows.name, counts, self.length, self.vocabulary.path):
            log.warning("%s", line)
        self.counts |= {f"{name}_{key}": count for key, count in counts.items()}
        return features


def _tokenizer_folder(config: DictConfig) -> str:
    """Of `data.tokenizer`, else of the model that the student is, or is made of."""
    given = {
        "data.tokenizer": config.data.tokenizer,
        "student.model": config.student.model,
        "teacher.model": config.teacher.model,
    }
    return local_tokenizer(*next((key, value) for key, value in given.items() if value is not None))


def _build_classifier(
    config: DictConfig, task: Task, vocabulary: Vocabulary, teacher: PreTrainedModel | None
) -> PreTrainedModel:
    s = config.student
    if s.model:
        student = load_classifier(
            "student.model", s.model, labels=task.labels, need_head=False, attention=s.attention
        )
    elif s.config:
        student = student_from_config(
            OmegaConf.to_container(s.config, resolve=True),  # type: ignore[arg-type]
            vocab_size=vocabulary.size,
            pad_token_id=vocabulary.pad_id,
            bos_token_id=vocabulary.start_id,
            eos_token_id=vocabulary.end_id,
            labels=task.labels,
        )
    else:
        teacher = teacher or load_classifier(
            "teacher.model",
            config.teacher.model,
            labels=task.labels,
            need_head=False,
            attention=config.teacher.attention,
        )
        layers = list(s.layers) if s.layers is not None else default_layers(trunk_of(teacher).depth)
        student = student_from_layers(
            teacher, layers, architecture=s.architecture, vocab_transform=s.vocab_transform
        )
    if (
        student.config.pad_token_id is None
    ):  # a causal classifier reads a batch only where it knows its padding
        student.config.pad_token_id = vocabulary.pad_id
    return student
