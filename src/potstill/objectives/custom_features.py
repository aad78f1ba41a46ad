"""Output of an adaptor: the features of a model's run that losses compare, under known names.

Source: Yang et al. 2020 (TextBrewer, arXiv:2002.12620), section 3, adaptors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from potstill.errors import ConfigError
from potstill.objectives.matching import ATTENTION, HIDDEN, Place

KNOWN = ("logits", "labels", "losses", HIDDEN, ATTENTION, "mask")


@dataclass(frozen=True)
class AdaptedFeatures:
    """Features of one model on one micro-batch; every tensor but a scalar loss has the examples first.

    Attributes:
        logits: (examples, labels) each; several where a model answers several questions.
        labels: (examples,) each, one of every tensor of logits; -100 where an example has none.
        losses: the model's own, scalars that are means over the examples, or (examples,).
        hidden: by number from 0 or by name: (examples, width), (examples, length, width), or
            (examples, channels, ...) of four dimensions and more.
        attention: scores before the softmax, (examples, heads, length, length).
        mask: (examples, ...) nonzero where a position counts; None: all count.
    """

    logits: tuple[Tensor, ...] = ()
    labels: tuple[Tensor, ...] = ()
    losses: tuple[Tensor, ...] = ()
    hidden: Mapping[Place, Tensor] = field(default_factory=dict)
    attention: Mapping[Place, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that has the examples first, by what it is called in messages."""
        named = {
            f"{what}[{number}]": tensor
            for what, own in (("logits", self.logits), ("labels", self.labels), ("losses", self.losses))
            for number, tensor in enumerate(own)
            if tensor.ndim
        }
        for what, places in ((HIDDEN, self.hidden), (ATTENTION, self.attention)):
            named |= {f"{what}[{place}]": tensor for place, tensor in places.items()}
        return named if self.mask is None else {**named, "mask": self.mask}


@dataclass(frozen=True)
class Reader:
    """Runs a model on a batch and has an adaptor read what came of it.

    Attributes:
        adaptor: (batch, outputs) -> dictionary with keys of `KNOWN`.
        key: what names the adaptor in messages.
        forward: (model, batch) -> outputs.
    """

    adaptor: Callable[[Any, Any], Any]
    key: str
    forward: Callable[[nn.Module, Any], Any]

    def __call__(self, model: nn.Module, batch: Any) -> AdaptedFeatures:
        """The model's features on the batch.

        Raises:
            ConfigError: the adaptor returns something else.
        """
        return read_features(self.adaptor(batch, self.forward(model, batch)), self.key)


def call_model(model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch of the usual forms.

    A dictionary goes in by name, less the names that `forward` does not take. A tuple or list goes in item by item, as
    far as `forward` takes any, so of (images, labels) a model of images takes the images. Anything else goes in whole.
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
    taken = sum(parameter.kind in positional for parameter in parameters)
    return model(*(batch if inspect.Parameter.VAR_POSITIONAL in kinds else batch[:taken]))


def read_features(returned: Any, key: str) -> AdaptedFeatures:
    """Features from what an adaptor returned.

    Args:
        returned: a dictionary; a value None is as none.
        key: what names the adaptor in messages.

    Raises:
        ConfigError: not a dictionary, no known key, an unknown key, or a value that is not a tensor.
    """
    known = ", ".join(KNOWN)
    if not isinstance(returned, Mapping):
        raise ConfigError(
            f"{key}: returns a {type(returned).__name__}; a dictionary with some of the keys {known}"
        )
    given = {name: value for name, value in returned.items() if value is not None}
    if unknown := next((name for name in given if name not in KNOWN), None):
        raise ConfigError(f"{key}: returns the key {unknown}, which is none of {known}")
    if not given:
        raise ConfigError(f"{key}: returns none of the known keys {known}")
    mask = given.get("mask")
    logits, labels, losses = (
        tuple(_listed(given, name, key).values()) for name in ("logits", "labels", "losses")
    )
    return AdaptedFeatures(
        logits,
        labels,
        losses,
        _listed(given, HIDDEN, key),
        _listed(given, ATTENTION, key),
        None if mask is None else _tensor(mask, "mask", key),
    )


def _listed(given: Mapping[str, Any], name: str, key: str) -> dict[Place, Tensor]:
    """One tensor, a list of them, or a dictionary, by place."""
    value = given.get(name, ())
    if isinstance(value, Mapping):
        items = list(value.items())
    else:
        items = list(enumerate(value if isinstance(value, list | tuple) else [value]))
    return {place: _tensor(tensor, f"{name}[{place}]", key) for place, tensor in items}


def _tensor(value: Any, name: str, key: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise ConfigError(f"{key}: {name} is a {type(value).__name__}; a tensor")
    return value
