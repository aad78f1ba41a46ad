"""A student of several tasks: one encoder and one head per task."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from potstill.models.head_labels import Head
from potstill.models.head_problems import Problem
from potstill.models.load import TASK_CLASSES, name_labels
from potstill.models.pretrained import make_from_config


def with_head(
    model: PreTrainedModel, *, labels: Sequence[str], head: Head, problem: Problem | None = None
) -> PreTrainedModel:
    """Another task model around the encoder of `model`, which both then share; its head is new.

    Modules that only the other model's encoder has (the pooler of a BERT that labels tokens) are added to it.

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
    """Task models by the name of their task, around one encoder.

    Parameters that they share are counted, trained and kept once.
    """

    def model(self, task: str) -> PreTrainedModel:
        """The model of a task."""
        model = self[task]
        assert isinstance(model, PreTrainedModel)
        return model

    def apart(self, task: str) -> PreTrainedModel:
        """A copy of the model of a task with an encoder of its own, without what other tasks have added to it."""
        shared = self.model(task)
        own = type(shared)(copy.deepcopy(shared.config))
        state = shared.state_dict()
        own.load_state_dict({name: state[name] for name in own.state_dict()})
        return own
