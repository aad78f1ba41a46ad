"""Modules, data and adaptors of the user's own, from dotted paths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from potstill.config import TrainConfig
from potstill.config.instantiate import make
from potstill.config.objectives import LossConfig, matches_of
from potstill.data.custom import CustomDataModule, examples_of
from potstill.data.tasks.labels import CLASSIFICATION
from potstill.errors import ConfigError, PotstillError
from potstill.evaluation.efficiency import count_parameters
from potstill.methods.common.models import build_optimization, soft_objective
from potstill.objectives.custom import AdaptorReader, call_model, check_shapes, read_features, term_errors
from potstill.objectives.features import Features
from potstill.objectives.matches import Matches
from potstill.objectives.matching import read_matches
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
    adaptors = {"student": ("custom.adaptor", own.adaptor), "teacher": ("custom.teacher_adaptor", own.teacher_adaptor)}
    if own.teacher_adaptor is None:
        adaptors["teacher"] = adaptors["student"]
    found = {side: (find(key, str(path)), f"{key}={path}") for side, (key, path) in adaptors.items()}
    readers = {
        side: AdaptorReader(_module(side, getattr(own, side), config.seed), *found[side], forward)
        for side in ("teacher", "student")
        if side == "student" or own.teacher.get("_target_")
    }
    student, teacher = readers["student"], readers.get("teacher")
    with _as_config_errors("custom.data"):
        data = CustomDataModule(
            make("custom.data", own.data), seed=config.seed, accumulate=config.trainer.accumulate_grad_batches
        )
        batch = data.first_batch()
    features = {side: _probe(side, reader, batch) for side, reader in readers.items()}
    objective = build_custom_objective(config.losses, features["student"], features.get("teacher"), seed=config.seed)
    if not objective.needs_teacher:
        teacher = None
    module = CustomDistillation(student, teacher, objective, build_optimization(config, student.model))
    parameters = count_parameters(teacher.model)["total"] if teacher is not None else None
    return CustomTraining(module, data, data.figures, parameters)


def build_custom_objective(
    settings: LossConfig, student: Features, teacher: Features | None, *, seed: int
) -> TaskObjective:
    """The weighted terms, checked on the features of one batch.

    Args:
        settings: the keys of `objective`.
        student: features of the student.
        teacher: features of the teacher.
        seed: seed of projections.

    Raises:
        PotstillError: a term or a match that these features do not allow.
    """
    read = read_matches(matches_of(settings))
    matches = Matches(read, [teacher], student, seed=seed) if read and teacher is not None else None
    objective = soft_objective(settings, CLASSIFICATION, matches)
    with torch.no_grad():
        if problems := [f"objective.{error}" for error in term_errors(objective, student, teacher)]:
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
        f"{code_span(str(own.data['_target_']))}; teacher: {code_span(str(own.teacher.get('_target_') or 'none'))}; "
        f"seed {config.seed}.\n\n{figure_list(summary)}\n\n"
        "`model.safetensors` holds its state. Open it with\n\n"
        "```python\nfrom safetensors.torch import load_model\n\n"
        f"from {module} import {name}\n\nstudent = {name}({settings})\n"
        'load_model(student, "model.safetensors")\n```\n'
    )


def _module(side: str, settings: dict[str, Any], seed: int) -> nn.Module:
    torch.manual_seed(seed)  # fresh weights are a function of the seed
    made = make(f"custom.{side}", settings)
    if not isinstance(made, nn.Module):
        raise ConfigError(
            f"custom.{side}._target_={settings['_target_']}: gives a {type(made).__name__}; a torch.nn.Module"
        )
    return made


def _probe(side: str, read: AdaptorReader, batch: Any) -> Features:
    """Features of the first batch, in evaluation mode and without gradient.

    Raises:
        ConfigError: the module or the adaptor fails, or a tensor has another shape than it must.
    """
    examples, was_training = examples_of(batch) or 0, read.model.training
    with torch.no_grad(), _as_config_errors(f"custom.{side}: on the first batch"):
        outputs = read.forward(read.model.eval(), batch)
    with torch.no_grad(), _as_config_errors(f"{read.key}: on the first batch of the {side}"):
        features = read_features(read.adaptor(batch, outputs), read.key, examples)
    read.model.train(was_training)
    check_shapes(features, examples, f"{read.key}: of the {side}")
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
