"""Reading text files, plain or gzip: a first look, lines, paragraphs, batches, and the digest of the content."""

import codecs
import gzip
import hashlib
import io
import os
import secrets
import time
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO

from potstill.errors import DataError

READ_BYTES = 2**20
SMALL_BYTES = 2**24  # of a file that is read as a whole: prompts, a configuration


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.open(path), READ_BYTES)  # type: ignore[arg-type]
    return path.open("rb")


def fault_of(path: Path) -> str | None:
    """What makes a file unusable, judged by its first MiB; None where nothing does."""
    if not path.is_file():
        return "is a folder" if path.is_dir() else "does not exist"
    try:
        with _open(path) as stream:
            head = stream.read(READ_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        return f"cannot be read ({error})"
    if not head:
        return "is empty"
    if b"\0" in head:
        return "is a binary file (it has NUL bytes)"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < READ_BYTES)
    except UnicodeDecodeError as error:
        return f"is not UTF-8 (line {head.count(10, 0, error.start) + 1})"
    return None


def small_text(path: Path, key: str) -> str:
    """The text of a file that is not long.

    Raises:
        DataError: there is none, it is no regular file (a named pipe would be waited for), too long or not UTF-8; the
            message starts with the config key `key`.
    """
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
        raise DataError(f"{key}={path}: {kind}; give a file of text, UTF-8")
    try:
        with path.open("rb") as stream:
            raw = stream.read(SMALL_BYTES + 1)
        if len(raw) > SMALL_BYTES:
            raise DataError(
                f"{key}={path}: has more than {SMALL_BYTES:,} bytes; expected a small file of text"
            )
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{key}={path}: is not UTF-8 in line {line}; convert the file to UTF-8") from None
    except OSError as error:
        raise DataError(f"{key}={path}: cannot be read ({error.strerror or error})") from None


def read_lines(path: Path, key: str) -> Iterator[str]:
    """Lines of a file without their ends.

    Raises:
        DataError: A line is not UTF-8, or the file cannot be read; the message starts with the config key `key`.
    """
    read = 0
    try:
        with _open(path) as stream:
            while block := stream.readlines(READ_BYTES):
                raw = b"".join(block)
                try:
                    text = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    line = read + raw.count(b"\n", 0, error.start) + 1
                    raise DataError(
                        f"{key}: '{path}' is not UTF-8 in line {line}; convert the file to UTF-8"
                    ) from error
                if read == 0:
                    text = text.removeprefix("\ufeff")
                # Not splitlines: it also cuts at separators that are part of a text, such as U+2028.
                yield from text.split("\n")[: len(block)]
                read += len(block)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{key}: '{path}' cannot be read after line {read} ({error}); give a whole file"
        ) from error


def paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Lines between blank lines, joined by spaces."""
    block: list[str] = []
    for line in lines:
        stripped = line.strip()
        if stripped:
            block.append(stripped)
        elif block:
            yield " ".join(block)
            block = []
    if block:
        yield " ".join(block)


def remembered_digest(path: Path, folder: Path, key: str) -> str:
    """sha256 of a file, computed once as long as its path, size and time of change stay."""
    try:
        stat = path.stat()
        known_by = f"{path.absolute()}|{stat.st_size}|{stat.st_mtime_ns}"
        remembered = folder / hashlib.sha256(known_by.encode()).hexdigest()[:32]
        if remembered.is_file() and len(digest := remembered.read_text(encoding="ascii")) == 64:
            return digest
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"{key}: '{path}' cannot be read ({error.strerror}); give UTF-8 text, plain or gzip"
        ) from error
    # A file that has just been written may change again within the resolution of its time.
    if time.time_ns() - stat.st_mtime_ns > 2 * 10**9:
        _write_atomically(remembered, digest)
    return digest


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="ascii")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(
            f"the cache folder '{path.parent}' cannot be written ({error.strerror}); choose another"
        ) from error


def packed(texts: Iterable[str], size: int, limit: int | None) -> Iterator[list[str]]:
    """Batches of about `size` characters of the first `limit` texts that are not blank, stripped."""
    batch: list[str] = []
    characters = 0
    for text in islice(filter(None, map(str.strip, texts)), limit):
        batch.append(text)
        characters += len(text)
        if characters >= size:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
