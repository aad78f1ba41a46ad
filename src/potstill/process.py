"""What this process asks of the C runtime before torch is loaded; steps on a CPU are faster, and no result changes.

A step allocates and frees tensors of the vocabulary's size. glibc maps such blocks afresh each time, and the kernel
clears every page of them: a quarter to a third of a step. And OpenMP's threads spin while they wait; where other work
shares the cores, each of a step's many small parallel regions then waits for a thread that is not running.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
SPINS = "20000"  # about as fast as the default (300,000) alone, several times faster beside other work


def prepare() -> None:
    """Keep freed memory for the next step, and wait without spinning for long; variables that are set are respected."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    if any(name.startswith("MALLOC_") for name in os.environ) or "LD_PRELOAD" in os.environ:
        return  # the user has an allocator, or settings, of their own
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
