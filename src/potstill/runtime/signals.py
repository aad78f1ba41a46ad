"""Signals that end a run: one mechanism for the whole process.

A signal raises `StoppedError` in the main thread at once or, within `held`, at the end of that block: training finishes
its step and saves it first. A second signal raises at once in any case, a third one ends the process. No torch.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from potstill.errors import StoppedError

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class _Process:
    """What this process has received; handlers of signals belong to the process, so there is one."""

    def __init__(self) -> None:
        self.home: int | None = None  # the process that listens
        self.received: int | None = None
        self.count = 0
        self.holds = 0
        self.ending = False


_process = _Process()


def heard() -> tuple[signal.Signals, ...]:
    """Signals that end a run here: one that is ignored on purpose (`nohup`) stays ignored."""
    return tuple(number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN)


@contextmanager
def listening() -> Iterator[None]:
    """Raise `StoppedError` in this block when a signal arrives; within another such block, and in a thread, no effect.

    Raises:
        StoppedError: a signal has arrived.
    """
    if _process.home == os.getpid() or threading.current_thread() is not threading.main_thread():
        yield
        return
    _process.__init__()  # type: ignore[misc]
    _process.home = os.getpid()
    before = {number: signal.signal(number, _note) for number in heard()}
    try:
        yield
    finally:
        if not _process.ending:
            _process.home = None
            for number, handler in before.items():
                signal.signal(number, handler)


def received() -> int | None:
    """The first signal that arrived; None where there was none."""
    return _process.received


def again() -> bool:
    """Whether a second signal arrived."""
    return _process.count > 1


@contextmanager
def held() -> Iterator[None]:
    """Keep the first signal back until the block ends, so that what is written in it is complete.

    Raises:
        StoppedError: at the end of the outermost such block a signal that arrived in it; in its middle a second one.
    """
    hold()
    try:
        yield
    finally:
        release()
    if not _process.holds and _process.received is not None and _process.home == os.getpid():
        raise stopped()


def hold() -> None:
    """Keep the first signal back until `release`; whoever does that asks `received` from time to time."""
    _process.holds += 1


def release() -> None:
    """End a `hold`."""
    _process.holds -= 1


def stopped(when: str = "") -> StoppedError:
    """The exception of the signal that arrived, SIGTERM where it was another process's.

    Args:
        when: is added to the message, ` after step 13`.
    """
    number = _process.received or signal.SIGTERM
    return StoppedError(f"stopped by {signal.Signals(number).name}{when}", number)


def end_at_once() -> None:
    """From now on a further signal ends the process with the exit code of the first: it is on its way out."""
    _process.ending = True


def _note(number: int, _: Any) -> None:
    if os.getpid() != _process.home:
        _in_a_child(number)
        return
    _process.count += 1
    if _process.received is None:
        _process.received = number
    if _process.ending or _process.count > 2:
        os._exit(128 + _process.received)
    if _process.count == 1 and _process.holds:
        return
    raise stopped(" (the second one)" if _process.count > 1 else "")


def _in_a_child(number: int) -> None:
    """A forked process, such as one that reads batches, ends with its parent, which has Ctrl-C as well."""
    if number != signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


class _Spawned(SpawnProcess):
    def start(self) -> None:
        """Start with Ctrl-C blocked, a mask that the new process inherits."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Spawn(SpawnContext):
    Process = _Spawned


# Starts processes that work for this one: Ctrl-C, which reaches the whole group, is left to this one.
SPAWN = _Spawn()
