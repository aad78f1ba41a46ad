"""Modules, data and adaptors of the user's own, from dotted paths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.config import TrainConfig
from potstill.config.instantiate import make
from potstill.config.objectives.base import matches_of
from potstill.data.custom import CustomDataModule, examples_of
from potstill.data.tasks.labels import CLASSIFICATION
from potstill.errors import ConfigError, PotstillError
from potstill.evaluation.efficiency import count_parameters
from potstill.methods.common.models import build_optimization, soft_objective
from potstill.methods.custom.stored import store_custom_teachers, teacher_of_file
from potstill.objectives.custom import AdaptorReader, call_model, read_features, term_errors
from potstill.objectives.features import Features
from potstill.objectives.matches import Matches
from potstill.objectives.matching import read_matches
from potstill.objectives.soft_targets import TeacherMean
from potstill.objectives.task import TaskObjective
from potstill.reporting.model_card import code_block, code_span, figure_list
from potstill.runtime.dotted import find
from potstill.runtime.redaction import redacted
from potstill.training.custom import CustomDistillation


@dataclass
class CustomTraining:
    """The parts of a training run."""

    module: CustomDistillation
    data: CustomDataModule
    figures: dict[str, int]
    teacher_parameters: int | None


def build_custom_training(config: TrainConfig) -> CustomTraining:
    """Models, data, adaptors and module; both models and adaptors are run on one batch, so problems come first.

    Raises:
        PotstillError: a dotted path that cannot be imported, or modules, adaptors and data that do not fit each other.
    """
    own = config.custom
    forward = call_model if own.forward is None else find("custom.forward", own.forward)
    adaptors = list(own.teacher_adaptors.items())
    adaptors *= len(own.every_teacher) if len(adaptors) == 1 else 1
    teachers = [
        _reader(key, settings, *adaptor, forward, config.seed)
        for (key, settings), adaptor in zip(own.every_teacher.items(), adaptors, strict=True)
    ]
    student = _reader("custom.student", own.student, "custom.adaptor", str(own.adaptor), forward, config.seed)
    with _as_config_errors("custom.data"):
        data = CustomDataModule(
            make("custom.data", own.data), seed=config.seed, accumulate=config.trainer.accumulate_grad_batches
        )
        batch = data.first_batch()
    features = _probe("custom.student", student, batch)
    taught = [_probe(key, teacher, batch) for key, teacher in zip(own.every_teacher, teachers, strict=True)]
    parameters = sum(count_parameters(teacher.model)["total"] for teacher in teachers) or None
    stored = []
    if config.teacher.cache.file is not None:
        stored = [teacher_of_file(Path(config.teacher.cache.file).expanduser(), data)]
    elif config.teacher.cache.enabled:
        stored = store_custom_teachers(config, teachers, taught, data)
    if stored:
        taught = [own(features).base[0] for own in stored]
    objective = build_custom_objective(config, features, taught)
    used = teachers if objective.needs_teacher and not stored else []
    if not objective.needs_teacher:
        parameters = None
    optimization = build_optimization(config, student.model)
    module = CustomDistillation(student, used, objective, optimization, features=features, stored=stored)
    return CustomTraining(module, data, data.figures, parameters)


def build_custom_objective(config: TrainConfig, student: Features, teachers: Sequence[Features]) -> TaskObjective:
    """The weighted terms, checked on the features of one batch.

    Args:
        config: of the run.
        student: features of the student.
        teachers: features of each teacher.

    Raises:
        PotstillError: a term or a match that these features do not allow.
    """
    settings = config.losses
    read = read_matches(matches_of(settings), [None] * max(len(teachers), 1))
    matches = Matches(read, teachers, student, seed=config.seed) if read and teachers else None
    mean = TeacherMean(tuple(config.teacher.weights or ()), config.teacher.average)
    objective = replace(soft_objective(settings, CLASSIFICATION, matches), mean=mean)
    with torch.no_grad():
        if problems := [f"objective.{error}" for error in term_errors(objective, student, teachers)]:
            raise ConfigError("; ".join(problems))
    return objective


def student_card(config: TrainConfig, summary: dict[str, Any]) -> str:
    """The README.md of the student's folder: what it is, and how to load it."""
    own = config.custom
    module, _, name = str(own.student["_target_"]).rpartition(".")
    given = {str(key): value for key, value in own.student.items() if key != "_target_"}
    settings = code_block(", ".join(f"{key}={value!r}" for key, value in redacted(given).items()))
    return (
        f"# Student\n\nTrained with {code_span(f'objective={config.objective.name}')} on "
        f"{code_span(str(own.data['_target_']))}; teacher: {code_span(_taught_by(config))}; "
        f"seed {config.seed}.\n\n{figure_list(summary)}\n\n"
        "`model.safetensors` holds its state. Open it with\n\n"
        "```python\nfrom safetensors.torch import load_model\n\n"
        f"from {module} import {name}\n\nstudent = {name}({settings})\n"
        'load_model(student, "model.safetensors")\n```\n'
    )


def _taught_by(config: TrainConfig) -> str:
    return ", ".join(str(settings["_target_"]) for settings in config.custom.every_teacher.values()) or "none"


def _reader(
    key: str, settings: dict[str, Any], adaptor_key: str, adaptor: str, forward: Callable[..., Any], seed: int
) -> AdaptorReader:
    """A module of the user's own with its adaptor."""
    torch.manual_seed(seed)  # fresh weights are a function of the seed
    made = make(key, settings)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{key}._target_={settings['_target_']}: gives a {type(made).__name__}; a torch.nn.Module")
    return AdaptorReader(made, find(adaptor_key, adaptor), f"{adaptor_key}={adaptor}", forward)


def _probe(key: str, read: AdaptorReader, batch: Any) -> Features:
    """Features of the first batch, in evaluation mode and without gradient.

    Raises:
        ConfigError: the module or the adaptor fails, or a tensor has another shape than it must.
    """
    examples, was_training, side = examples_of(batch) or 0, read.model.training, key.removeprefix("custom.")
    with torch.no_grad(), _as_config_errors(f"{key}: on the first batch"):
        outputs = read.forward(read.model.eval(), batch)
    with torch.no_grad(), _as_config_errors(f"{read.key}: on the first batch of the {side}"):
        features = read_features(read.adaptor(batch, outputs), f"{read.key}: of the {side}", examples)
    read.model.train(was_training)
    return features


@contextmanager
def _as_config_errors(key: str) -> Iterator[None]:
    """Turn exceptions of the user's own code into a ConfigError that begins with the key."""
    try:
        yield
    except PotstillError:
        raise
    except Exception as error:
        raise ConfigError(f"{key}: {type(error).__name__}: {' '.join(str(error).split())}") from error
