"""The models that an evaluation measures, and the controls that agreement under interventions is read against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from potstill.config import EvaluateConfig
from potstill.config.benchmarks import swaps_of
from potstill.models.specs import read_settings
from potstill.models.students import student_from_layers
from potstill.validation.exports import forms_of

RANDOM, UNTRAINED = "random", "untrained"


class Candidate(NamedTuple):
    """A model that is evaluated.

    Attributes:
        name: of its row.
        model: folder, GGUF file or hub id.
        forms: in which it is exported.
        control: `RANDOM`: the model with random weights; `UNTRAINED`: a student of the model's layers; else None.
    """

    name: str
    model: str
    forms: list[str]
    control: str | None = None


def reference_of(config: EvaluateConfig, models: Mapping[str, str]) -> str | None:
    """The model that the others are compared with by interventions, where the benchmark swaps states."""
    return next(iter(models.values())) if swaps_of(config.benchmark).mapping is not None else None


def evaluated(config: EvaluateConfig, models: Mapping[str, str]) -> Iterator[Candidate]:
    """What is evaluated; the reference of interventions only by itself, and controls after the models."""
    (first, *others), swaps = models.items(), swaps_of(config.benchmark)
    if swaps.mapping is None or not others:
        yield Candidate(*first, [] if others else forms_of(config))
    for name, model in others:
        yield Candidate(name, model, forms_of(config))
    if swaps.mapping is not None and swaps.random_control:
        by_architecture = {_architecture(model): (name, model) for name, model in reversed(others)}
        for name, model in reversed(by_architecture.values()):
            own = f"{RANDOM} {name}" if len(by_architecture) > 1 else RANDOM
            yield Candidate(_free(own, models), model, [], RANDOM)
    if swaps.mapping is not None and swaps.untrained_layers is not None:
        yield Candidate(_free(UNTRAINED, models), first[1], [], UNTRAINED)


def _free(name: str, taken: Mapping[str, str]) -> str:
    """The name, or a longer one if a model has it."""
    while name in taken:
        name += "_"
    return name


def _architecture(model: str) -> str:
    """The configuration of a model, without what two models of one architecture may differ in."""
    settings = read_settings("model", model)
    return repr(sorted((key, value) for key, value in settings.items() if not key.startswith("_")))


def control_of(
    config: EvaluateConfig, control: str, student: PreTrainedModel, teacher: PreTrainedModel
) -> PreTrainedModel:
    """The control that takes a student's place, in evaluation mode; see `Candidate`.

    Raises:
        ConfigError: the layers are not the teacher's.
    """
    if control == UNTRAINED:
        return student_from_layers(teacher, swaps_of(config.benchmark).untrained_layers or []).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return type(student)(student.config).eval()
