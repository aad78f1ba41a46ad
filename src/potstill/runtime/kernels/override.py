"""Putting functions of ours in the place of torch's on the CPU, for the whole process."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch


def can_override() -> bool:
    """Whether this torch lets its kernels be overridden, and called from what overrides them."""
    return hasattr(torch.library, "get_kernel")


def override(name: str, function: Callable[..., Any], *, with_keyset: bool = False) -> None:
    """Have `aten::<name>` of the CPU call a function.

    Args:
        name: with its overload, `bernoulli_.float`.
        function: takes what the operation takes.
        with_keyset: whether it takes the dispatch keys before that, to call torch's own kernel.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that torch's own kernel is overridden
        _library().impl(name, function, "CPU", with_keyset=with_keyset, allow_override=True)


@cache
def _library() -> torch.library.Library:
    """Kept for the life of the process: what it overrides is restored when it is freed."""
    return torch.library.Library("aten", "IMPL")
