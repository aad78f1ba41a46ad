"""A checksum in the comment of a zip file, which remains readable as zip. No torch."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

_PREFIX = b"sha256="
_SIZE = len(_PREFIX) + 64  # of the comment
_LENGTH = _SIZE.to_bytes(2, "little")  # stored before the comment
_BLOCK = 1 << 22


def add_checksum(file: BinaryIO) -> None:
    """Add the checksum to a complete zip file without a comment, open for writing."""
    file.seek(-2, os.SEEK_END)
    file.write(_LENGTH)
    file.flush()
    digest = _digest(Path(file.name), file.tell())
    file.write(_PREFIX + digest)


def has_valid_checksum(path: Path) -> bool:
    """Whether a file has a valid checksum of its other bytes."""
    size = path.stat().st_size - _SIZE
    if size < len(_LENGTH):
        return False
    with path.open("rb") as file:
        file.seek(size - len(_LENGTH))
        end = file.read()
    return end == _LENGTH + _PREFIX + _digest(path, size)


def _digest(path: Path, size: int) -> bytes:
    """SHA-256 of the first `size` bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, _BLOCK))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest().encode()
