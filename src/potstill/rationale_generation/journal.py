"""A journal of answers on disk, so that a killed run never repeats a request."""

import errno
import fcntl
import json
import logging
import math
import os
import threading
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from potstill.errors import DataError, FileError, FormatError
from potstill.rationale_generation.answers import Answer
from potstill.runtime.atomic import writing
from potstill.runtime.json_text import json_text
from potstill.runtime.small_files import SMALL_BYTES, not_a_file

logger = logging.getLogger(__name__)


class Journal:
    """An append-only file of answers, one JSON object per line, as a context manager.

    A line is on disk when `add` returns. An incomplete last line is removed when the file is opened; other damaged
    lines are skipped with a warning. Their answers are requested again.

    Attributes:
        answers: All answers by key.
        lines: Number of complete lines when the file was opened.

    Raises:
        DataError: Another process has the journal open.
        FileError: The journal is not a regular file.
        FormatError: A line is too long.
        WriteError: The file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, Answer] = {}
        self.lines = 0
        self._guard = threading.Lock()

    def __enter__(self) -> "Journal":
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = self.path.with_name(f"{self.path.name}.lock")
            for path in (self.path, lock):
                if path.exists() and not path.is_file():
                    raise FileError(f"the journal {path} {not_a_file(path)}; choose another folder")
            self._lock = lock.open("a+b")
            self._claim()
            self._stream = self.path.open("ab", buffering=0)
        self._read()
        _sync_folder(self.path.parent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._lock.close()  # releases the lock

    def add(self, key: str, answer: Answer) -> None:
        """Write an answer; thread-safe.

        Raises:
            WriteError: The file cannot be written, such as on a full disk.
        """
        line = json_text({"key": key, **asdict(answer)}).encode() + b"\n"
        with self._guard, writing(self.path):
            if self._stream.write(line) < len(line):
                raise OSError(errno.ENOSPC, "no space for a whole line")
            os.fsync(self._stream.fileno())
            self.answers[key] = answer

    def _claim(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().decode(errors="replace").strip()
            self._lock.close()
            raise DataError(
                f"the journal {self.path} is being written by process {holder or '(unknown)'}; "
                "wait until it ends, or choose another folder"
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()).encode())
        self._lock.flush()

    def _read(self) -> None:
        end = 0
        with self.path.open("rb") as stream:
            for number, line in enumerate(iter(lambda: stream.readline(SMALL_BYTES), b""), 1):
                if len(line) == SMALL_BYTES:
                    raise FormatError(f"the journal {self.path} line {number} has {SMALL_BYTES:,} bytes or more")
                if not line.endswith(b"\n"):
                    break  # incomplete: the process was killed
                end += len(line)
                entry = _entry(line)
                if entry is None:
                    logger.warning("%s: line %d is damaged; its answer is requested again", self.path, number)
                    continue
                self.lines += 1
                self.answers[entry[0]] = entry[1]
        self._stream.truncate(end)


def _entry(line: bytes) -> tuple[str, Answer] | None:
    try:
        content: dict[str, Any] = json.loads(line)
        key, text, finish = (content[name] for name in ("key", "text", "finish"))
        tokens = [content[name] for name in ("input_tokens", "output_tokens")]
        pairs = content.get("logprobs")
        logprobs = None if pairs is None else _pairs(pairs)
        top = None if content.get("top") is None else [_pairs(own) for own in content["top"]]
    except (ValueError, TypeError, KeyError):
        return None
    if not all(isinstance(one, str) for one in (key, text, finish)) or not all(isinstance(one, int) for one in tokens):
        return None
    return key, Answer(text, finish, tokens[0], tokens[1], logprobs, top)


def _pairs(listed: Any) -> list[tuple[str, float]]:
    return [(str(token), -math.inf if value is None else float(value)) for token, value in listed]


def _sync_folder(folder: Path) -> None:
    """Sync the directory, so that a new file's name is on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
