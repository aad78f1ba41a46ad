"""Files that are written whole or not at all: under another name first, which then takes the place of the old one."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from potstill.errors import PotstillError, WriteError

# What keeps a file from being written, but for a bug.
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
_WHILE_WRITING = DISK_ERRORS | {errno.EIO, errno.ESTALE, errno.ENOENT}  # elsewhere these may be bugs


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes a file or a folder: an error of the disk names `path`, whatever the library makes of it.

    Libraries in Rust name the error's number in a text, torch's zip writer raises another error while it handles it.

    Raises:
        WriteError: the disk is full, or fails, or the folder is gone.
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
    """The number of the disk's error that an exception is, or was raised over."""
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
    """Gives the name to write under; where that went well it becomes `path`, otherwise nothing of it stays.

    What a killed process left under such a name is removed, so two processes do not write one file at a time.
    """
    with writing(path):  # a folder that was deleted meanwhile is made again: what is written counts for more
        path.parent.mkdir(parents=True, exist_ok=True)
    for torn in path.parent.glob(f".{path.name}.*.tmp"):
        torn.unlink(missing_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            yield fresh
            fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text, in UTF-8."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")
