"""Standard output and error that tolerate write errors. No torch.

If the reader exits (`train.py | head -1`), the rest of the output is dropped and the command continues. If standard
output cannot be written (`evaluate.py > /dev/full`), the command fails at its end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class OutputStream:
    """A stream that is redirected to the null device after its first error.

    Attributes:
        error: the first error, or None.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write or drop a text."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        """Flush; errors are recorded."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _drop(self, error: OSError) -> None:
        self.error = self.error or error
        with suppress(OSError, ValueError):
            # Also for the buffered text, which the interpreter flushes at exit.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


@contextmanager
def outliving_readers() -> Iterator[OutputStream | None]:
    """Replace both standard streams by an `OutputStream`; yields standard output, or None if it is closed."""
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
