"""A student of several tasks, its teachers and its data from configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from potstill.config import TrainConfig
from potstill.data.common.batching import derive_seed
from potstill.data.common.tokenizers import Vocabulary
from potstill.data.tasks.datamodule import TaskDataModule
from potstill.data.tasks.mixing import MixedDataModule
from potstill.methods.common.data import batch_settings
from potstill.methods.common.models import build_optimization, build_task_objective, prepare_student, suit_hardware
from potstill.methods.multitask.tasks import task_configs
from potstill.methods.task.build import (
    build_student,
    check_pairs,
    load_teachers,
    prepare_task,
    read_task,
    student_vocabulary,
)
from potstill.models.backbone import backbone_of
from potstill.models.multitask import SharedStudent, with_head
from potstill.training.task import Downstream, TaskPart

_TASK = 5  # what a derived seed is for: the steps of one of several tasks


@dataclass
class SharedTraining:
    """The parts of a training run on several tasks."""

    module: Downstream
    data: MixedDataModule
    vocabulary: Vocabulary
    figures: dict[str, int]
    teacher_parameters: int | None


def build_shared_training(config: TrainConfig) -> SharedTraining:
    """Rows, teachers, student, features and module of a run on several tasks; what can fail early comes first.

    The student is made as for the first task alone: its encoder is that of `student.model`, from scratch, or of the
    layers of the first teacher. The heads of the other tasks are new.

    Raises:
        PotstillError: files, tokenizer or models that cannot be used, or that do not fit each other.
    """
    configs = task_configs(config)
    read = {name: read_task(own) for name, own in configs.items()}
    for entry, (name, own) in zip(config.tasks, configs.items(), strict=True):
        if read[name].task.plain:  # its metrics have changed
            entry.options |= {key: own.task_benchmark[key] for key in ("metrics", "monitor", "mode")}
    first, *others = configs
    vocabulary = student_vocabulary(configs[first])
    torch.manual_seed(config.seed)  # the fresh parts of a student are a function of the seed
    teachers = {name: load_teachers(own, read[name].task, vocabulary) for name, own in configs.items()}
    made = build_student(configs[first], read[first].task, vocabulary, teachers[first][0].model)
    models: dict[str, PreTrainedModel] = {first: made}
    for name in others:
        task = read[name].task
        models[name] = with_head(made, labels=task.labels, head=task.head, problem=task.problem)
    for name, model in models.items():
        check_pairs(vocabulary, teachers[name], model)
        prepare_student(config.student, model)
    student = SharedStudent(models)
    optimization = build_optimization(config, student)
    parts: dict[str, TaskDataModule] = {}
    trained: dict[str, TaskPart] = {}
    figures: dict[str, int] = {}
    settings = batch_settings(config)
    for number, (name, own) in enumerate(configs.items()):
        (teacher,) = teachers[name]
        objective = build_task_objective(own, read[name].task, backbone_of(models[name]), [backbone_of(teacher.model)])
        its = replace(settings, seed=derive_seed(config.seed, number, 0, _TASK))
        parts[name], evaluators, counts = prepare_task(own, read[name], vocabulary, teachers[name], models[name], its)
        trained[name] = TaskPart(read[name].task, models[name], objective, evaluators, [teacher.model])
        figures |= {f"{count}_{name}": number_of for count, number_of in counts.items()}
    every = [teacher.model for own in teachers.values() for teacher in own]
    suit_hardware(config, every, made)  # the others have the same encoder
    module = Downstream(student, trained, optimization)
    data = MixedDataModule(parts, config.mixing.exponent, settings)
    return SharedTraining(module, data, vocabulary, figures, sum(teacher.num_parameters() for teacher in every))
