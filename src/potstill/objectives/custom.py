"""Adaptors of a user's own modules: features of a run from (batch, outputs).

Source: Yang et al. 2020 (TextBrewer, arXiv:2002.12620), section 3, adaptors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from potstill.errors import ConfigError
from potstill.losses.soft_targets import IGNORED_LABEL
from potstill.objectives.features import Features, Wanted
from potstill.objectives.matching import ATTENTION, HIDDEN, Place
from potstill.objectives.task import Observed, TaskObjective
from potstill.objectives.terms import LABEL

KNOWN = ("logits", "labels", "losses", HIDDEN, ATTENTION, "mask")


@dataclass(frozen=True)
class AdaptorReader:
    """Runs a module on a batch and reads its features with an adaptor.

    Attributes:
        model: the module.
        adaptor: (batch, outputs) -> dictionary with keys of `KNOWN`: `logits`, `labels`, `losses`, `hidden` and
            `attention` are one tensor, a list of tensors or, for matches, a dictionary of tensors.
        key: names the adaptor in messages.
        forward: (model, batch) -> outputs.
    """

    model: nn.Module
    adaptor: Callable[[Any, Any], Any]
    key: str
    forward: Callable[[nn.Module, Any], Any]

    def __call__(self, micro: tuple[Any, int], wanted: Wanted | None = None) -> Observed:
        """Features of the module on a batch with so many examples.

        Raises:
            ConfigError: the adaptor returns something else.
        """
        batch, examples = micro
        return Observed([read_features(self.adaptor(batch, self.forward(self.model, batch)), self.key, examples)])


def call_model(model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch of one of the usual forms.

    A dictionary is passed by name, without the names that `forward` does not accept. A tuple or list is passed by
    position, as many items as `forward` accepts: a model of images gets the images of (images, labels). Anything else
    is passed as it is.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = {parameter.kind for parameter in parameters}
    if isinstance(batch, Mapping):
        named = {parameter.name for parameter in parameters}
        every = inspect.Parameter.VAR_KEYWORD in kinds
        return model(**{name: value for name, value in batch.items() if every or name in named})
    if not isinstance(batch, list | tuple):
        return model(batch)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    accepted = sum(parameter.kind in positional for parameter in parameters)
    return model(*(batch if inspect.Parameter.VAR_POSITIONAL in kinds else batch[:accepted]))


def read_features(returned: Any, key: str, examples: int) -> Features:
    """Features from the dictionary that an adaptor returned.

    Args:
        returned: the dictionary; None counts as absent.
        key: names the adaptor in messages.
        examples: number of examples of the batch.

    Returns:
        Hidden features as (examples, positions, width), losses as sums over the examples.

    Raises:
        ConfigError: not a dictionary, an unknown key, no known key, or a value that is not a tensor.
    """
    known = ", ".join(KNOWN)
    if not isinstance(returned, Mapping):
        raise ConfigError(f"{key}: returns a {type(returned).__name__}; must be a dictionary with keys of {known}")
    given = {name: value for name, value in returned.items() if value is not None}
    if unknown := next((name for name in given if name not in KNOWN), None):
        raise ConfigError(f"{key}: returns the key {unknown}; the known keys are {known}")
    if not given:
        raise ConfigError(f"{key}: returns none of the known keys {known}")
    tensors = {name: _tensors(given.get(name, ()), name, key) for name in KNOWN[:-1]}
    mask = [given["mask"]] if "mask" in given else []
    losses = tensors["losses"].values()
    return Features(
        logits=tuple(tensors["logits"].values()),
        labels=tuple(tensors["labels"].values()),
        losses=tuple(loss if loss.ndim else loss * examples for loss in losses),  # a scalar is the mean
        hidden={place: states_of(feature) for place, feature in tensors[HIDDEN].items()},
        attention=tensors[ATTENTION],
        mask=_tensors(mask, "mask", key).get(0),
    )


def states_of(feature: Tensor) -> Tensor:
    """A feature as (examples, positions, width).

    Args:
        feature: (examples, width) is one position; (examples, length, width) is unchanged; in (examples, channels, ...)
            every pixel is a position.
    """
    if feature.ndim == 2:
        return feature[:, None]
    return feature if feature.ndim <= 3 else feature.flatten(2).transpose(1, 2)


def _tensors(value: Any, name: str, key: str) -> dict[Place, Tensor]:
    """One tensor, a list of tensors, or a dictionary of tensors, by place."""
    if not isinstance(value, Mapping):
        value = dict(enumerate(value if isinstance(value, list | tuple) else [value]))
    for place, tensor in value.items():
        if not isinstance(tensor, Tensor):
            raise ConfigError(f"{key}: {name}[{place}] is a {type(tensor).__name__}; must be a tensor")
    return dict(value)


def check_shapes(features: Features, examples: int, key: str) -> None:
    """Check the shapes of the features of one batch.

    Raises:
        ConfigError: the first dimension is not the examples, or logits and labels do not fit.
    """
    named = {
        f"{what}[{place}]": tensor
        for what in (*KNOWN[:3], HIDDEN, ATTENTION)
        for place, tensor in _tensors(getattr(features, what), what, key).items()
        if what != "losses" or tensor.ndim
    }
    if features.mask is not None:
        named["mask"] = features.mask
    for name, tensor in named.items():
        if not tensor.ndim or len(tensor) != examples:
            raise ConfigError(
                f"{key}: {name} has shape {tuple(tensor.shape)}; the first dimension must be the batch's {examples} "
                "examples"
            )
    for number, logits in enumerate(features.logits):
        if logits.ndim != 2:
            raise ConfigError(f"{key}: logits[{number}] has shape {tuple(logits.shape)}; must be (examples, labels)")
    pairs = len(features.labels) == len(features.logits)
    if features.labels and not (pairs and all(labels.ndim == 1 for labels in features.labels)):
        raise ConfigError(
            f"{key}: {len(features.labels)} tensors of labels and {len(features.logits)} of logits; each tensor of "
            "logits needs labels of shape (examples,)"
        )


def term_errors(objective: TaskObjective, student: Features, teacher: Features | None) -> Iterator[str]:
    """Reasons why the terms cannot be computed from such features, by keys of `objective`."""
    weights = objective.weights
    if weights.get(LABEL) and not (student.losses or student.labels):
        yield "terms.label.weight: the student's adaptor returns neither labels nor losses; use 0"
    soft = next((term for term in ("ce", "mse") if weights.get(term)), None)
    if soft and teacher is not None:
        ours, theirs = ([tuple(logits.shape) for logits in side.logits] for side in (student, teacher))
        if not ours or ours != theirs:
            yield (
                f"terms.{soft}.weight: the adaptors return logits of shapes {ours} of the student and {theirs} of the "
                "teacher; they must be equal, or use 0"
            )
    if soft and objective.soft.shift and not student.labels:
        yield "probability_shift=true: the student's adaptor returns no labels; use false"
    if objective.matches is None or teacher is None:
        return
    for term in objective.matched:
        try:
            objective.matches([student], [[teacher]], {term: 1.0}, (term,))
        except (ValueError, RuntimeError) as error:
            yield f"matches: {term}: {' '.join(str(error).split())}"


def correct(features: Features) -> tuple[int, int]:
    """Number of correct predictions, and of labels."""
    met = seen = 0
    for logits_NC, labels_N in zip(features.logits, features.labels, strict=False):
        known_N = labels_N != IGNORED_LABEL
        met += int((logits_NC.argmax(-1) == labels_N)[known_N].sum())
        seen += int(known_N.sum())
    return met, seen


def agreeing(student: Features, teacher: Features) -> tuple[int, int]:
    """Number of predictions on which both models agree, and of all predictions."""
    pairs = list(zip(student.logits, teacher.logits, strict=False))
    return sum(int((ours.argmax(-1) == theirs.argmax(-1)).sum()) for ours, theirs in pairs), sum(
        len(ours) for ours, _ in pairs
    )
