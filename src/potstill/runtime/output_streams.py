"""Standard output and standard error that may break off: a command outlives its reader. No torch.

Where the reader has gone (`train.py | head -1`) the rest of the output is dropped and the command continues. Where
standard output cannot be written (`evaluate.py > /dev/full`) the command does its work first, and fails then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class OutputStream:
    """A stream whose first error redirects it to the null device.

    Attributes:
        error: the first error; None where there was none.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write, or drop, a text."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        """Flush what can be."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self, error: OSError) -> None:
        self.error = self.error or error
        with suppress(OSError, ValueError):
            # What is buffered goes there as well, also when the interpreter flushes once more at its end.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


@contextmanager
def outliving_readers() -> Iterator[OutputStream | None]:
    """Both standard streams as `OutputStream`; gives standard output, None where it is closed."""
    before = sys.stdout, sys.stderr
    out, err = (None if stream is None else OutputStream(stream) for stream in before)
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        for stream in (out, err):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before
