"""Worker processes that start fast, ignore Ctrl-C and end with their parent. No torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any


class _Spawned(SpawnProcess):
    def start(self) -> None:
        """Start with SIGINT blocked; the new process inherits the mask."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Spawn(SpawnContext):
    Process = _Spawned


# Context for worker processes that ignore Ctrl-C, which reaches the whole process group.
SPAWN = _Spawn()


@contextmanager
def worker_pool(
    num_proc: int, initializer: Callable[..., object], arguments: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Spawned worker processes that start fast and end with their parent.

    They start while an empty module replaces the main script, whose import would take each of them seconds.
    """
    with ProcessPoolExecutor(num_proc, SPAWN, _start_worker, (initializer, arguments)) as pool:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            for _ in range(num_proc):  # each task that finds no idle worker starts one
                pool.submit(int)
        finally:
            sys.modules["__main__"] = main
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(initializer: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    initializer(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
