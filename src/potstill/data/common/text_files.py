"""Reading text files, plain or gzip: checks, lines, paragraphs, batches, and digests."""

import codecs
import gzip
import hashlib
import io
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO

import regex

from potstill.errors import DataError, FileError, FormatError
from potstill.runtime.atomic import writing
from potstill.runtime.small_files import not_a_file

READ_BYTES = 2**20
LINE_BYTES = 2**23  # limit of a line, and of a paragraph in characters
DOCUMENT_BYTES = 2**29  # limit of a JSON or XML document, uncompressed
UNREADABLE = (OSError, EOFError, zlib.error)  # errors of plain and gzip files
SEARCH_SECONDS = 2.0  # processor time for data.skip on a line


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.open(path), READ_BYTES)
    return path.open("rb")


def file_problem(path: Path) -> str | None:
    """The reason why a file is unusable, from its first MiB; None for a usable file."""
    if not path.is_file():
        return not_a_file(path)
    try:
        with _open(path) as stream:
            head = stream.read(READ_BYTES)
    except UNREADABLE as error:
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


def read_lines(path: Path, key: str) -> Iterator[str]:
    """Lines of a file without their ends, read in blocks.

    Raises:
        FileError: The file cannot be read, or is not UTF-8; the message starts with `key`.
        FormatError: A line is too long.
    """
    read = 0
    try:
        with _open(path) as stream:
            for raw in _blocks(stream):
                lengths = map(len, raw.split(b"\n")) if len(raw) > LINE_BYTES else ()
                if long := next((number for number, length in enumerate(lengths, 1) if length > LINE_BYTES), 0):
                    raise FormatError(
                        f"{key}: '{path}' line {read + long}: has more than {LINE_BYTES:,} bytes; use shorter lines"
                    )
                # Not splitlines, which also cuts at separators within texts, such as U+2028.
                count = raw.count(b"\n") + (not raw.endswith(b"\n"))
                yield from _decoded(raw, path, key, read).split("\n")[:count]
                read += count
    except UNREADABLE as error:
        raise FileError(f"{key}: '{path}' cannot be read after line {read} ({error}); use a complete file") from error


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """The content in blocks of whole lines, about `READ_BYTES` each; a line that is too long is the last block."""
    rest = b""
    while chunk := stream.read(READ_BYTES):
        whole, newline, rest = (rest + chunk).rpartition(b"\n")
        if newline:
            yield whole + newline
        if len(rest) > LINE_BYTES:
            break
    if rest:
        yield rest


def _decoded(raw: bytes, path: Path, key: str, read: int = 0) -> str:
    """The text of a block after `read` lines; a byte order mark at the start of the file is dropped."""
    try:
        return raw.decode("utf-8" if read else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = read + raw.count(b"\n", 0, error.start) + 1
        raise FileError(f"{key}: '{path}' is not UTF-8 in line {line}; convert the file to UTF-8") from error


def read_document(path: Path, key: str) -> str:
    """The text of a file that is decoded as a whole, such as a JSON document, with lines of any length.

    Raises:
        FileError: It cannot be read, or is not UTF-8; the message starts with `key`.
        FormatError: It is too long.
    """
    try:
        with _open(path) as stream:
            blocks = iter(lambda: stream.read(READ_BYTES), b"")
            raw = b"".join(islice(blocks, DOCUMENT_BYTES // READ_BYTES + 1))
    except UNREADABLE as error:
        raise FileError(f"{key}: '{path}' cannot be read ({error}); use a complete file") from error
    if len(raw) > DOCUMENT_BYTES:
        raise FormatError(
            f"{key}: '{path}' has more than {DOCUMENT_BYTES:,} bytes (uncompressed); use JSON lines, or several files"
        )
    return _decoded(raw, path, key)


def skipping(pattern: str | None) -> Callable[[str], bool]:
    """A function that returns whether a line matches `data.skip`.

    Args:
        pattern: Regular expression in the syntax of Python's `re`; None matches nothing.

    Raises:
        DataError: The pattern is invalid, or its search takes more than `SEARCH_SECONDS` on a line.
    """
    if pattern is None:
        return lambda line: False
    try:
        search = regex.compile(pattern).search
    except regex.error as error:
        raise DataError(f"data.skip={pattern}: invalid regular expression ({error}); use such as '^</?doc'") from error

    def skipped(line: str) -> bool:
        try:
            return search(line, timeout=SEARCH_SECONDS) is not None
        except TimeoutError:
            raise DataError(
                f"data.skip={pattern}: takes more than {SEARCH_SECONDS:g} seconds on a line ({line[:40]!r}); avoid "
                "nested repetitions"
            ) from None

    return skipped


def paragraphs(lines: Iterable[str], place: str) -> Iterator[str]:
    """Lines between blank lines, joined by spaces.

    Args:
        lines: Lines of a file.
        place: Config key and file for messages.

    Raises:
        FormatError: A paragraph is too long.
    """
    block: list[str] = []
    length = 0
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        if stripped:
            block.append(stripped)
            length += len(stripped) + 1
            if length > LINE_BYTES + 1:
                raise FormatError(
                    f"{place} line {number}: the paragraph has more than {LINE_BYTES:,} characters; separate "
                    "paragraphs by blank lines, or set data.unit=line"
                )
        elif block:
            yield " ".join(block)
            block, length = [], 0
    if block:
        yield " ".join(block)


# Ends of sentences: a stop and closing marks before a blank and what may begin one, or a full-width stop.
_CLOSING, _OPENING = r"\p{Pe}\p{Pf}\"'", r"\p{Ps}\p{Pi}\"'"
_WIDE = r"\u3002\uff01\uff1f"  # full-width stops
_END = regex.compile(
    rf"(?<=[.!?\u2026][{_CLOSING}]*)\s+(?=[{_OPENING}]*[\p{{Lu}}\p{{N}}])|(?<=[{_WIDE}]+[{_CLOSING}]*)(?![{_CLOSING}{_WIDE}])"
)
_ABBREVIATIONS = r"Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Gen|Col|Capt|Lt|Rev|Hon|Mt|No|vs|e\.g|i\.e|cf|ca|Fig|Vol|pp?"
_ABBREVIATED = regex.compile(rf"(?:^|[\s(.])(?:\p{{Lu}}|{_ABBREVIATIONS})\.$")


def sentences(lines: Iterable[str]) -> Iterator[str]:
    """The sentences of lines, by stops; not behind initials and common abbreviations of English."""
    for line in lines:
        begun = ""
        for piece in _END.split(line.strip()):
            begun = f"{begun} {piece}" if begun else piece
            if begun and not _ABBREVIATED.search(begun[-8:]):
                yield begun
                begun = ""
        if begun:
            yield begun


def remembered_digest(path: Path, folder: Path, key: str) -> str:
    """sha256 of a file, stored under its path, size and modification time."""
    try:
        stat = path.stat()
        known_by = f"{path.absolute()}|{stat.st_size}|{stat.st_mtime_ns}"
        remembered = folder / hashlib.sha256(known_by.encode()).hexdigest()[:32]
        if remembered.is_file() and len(digest := remembered.read_text(encoding="ascii")) == 64:
            return digest
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise FileError(f"{key}: '{path}' cannot be read ({error.strerror}); use UTF-8 text, plain or gzip") from error
    # A file that was just written may change again within the resolution of its modification time.
    if time.time_ns() - stat.st_mtime_ns > 2 * 10**9:
        with writing(remembered):  # other processes may write the same; a partial digest is not used
            remembered.parent.mkdir(parents=True, exist_ok=True)
            remembered.write_text(digest, encoding="ascii")
    return digest


def packed(texts: Iterable[str], size: int, limit: int | None) -> Iterator[list[str]]:
    """Batches of about `size` characters from the first `limit` non-blank texts, stripped."""
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
