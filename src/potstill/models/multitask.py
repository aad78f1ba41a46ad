"""A student of several tasks: one encoder and one head per task."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from potstill.models.heads import Head, Problem
from potstill.models.load import TASK_CLASSES, name_labels
from potstill.models.pretrained import make_from_config


def with_head(
    model: PreTrainedModel, *, labels: Sequence[str], head: Head, problem: Problem | None = None
) -> PreTrainedModel:
    """Make another task model that shares the encoder of `model`; its head is new.

    Modules of the encoder that only the other model needs (a BERT that labels tokens has no pooler) are added to it.

    Args:
        model: a task model; its encoder may be added to.
        labels: of the other task, by number; empty for a regression.
        head: what the other model labels.
        problem: what its head is trained for; see `name_labels`.

    Returns:
        The other model, its head initialised from torch's generator.
    """
    config = copy.deepcopy(model.config)
    if head != "spans":
        config.num_labels = max(len(labels), 1)
    name_labels(config, labels, problem)
    other: PreTrainedModel = make_from_config(TASK_CLASSES[head], config)
    encoder = model.base_model
    for name, part in other.base_model.named_children():
        if getattr(encoder, name, None) is None:
            setattr(encoder, name, part)
    setattr(other, other.base_model_prefix, encoder)
    return other


class SharedStudent(nn.ModuleDict):
    """Task models by the name of their task, with one encoder.

    Shared parameters are counted, trained and saved once.
    """

    def model(self, task: str) -> PreTrainedModel:
        """The model of a task."""
        model = self[task]
        assert isinstance(model, PreTrainedModel)
        return model

    def apart(self, task: str) -> PreTrainedModel:
        """A copy of the model of a task with an encoder of its own, without the modules that other tasks added."""
        shared = self.model(task)
        own = type(shared)(copy.deepcopy(shared.config))
        state = shared.state_dict()
        own.load_state_dict({name: state[name] for name in own.state_dict()})
        return own
