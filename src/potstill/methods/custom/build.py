"""Modules, data and adaptors of the user's own, from dotted paths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from potstill.config.instantiate import find, make
from potstill.data.custom import AdaptedDataModule, examples_of
from potstill.errors import ConfigError, PotstillError
from potstill.evaluation.efficiency import count_parameters
from potstill.methods.common.models import build_optimizer, build_schedule, plain_matches, term_weights
from potstill.objectives.custom import LABEL, AdaptedMatches, AdaptedObjective
from potstill.objectives.custom_features import AdaptedFeatures, Reader, call_model
from potstill.objectives.custom_matching import read_adapted_matches
from potstill.objectives.soft_targets import SoftTargets
from potstill.reporting.model_card import code_block, code_span, figure_list
from potstill.runtime.redaction import redacted
from potstill.training.custom import AdaptedDistillation


@dataclass
class AdaptedTraining:
    """The parts of a training run."""

    module: AdaptedDistillation
    data: AdaptedDataModule
    figures: dict[str, int]
    teacher_parameters: int | None


def build_adapted_training(config: DictConfig) -> AdaptedTraining:
    """Models, data, adaptors and module; both models and adaptors are run on one batch, so faults come first.

    Raises:
        PotstillError: a dotted path that leads nowhere, or things that do not fit each other.
    """
    own = config.adapted
    forward = call_model if own.forward is None else find("adapted.forward", own.forward)
    readers = {
        side: Reader(find(key, path), f"{key}={path}", forward)
        for side, (key, path) in {
            "student": ("adapted.adaptor", own.adaptor),
            "teacher": (
                ("adapted.adaptor", own.adaptor)
                if own.teacher_adaptor is None
                else ("adapted.teacher_adaptor", own.teacher_adaptor)
            ),
        }.items()
    }
    teacher = _module("teacher", own.teacher, config.seed) if own.teacher.get("_target_") else None
    student = _module("student", own.student, config.seed)
    with _told("adapted.data"):
        data = AdaptedDataModule(
            make("adapted.data", own.data),
            seed=config.seed,
            accumulate=config.trainer.accumulate_grad_batches,
        )
        batch = data.first_batch()
    ours = _probe("student", readers["student"], student, batch)
    theirs = _probe("teacher", readers["teacher"], teacher, batch) if teacher is not None else None
    objective = build_adapted_objective(config.objective, ours, theirs, seed=config.seed)
    if not objective.needs_teacher:
        teacher = None
    # An error in their arguments must come before training.
    build_schedule(config.schedule, build_optimizer(config.optimizer, student), steps=1)
    module = AdaptedDistillation(
        student,
        teacher,
        objective,
        readers["student"],
        readers["teacher"],
        optimizer=lambda model: build_optimizer(config.optimizer, model),
        schedule=lambda optimizer, steps: build_schedule(config.schedule, optimizer, steps),
        clip=config.trainer.gradient_clip_val,
        shares_every=config.objective.gradient_shares_every,
    )
    parameters = count_parameters(teacher)["total"] if teacher is not None else None
    return AdaptedTraining(module, data, data.figures, parameters)


def build_adapted_objective(
    settings: DictConfig, student: AdaptedFeatures, teacher: AdaptedFeatures | None, *, seed: int
) -> AdaptedObjective:
    """The weighted terms, checked on the features of one batch; `seed` is of projections.

    Raises:
        ConfigError: a term or a match that these features do not allow.
    """
    read = read_adapted_matches(plain_matches(settings))
    matches = AdaptedMatches(read, student, teacher, seed=seed) if read and teacher is not None else None
    weights, schedules = term_weights(settings, LABEL, matches)
    soft = SoftTargets(
        settings.soft_target,
        settings.beta,
        settings.temperature_schedule,
        settings.temperature_strength,
        settings.temperature_gamma,
        settings.probability_shift,
    )
    objective = AdaptedObjective(
        "classification", weights, settings.temperature, soft, schedules=schedules, matches=matches
    )
    with torch.no_grad():
        if faults := [f"objective.{fault}" for fault in objective.unfit(student, teacher)]:
            raise ConfigError("; ".join(faults))
    return objective


def student_card(config: DictConfig, summary: dict[str, Any]) -> str:
    """The README.md of the student's folder: what it is, and how to load it."""
    own = config.adapted
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


def _module(side: str, settings: DictConfig, seed: int) -> nn.Module:
    torch.manual_seed(seed)  # fresh weights are a function of the seed
    made = make(f"adapted.{side}", settings)
    if not isinstance(made, nn.Module):
        raise ConfigError(
            f"adapted.{side}._target_={settings['_target_']}: gives a {type(made).__name__}; a torch.nn.Module"
        )
    return made


def _probe(side: str, read: Reader, model: nn.Module, batch: Any) -> AdaptedFeatures:
    """Features of the first batch, in evaluation mode and without gradient: what does not fit comes to light.

    Raises:
        ConfigError: the model or the adaptor fails, or a tensor has no dimension of the batch's examples.
    """
    was_training = model.training
    with torch.no_grad(), _told(f"adapted.{side}: on the first batch"):
        outputs = read.forward(model.eval(), batch)
    with torch.no_grad(), _told(f"{read.key}: on the first batch of the {side}"):
        features = Reader(read.adaptor, read.key, lambda *_: outputs)(model, batch)
    model.train(was_training)
    examples = examples_of(batch)
    for name, tensor in features.tensors.items():
        if not tensor.ndim or len(tensor) != examples:
            raise ConfigError(
                f"{read.key}: {name} of the {side} has shape {tuple(tensor.shape)}; the first dimension must be the "
                f"batch's {examples} examples"
            )
    for number, logits in enumerate(features.logits):
        if logits.ndim != 2:
            raise ConfigError(
                f"{read.key}: logits[{number}] of the {side} has shape {tuple(logits.shape)}; (examples, labels)"
            )
    if features.labels and (
        len(features.labels) != len(features.logits) or any(labels.ndim != 1 for labels in features.labels)
    ):
        raise ConfigError(
            f"{read.key}: {len(features.labels)} tensors of labels of the {side} and {len(features.logits)} of logits; "
            "each logits has its own labels of shape (examples,)"
        )
    return features


@contextmanager
def _told(key: str) -> Iterator[None]:
    """What the user's own code raises, as one line that says whose it is."""
    try:
        yield
    except PotstillError:
        raise
    except Exception as fault:
        raise ConfigError(f"{key}: {type(fault).__name__}: {' '.join(str(fault).split())}") from fault
