"""Losses, temperatures and projections of the user's own, by dotted path.

Each is tried on a small example when the objective is built, so that a function that does not fit is found before
training.

Source: the functions that TextBrewer's dictionaries take (Yang et al. 2020, arXiv:2002.12620).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import ConfigError
from potstill.runtime.dotted import find, reason

EXAMPLES = 2  # of the tensors that a function is tried on


def own_loss(key: str, path: str, *example: Any, **named: Any) -> Callable[..., Tensor]:
    """A function that returns a mean, tried on an example.

    Args:
        key: for messages, `objective.matches[0].loss`.
        path: of the function.
        example: its arguments.
        named: arguments by name.

    Raises:
        ConfigError: the function does not exist, fails, or does not return a scalar tensor.
    """
    function = find(key, path)
    value = _tried(key, path, function, *example, **named)
    if not isinstance(value, Tensor) or value.ndim:
        raise ConfigError(f"{key}={path}: returns {_shape(value)}; a tensor without dimensions, the mean")
    return function


def own_temperatures(key: str, path: str) -> Callable[..., Tensor]:
    """A function of logits and a temperature that returns one temperature per row, or one for all.

    Raises:
        ConfigError: the function does not exist, fails, or returns something else.
    """
    function, logits_NC = find(key, path), torch.eye(EXAMPLES, 3)
    value = _tried(key, path, function, logits_NC, logits_NC, 2.0)
    number = isinstance(value, float | int)
    if not number and not (isinstance(value, Tensor) and value.shape in ((), (EXAMPLES,))):
        raise ConfigError(f"{key}={path}: returns {_shape(value)}; a temperature for each of {EXAMPLES} rows, or one")
    return function


def own_projection(key: str, path: str, width: int, target: int, generator: torch.Generator) -> nn.Module:
    """The module that a function makes of two widths, with weights drawn from a generator.

    Args:
        key: for messages.
        path: of the function.
        width: of the student's states.
        target: width of the result.
        generator: of the seed of its weights.

    Raises:
        ConfigError: the function does not exist, fails, or makes no module that returns this width.
    """
    function = find(key, path)
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _tried(key, path, function, width, target)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{key}={path}: returns {_shape(module)}; a torch.nn.Module")
    value = _tried(key, path, module, torch.zeros(EXAMPLES, 3, width))
    if not isinstance(value, Tensor) or value.shape != (EXAMPLES, 3, target):
        raise ConfigError(f"{key}={path}: makes {_shape(value)} of states of width {width}; width {target} is needed")
    return module


def _tried(key: str, path: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    try:
        with torch.no_grad():
            return function(*arguments, **named)
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(f"{key}={path}: {type(error).__name__}: {reason(error)}") from error


def _shape(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
