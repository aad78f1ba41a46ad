"""A checksum inside a zip file, as its comment: written with it, and readable by whatever reads zip files. No torch."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

_PREFIX = b"sha256="
_SIZE = len(_PREFIX) + 64  # of the comment
_LENGTH = _SIZE.to_bytes(2, "little")  # ends the record that the comment follows
_BLOCK = 1 << 22


def seal(file: BinaryIO) -> None:
    """Add the checksum to a zip file without a comment.

    Args:
        file: open for writing, and written to its end.
    """
    file.seek(-2, os.SEEK_END)
    file.write(_LENGTH)
    file.flush()
    digest = _digest(Path(file.name), file.tell())
    file.write(_PREFIX + digest)


def is_sealed(path: Path) -> bool:
    """Whether a file has a checksum, which is that of all its other bytes.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size - _SIZE
    if size < len(_LENGTH):
        return False
    with path.open("rb") as file:
        file.seek(size - len(_LENGTH))
        end = file.read()
    return end == _LENGTH + _PREFIX + _digest(path, size)


def _digest(path: Path, size: int) -> bytes:
    """Of the first `size` bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, _BLOCK))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest().encode()
