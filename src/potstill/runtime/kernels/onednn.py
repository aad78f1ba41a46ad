"""float32 matrix products by oneDNN on AMD processors.

torch multiplies float32 matrices with Intel's MKL, which does not use the AVX-512 units of AMD processors. oneDNN, a
part of torch, is about twice as fast there at the same precision. Here `aten::mm` and `aten::addmm`, which linear
layers, heads and their gradients call, use it on the CPU for products that are large enough for a call through Python.
"""

from __future__ import annotations

import contextlib
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from potstill.runtime.kernels.override import can_override, override

SMALLEST = 2**22  # multiplications; for smaller products the call costs more than oneDNN saves


@cache
def use_onednn() -> bool:
    """Compute float32 products by oneDNN if that is faster on this processor; returns whether it is."""
    if not _is_faster():
        return False
    for name, product in (("mm", _mm), ("addmm", _addmm)):
        own = torch.library.get_kernel(f"aten::{name}", "CPU")
        override(name, partial(product, own), with_keyset=True)
    return True


def _is_faster() -> bool:
    """An AMD processor with AVX-512, and a torch built on MKL that has oneDNN's linear layer."""
    with contextlib.suppress(OSError):
        return (
            "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
            and torch.backends.cpu.get_cpu_capability() == "AVX512"
            and torch.backends.mkl.is_available()
            and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_linear_pointwise")
            and can_override()
        )
    return False


def _mm(own: Any, keys: Any, one: Tensor, other: Tensor) -> Tensor:
    if _is_large(one, other):
        return _product(one, other, None)
    return own.call_boxed(keys, one, other)


def _addmm(
    own: Any, keys: Any, bias: Tensor, one: Tensor, other: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    if beta == alpha == 1 and bias.dim() == 1 and bias.shape[0] == other.shape[1] and _is_large(one, other):
        return _product(one, other, bias.contiguous())
    return own.call_boxed(keys, bias, one, other, beta=beta, alpha=alpha)


def _is_large(one: Tensor, other: Tensor) -> bool:
    return (
        one.dtype == other.dtype == torch.float32
        and one.dim() == other.dim() == 2
        and one.shape[1] == other.shape[0]
        and one.shape[0] * other.shape[0] * other.shape[1] >= SMALLEST
    )


def _product(one: Tensor, other: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(one, other.t(), bias, "none", [], "")
