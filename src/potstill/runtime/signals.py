"""Signals that stop a run, for the whole process. No torch.

A signal raises `StoppedError` in the main thread, at once or at the end of a `held` block, in which training finishes
and saves its step. A second signal raises at once in any case, a third one ends the process.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from potstill.errors import StoppedError

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class _Process:
    """Signals received by this process; there is one instance, as handlers belong to the process."""

    def __init__(self) -> None:
        self.home: int | None = None  # id of the listening process
        self.received: int | None = None
        self.count = 0
        self.holds = 0
        self.ending = False


_process = _Process()


def heard() -> tuple[signal.Signals, ...]:
    """Signals that stop a run, except for ignored ones (`nohup`)."""
    return tuple(number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN)


@contextmanager
def listening() -> Iterator[None]:
    """Raise `StoppedError` in this block when a signal arrives; no effect inside of such a block or in a thread."""
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
    """The first signal that arrived, or None."""
    return _process.received


def again() -> bool:
    """Whether a second signal arrived."""
    return _process.count > 1


@contextmanager
def held() -> Iterator[None]:
    """Delay the first signal until the block ends, so that files are written completely.

    Raises:
        StoppedError: a signal arrived, at the end of the outermost block; or a second one, at once.
    """
    hold()
    try:
        yield
    finally:
        release()
    if not _process.holds and _process.received is not None and _process.home == os.getpid():
        raise stopped()


def hold() -> None:
    """Delay the first signal until `release`; the caller checks `received` from time to time."""
    _process.holds += 1


def release() -> None:
    """End a `hold`."""
    _process.holds -= 1


def stopped(when: str = "") -> StoppedError:
    """The exception of the signal that arrived, or SIGTERM if another process received it.

    Args:
        when: appended to the message, ` after step 13`.
    """
    number = _process.received or signal.SIGTERM
    return StoppedError(f"stopped by {signal.Signals(number).name}{when}", number)


def end_at_once() -> None:
    """Let the next signal end the process at once, with the exit code of the first."""
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
    """Handle a signal in a forked process, such as a data loader, which gets Ctrl-C together with its parent."""
    if number != signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
