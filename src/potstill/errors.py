"""User errors: the command line prints one line and exits with code 2.

A message names the key, the value and what would be right. Anything else that is raised is a bug of ours (exit
code 1, with a traceback).
"""

import re

# Control characters but for tab and line feed, separators of lines, bidirectional controls, halves of surrogate pairs.
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""A text of foreign origin (an endpoint, a file, a name) for a terminal or a log: escapes in place of controls.

    >>> printable("red: \x1b[31m")
    'red: \\x1b[31m'
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class PotstillError(Exception):
    """Base of all faults of the user's; never raised itself."""


class ConfigError(PotstillError):
    """A configuration that cannot be run."""


class DataError(PotstillError):
    """Input text, a tokenizer or a store that cannot be used."""


class ModelError(PotstillError):
    """A model, or a pair of models, that does not fit."""


class CheckpointError(PotstillError):
    """A checkpoint that is missing, broken or of another run."""


class WriteError(PotstillError, OSError):
    """A file or a folder that cannot be written: `errno`, `strerror` and `filename` say why and which."""


class StoppedError(BaseException):
    """A run that a signal has ended; no error, so it passes by what handles exceptions, as a KeyboardInterrupt does."""

    def __init__(self, message: str, signal: int):
        super().__init__(message, signal)  # both, or another process could not raise it again
        self.signal = signal

    def __str__(self) -> str:
        return str(self.args[0])

    @property
    def code(self) -> int:
        """The exit code, as a shell gives it."""
        return 128 + self.signal


class StageError(Exception):
    """A stage of a recipe that has failed and said why; the recipe ends with its exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class TrainingError(PotstillError):
    """A run that cannot go on, such as a loss that is not a number."""
