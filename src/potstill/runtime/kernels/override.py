"""Overriding CPU kernels of torch for the whole process."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch


def can_override() -> bool:
    """Whether this torch supports overriding kernels and calling the original ones."""
    return hasattr(torch.library, "get_kernel")


def override(name: str, function: Callable[..., Any], *, with_keyset: bool = False) -> None:
    """Let `aten::<name>` on the CPU call a function.

    Args:
        name: with its overload, `bernoulli_.float`.
        function: with the arguments of the operation.
        with_keyset: whether the function takes the dispatch keys first, to call torch's own kernel.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about the override
        _library().impl(name, function, "CPU", with_keyset=with_keyset, allow_override=True)


@cache
def _library() -> torch.library.Library:
    """Kept until the process ends, as freeing it restores torch's kernels."""
    return torch.library.Library("aten", "IMPL")
