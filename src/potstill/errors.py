"""User errors: the command line prints one line and exits with code 2.

A message names the key, the value and what is valid; the code of the class follows in brackets. Any other exception
is an internal error (exit code 1, with a traceback).
"""

import re

# Control characters but for tab and line feed, separators of lines, bidirectional controls, halves of surrogate pairs.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""A text of foreign origin (an endpoint, a file, a name) for a terminal or a log: escapes in place of controls.

    >>> printable("red: \x1b[31m")
    'red: \\x1b[31m'
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class PotstillError(Exception):
    """Base of all user errors; never raised itself.

    Attributes:
        code: stable name of the kind of error, shown at the end of its line and explained in `docs/errors.md`.
    """

    code = "E-POTSTILL"


class ConfigError(PotstillError):
    """A key, a value or a combination of them that cannot be run."""

    code = "E-CONFIG"


class KeyNameError(ConfigError):
    """A key or an option that does not exist, or that nothing reads in this run."""

    code = "E-KEY"


class PackageError(ConfigError):
    """A feature of an optional package that is not installed."""

    code = "E-PACKAGE"


class DataError(PotstillError):
    """Text or rows that cannot be used in this run."""

    code = "E-DATA"


class FileError(DataError):
    """A file or a folder that is missing or cannot be read."""

    code = "E-FILE"


class FormatError(DataError):
    """A file whose content is not in the format that the run reads; the line or row is named."""

    code = "E-FORMAT"


class LabelError(DataError):
    """Labels that are unknown, contradictory or not those of the model."""

    code = "E-LABEL"


class TokenizerError(DataError):
    """A tokenizer that cannot be loaded, or that does not fit the model or the text."""

    code = "E-TOKENIZER"


class CacheError(DataError):
    """A store on disk, of a corpus, of features or of a teacher's outputs, that is damaged or of something else."""

    code = "E-CACHE"


class EndpointError(DataError):
    """An endpoint of a language model that cannot be reached, or whose answers cannot be used."""

    code = "E-ENDPOINT"


class ModelError(PotstillError):
    """A model that cannot be used in this run."""

    code = "E-MODEL"


class WeightsError(ModelError):
    """Weights that are missing, damaged or of another architecture."""

    code = "E-WEIGHTS"


class PairError(ModelError):
    """A teacher and a student, or two compared models, that do not fit each other."""

    code = "E-PAIR"


class CheckpointError(PotstillError):
    """A checkpoint that is missing, damaged or of another run."""

    code = "E-CHECKPOINT"


class WriteError(PotstillError, OSError):
    """A file or a folder that cannot be written: `errno`, `strerror` and `filename` say why and which."""

    code = "E-WRITE"


class TrainingError(PotstillError):
    """Training that cannot continue, for example because the loss is not finite."""

    code = "E-TRAINING"


class StoppedError(BaseException):
    """A signal ended the run. Like KeyboardInterrupt not an Exception, so that handlers of errors let it pass."""

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
    """A stage of a recipe failed and has printed its error; the recipe ends with its exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code
