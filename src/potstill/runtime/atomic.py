"""Atomic writing: a file is written under a temporary name, flushed to the disk, and then renamed."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from potstill.errors import PotstillError, WriteError

# Errors of the disk or of permissions, not of the code.
DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}
_WHILE_WRITING = DISK_ERRORS | {errno.EIO, errno.ESTALE, errno.ENOENT}  # when reading these may be internal errors


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise errors of the disk as a `WriteError` of `path`, also if a library has turned them into another exception.

    Rust libraries put the error number into the message, torch's zip writer raises another error while handling it.
    """
    try:
        yield
    except PotstillError:
        raise
    except Exception as error:
        if (number := _disk_error(error)) is None:
            raise
        raise WriteError(number, os.strerror(number), str(path)) from error


def _disk_error(error: BaseException) -> int | None:
    """The errno of a disk error in a chain of exceptions."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno in _WHILE_WRITING:
            return found.errno
        if (number := re.search(r"\(os error (\d+)\)", str(found))) and int(number[1]) in _WHILE_WRITING:
            return int(number[1])
        if isinstance(found, OSError) and re.search(r"requested and \d+ written", str(found)):  # numpy's
            return errno.ENOSPC
        found = found.__cause__ or found.__context__
    return None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path, renamed to `path` at the end of the block, or removed after an error.

    Temporary files of killed processes are removed, so only one process at a time may write a file.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    for partial in path.parent.glob(f".{path.name}.*.tmp"):
        partial.unlink(missing_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            yield fresh
            with fresh.open("rb+") as file:
                os.fsync(file.fileno())
            fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a UTF-8 text atomically."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")
