"""Entry points of the two commands: signal handlers are installed before the slow imports."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from potstill.errors import StoppedError, printable
from potstill.runtime import signals
from potstill.runtime.process import importing, is_first_rank
from potstill.runtime.redaction import redact


def train() -> None:
    """`python train.py <overrides>`, `potstill-train <overrides>`."""
    with _stoppable():
        with importing():
            from potstill.cli import commands
        commands.train()


def evaluate() -> None:
    """`python evaluate.py model=... benchmark=... <overrides>`, `potstill-evaluate ...`."""
    with _stoppable():
        with importing():
            from potstill.cli import commands
        commands.evaluate()


@contextmanager
def _stoppable() -> Iterator[None]:
    """Exit with one line and code 128 + n when signal n stops the command."""
    with signals.listening():
        try:
            yield
        except StoppedError as stopped:
            signals.end_at_once()
            if is_first_rank():
                with suppress(OSError):  # standard error is closed
                    sys.stderr.write(f"{printable(redact(str(stopped)))}\n")
            if signals.again():  # do not wait for threads
                os._exit(stopped.code)
            raise SystemExit(stopped.code) from None


if __name__ == "__main__":  # stages of a pipeline, and the other processes of DDP
    train()
