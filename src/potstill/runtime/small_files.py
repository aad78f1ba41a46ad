"""Small files that a user names, read as a whole: regular files only, up to a maximum size."""

from __future__ import annotations

import errno
from pathlib import Path

from potstill.errors import FileError

SMALL_BYTES = 2**24  # of prompts, settings and files written by a run
VOCABULARY_BYTES = 2**28  # of a tokenizer's vocabulary
# Files of a model's folder that transformers and tokenizers read as a whole.
_SETTINGS = ("*config.json", "special_tokens_map.json", "added_tokens.json", "*.jinja", "*.index.json")
_VOCABULARIES = ("tokenizer.json", "vocab.*", "merges.txt", "*.spm", "*.tiktoken", "*.model")


def not_a_file(path: Path) -> str:
    """Why a path is not a regular file; opening a named pipe or a device would block."""
    return "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "does not exist"


def read_small(path: Path) -> str:
    """The text of a small file.

    Raises:
        OSError: the file does not exist or is not a regular file.
        ValueError: the file is too large or not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, not_a_file(path), str(path))
    with path.open("rb") as stream:
        raw = stream.read(SMALL_BYTES + 1)
    if len(raw) > SMALL_BYTES:
        raise ValueError(f"has more than {SMALL_BYTES:,} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 in line {raw.count(10, 0, error.start) + 1}") from None


def small_text(path: Path, key: str) -> str:
    """The text of a small file, as `read_small`.

    Raises:
        FileError: as `read_small`; the message starts with the config key `key`.
    """
    try:
        return read_small(path)
    except ValueError as error:
        reason = str(error)
    except OSError as error:
        reason = not_a_file(path) if not path.is_file() else f"cannot be read ({error.strerror or error})"
    raise FileError(f"{key}={path}: {reason}; expected a small UTF-8 text file")


def model_folder_problem(folder: Path) -> str | None:
    """Error of a file in a model or tokenizer folder that would block the libraries or fill the memory; else None."""
    for path in sorted(folder.iterdir()):
        if path.exists() and not path.is_file() and not path.is_dir():
            return f"{path.name} {not_a_file(path)}"
    for patterns, most in ((_SETTINGS, SMALL_BYTES), (_VOCABULARIES, VOCABULARY_BYTES)):
        for path in (path for pattern in patterns for path in folder.glob(pattern)):
            if path.is_file() and path.stat().st_size > most:
                return f"{path.name} has more than {most:,} bytes"
    return None
