"""The two commands. They listen to signals before anything large is imported: Ctrl-C is one line at any moment."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from potstill.errors import StoppedError, printable
from potstill.runtime import signals
from potstill.runtime.process import is_first_rank
from potstill.runtime.redaction import redact


def train() -> None:
    """`python train.py <overrides>`, `potstill-train <overrides>`."""
    with _stoppable():
        from potstill.cli import commands

        commands.train()


def evaluate() -> None:
    """`python evaluate.py model=... benchmark=... <overrides>`, `potstill-evaluate ...`."""
    with _stoppable():
        from potstill.cli import commands

        commands.evaluate()


@contextmanager
def _stoppable() -> Iterator[None]:
    """End the command by the signals that end a run: one line, exit code 128 + the signal's number."""
    with signals.listening():
        try:
            yield
        except StoppedError as stopped:
            signals.end_at_once()
            if is_first_rank():
                with suppress(OSError):  # nobody reads it
                    sys.stderr.write(f"{printable(redact(str(stopped)))}\n")
            if signals.again():  # threads under way are not waited for
                os._exit(stopped.code)
            raise SystemExit(stopped.code) from None


if __name__ == "__main__":  # a stage of a recipe; DDP starts its other processes by the module's name
    train()
