"""Dropout masks from a faster random generator.

On a CPU torch draws the elements of a mask sequentially from a Mersenne twister, on one core: after the matrix products
the largest part of a small model's step. Here `aten::bernoulli_`, which dropout calls, takes bits of SFC64, seeded from
torch's generator: a mask is still a function of `torch.manual_seed`, but a different one.

Source: Doty-Humphrey 2010, PractRand's SFC64, as implemented by numpy.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.runtime.kernels.override import can_override, override

BLOCK = 2**18  # elements at a time, whose bits fit into the cache of a core
_BITS = 32


@cache
def use_fast_masks() -> bool:
    """Override `bernoulli_` on the CPU; returns whether this torch supports it."""
    if can_override():
        override("bernoulli_.float", _bernoulli)
    return can_override()


def _bernoulli(mask: Tensor, p: float = 0.5, *, generator: Any = None) -> Tensor:
    """Set each element to 1 with probability p, rounded to 2^-32, otherwise to 0; in place."""
    if not 0 <= p <= 1:
        raise RuntimeError(f"bernoulli_ expects p to be in [0, 1], but got p={p}")
    if p in (0, 1):
        return mask.fill_(p)
    seed = int(torch.empty((), dtype=torch.int64).random_(generator=generator))
    bits = np.random.Generator(np.random.SFC64(seed))
    # A share p of the signed 32-bit words is below this bound.
    bound = min(round(p * 2**_BITS), 2**_BITS - 1) - 2 ** (_BITS - 1)
    flat = mask.view(-1) if mask.is_contiguous() else torch.empty(mask.numel(), dtype=mask.dtype)
    for start in range(0, len(flat), BLOCK):
        part = flat[start : start + BLOCK]
        words = bits.integers(0, 2**64 - 1, (len(part) + 1) // 2, np.uint64, endpoint=True).view(np.int32)
        torch.lt(torch.from_numpy(words)[: len(part)], bound, out=part)
    return mask if mask.is_contiguous() else mask.copy_(flat.view(mask.shape))
