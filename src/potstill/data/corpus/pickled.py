"""Pickles of DistilBERT's and Causal-Distill's scripts: token ids and token counts, read without Python's unpickler.

`binarized_data.py` writes a list of integer arrays, one per text, with the special tokens at both ends;
`token_counts.py` a list of integers. A pickle may call any function and allocate any memory. Here a parser of the
opcodes that these files have builds integers and arrays of them alone, one entry of the list at a time, and calls
nothing that a file names. Source: `pickletools` of the standard library, which defines the opcodes.
"""

from __future__ import annotations

import mmap
import pickle
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from potstill.data.common.text_files import remembered_digest
from potstill.errors import FileError, FormatError, TokenizerError
from potstill.runtime.small_files import not_a_file

if TYPE_CHECKING:  # it imports transformers
    from potstill.data.common.tokenizers import Vocabulary

COUNTS_BYTES = 2**26  # most of a file of counts, which is read as a whole
PROTOCOLS = range(2, 6)
REMEMBERED = 32  # longest text that an entry shares with another one; arrays and their bytes are never shared
_INTEGERS = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8")
_ORDERS = {"<": "<", ">": ">", "|": "="}
_ARRAYS, _COUNTS = "a list of integer arrays, from binarized_data.py", "a list of integers, from token_counts.py"
_MARK = object()
_TEXTS = (bytes, str)


class _PickleError(Exception):
    """A pickle with something else than integers and arrays of them."""


class _Dtype:
    """An integer type of numpy."""

    __slots__ = ("numpy",)

    def __init__(self, code: Any) -> None:
        if code not in _INTEGERS:
            raise _PickleError(f"it has values of type {code}")
        self.numpy = np.dtype(code)

    def build(self, state: Any) -> None:
        """Set the order of bytes."""
        self.numpy = self.numpy.newbyteorder(_ORDERS[state[1]])


class _Array:
    """An array of integers of one dimension; None before its values are read."""

    __slots__ = ("ids",)

    def __init__(self) -> None:
        self.ids: NDArray[np.integer] | None = None

    def build(self, state: Any) -> None:
        """Set the values."""
        _, shape, dtype, _, data = state
        self.fill(data, dtype, shape)

    def fill(self, data: Any, dtype: Any, shape: Any) -> None:
        """Set the values from their bytes."""
        if type(data) is not bytes or type(dtype) is not _Dtype or len(shape) != 1:
            raise _PickleError("it has an array that is not of integers of one dimension")
        ids = np.frombuffer(data, dtype.numpy)
        if len(ids) != shape[0]:
            raise _PickleError(f"it has {len(ids)} values of an array of {shape[0]}")
        self.ids = ids


def _from_buffer(data: Any, dtype: Any, shape: Any, *_: Any) -> _Array:
    array = _Array()
    array.fill(data, dtype, shape)
    return array


def _encoded(text: Any, encoding: Any) -> bytes:
    """Bytes in protocol 2, whose values are those of characters."""
    if type(text) is not str or encoding != "latin1":
        raise _PickleError("it has bytes of another encoding")
    return text.encode("latin-1")


class _NdArray:
    """Stands for the class numpy.ndarray."""


# What may be named, with what is done in its place.
_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _NdArray,
    ("numpy", "dtype"): lambda code, *_: _Dtype(code),
    ("_codecs", "encode"): _encoded,
    ("__builtin__", "bytes"): lambda: b"",
}
for _core in ("core", "_core"):  # of earlier and of later versions
    _NAMES[f"numpy.{_core}.multiarray", "_reconstruct"] = lambda *_: _Array()
    _NAMES[f"numpy.{_core}.numeric", "_frombuffer"] = _from_buffer


class _Parser:
    """Reads the entries of a pickled list from the bytes of a file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.memoized = 0

    def entries(self) -> Iterator[Any]:
        """The entries of the list that the pickle is.

        Raises:
            _PickleError: It is something else.
            LookupError, TypeError, ValueError: Its bytes are not those of a pickle.
        """
        begun, data, steps = False, self.data, _STEPS
        while True:
            code = data[self.at]  # IndexError at the end
            self.at += 1
            if (step := steps.get(code)) is not None:
                step(self)
            elif code == _LIST and not begun and not self.stack:
                begun = True
            elif code == _APPEND and begun and len(self.stack) == 1:
                yield self.stack.pop()
            elif code == _APPENDS and begun:
                found = self.marked()
                if self.stack:
                    raise _PickleError("it has a list in a list")
                yield from found
            elif code == _STOP and begun and not self.stack and self.at == len(data):
                return
            else:
                raise _PickleError(f"it has an opcode that a list of integers does not have ({bytes([code])!r})")

    def take(self, count: int) -> bytes:
        """The next bytes."""
        start = self.at
        self.at = end = start + count
        found = self.data[start:end]
        if len(found) < count:
            raise _PickleError("it is truncated")
        return found

    def byte(self) -> int:
        """The next byte."""
        self.at += 1
        return self.data[self.at - 1]

    def number(self, size: int, *, signed: bool = False) -> int:
        """The next integer."""
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self) -> str:
        """The next line."""
        end = self.data.find(b"\n", self.at, self.at + 100)
        if end < 0:
            raise _PickleError("it is truncated")
        return self.take(end + 1 - self.at)[:-1].decode()

    def marked(self) -> list[Any]:
        """What is on the stack above the last mark, which is removed, too."""
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:  # IndexError without a mark
            place -= 1
            if place < 0:
                raise _PickleError("it is truncated")
        found = self.stack[place + 1 :]
        del self.stack[place:]
        return found

    def name(self, module: Any, name: Any) -> None:
        """Push what a name stands for; never an import."""
        if (module, name) not in _NAMES:
            raise _PickleError(f"it names {module}.{name}, which is not read")
        self.stack.append(_NAMES[module, name])

    def remember(self, index: int) -> None:
        """Remember the top of the stack, if other entries may refer to it."""
        self.memoized += 1
        if not self.stack:  # the list itself
            return
        value = self.stack[-1]
        kind = type(value)
        if kind in _SHARED or (kind in _TEXTS and len(value) <= REMEMBERED):
            self.memo[index] = value

    def tuple_of(self, count: int) -> None:
        """Join the last values of the stack."""
        parts = tuple(self.stack[-count:])
        if len(parts) < count:
            raise _PickleError("it is truncated")
        self.stack[-count:] = [parts]

    def call(self) -> None:
        """Do what is done in place of a named function."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple or function not in _FUNCTIONS:
            raise _PickleError("it calls something else than a function of numpy")
        self.stack.append(function(*arguments))

    def build(self) -> None:
        """Set the state of an array or of a type."""
        state, value = self.stack.pop(), self.stack[-1]
        if type(state) is not tuple or type(value) not in (_Array, _Dtype):
            raise _PickleError("it sets the state of something else than an array")
        value.build(state)


_SHARED = {_Dtype, type, type(_encoded)}
_FUNCTIONS = {own for own in _NAMES.values() if own is not _NdArray}
_LIST, _APPEND, _APPENDS, _STOP = (code[0] for code in (pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.STOP))
_STEPS: dict[int, Callable[[_Parser], Any]] = {
    code[0]: step
    for code, step in {
        pickle.PROTO: lambda p: p.take(1),
        pickle.FRAME: lambda p: p.take(8),
        pickle.MARK: lambda p: p.stack.append(_MARK),
        pickle.NONE: lambda p: p.stack.append(None),
        pickle.NEWTRUE: lambda p: p.stack.append(True),
        pickle.NEWFALSE: lambda p: p.stack.append(False),
        pickle.BININT1: lambda p: p.stack.append(p.byte()),
        pickle.BININT2: lambda p: p.stack.append(p.number(2)),
        pickle.BININT: lambda p: p.stack.append(p.number(4, signed=True)),
        pickle.LONG1: lambda p: p.stack.append(p.number(p.byte(), signed=True)),
        pickle.SHORT_BINBYTES: lambda p: p.stack.append(p.take(p.byte())),
        pickle.BINBYTES: lambda p: p.stack.append(p.take(p.number(4))),
        pickle.BINBYTES8: lambda p: p.stack.append(p.take(p.number(8))),
        pickle.BYTEARRAY8: lambda p: p.stack.append(p.take(p.number(8))),
        pickle.SHORT_BINUNICODE: lambda p: p.stack.append(p.take(p.byte()).decode()),
        pickle.BINUNICODE: lambda p: p.stack.append(p.take(p.number(4)).decode()),
        pickle.EMPTY_TUPLE: lambda p: p.stack.append(()),
        pickle.TUPLE1: lambda p: p.stack.append((p.stack.pop(),)),
        pickle.TUPLE2: lambda p: p.tuple_of(2),
        pickle.TUPLE3: lambda p: p.tuple_of(3),
        pickle.TUPLE: lambda p: p.stack.append(tuple(p.marked())),
        pickle.MEMOIZE: lambda p: p.remember(p.memoized),
        pickle.BINPUT: lambda p: p.remember(p.byte()),
        pickle.LONG_BINPUT: lambda p: p.remember(p.number(4)),
        pickle.BINGET: lambda p: p.stack.append(p.memo[p.byte()]),
        pickle.LONG_BINGET: lambda p: p.stack.append(p.memo[p.number(4)]),
        pickle.GLOBAL: lambda p: p.name(p.line(), p.line()),
        pickle.STACK_GLOBAL: lambda p: p.name(*(p.stack.pop(), p.stack.pop())[::-1]),
        pickle.REDUCE: _Parser.call,
        pickle.BUILD: _Parser.build,
    }.items()
}


def read_arrays(path: Path, key: str) -> Iterator[NDArray[np.integer]]:
    """The arrays of a file of token ids, `(tokens,)` each; one at a time is in memory.

    Raises:
        FileError: It does not exist; the message starts with `key`.
        FormatError: It is no such file, or is truncated.
    """
    for array in _entries(path, key, _ARRAYS):
        if type(array) is not _Array or array.ids is None:
            raise _format_error(path, key, _ARRAYS, "it has other entries")
        yield array.ids


def read_counts(path: Path, size: int, key: str = "data.token_counts") -> NDArray[np.int64]:
    """The counts of a file of token counts, `(size,)`.

    Args:
        path: The file.
        size: Number of tokens of the tokenizer.
        key: Config key for messages.

    Raises:
        FileError: It does not exist or is too large.
        FormatError: It is no such file, or is truncated.
        TokenizerError: It counts the tokens of another tokenizer.
    """
    found = list(_entries(path, key, _COUNTS, COUNTS_BYTES))
    if not all(type(count) is int and 0 <= count < 2**63 for count in found):
        raise _format_error(path, key, _COUNTS, "it has other entries")
    if len(found) != size:
        raise TokenizerError(
            f"{key}={path}: counts {len(found):,} tokens, and the tokenizer has {size:,}; use the counts of "
            "its corpus, or null to count them here"
        )
    return np.array(found, dtype=np.int64)


def check_pickle(path: Path, key: str, most: int | None = None, wanted: str = _ARRAYS) -> None:
    """Check the ends and the size of a file.

    Raises:
        FileError: It does not exist or is too large.
        FormatError: It is no pickle, or is truncated.
    """
    if not path.is_file():
        raise FileError(f"{key}={path}: {not_a_file(path)}; expected {wanted}")
    try:
        with path.open("rb") as stream:
            start = stream.read(2)
            size = stream.seek(0, 2)
            stream.seek(max(size - 1, 0))
            end = stream.read(1)
    except OSError as error:
        raise FileError(f"{key}={path}: cannot be read ({error.strerror}); expected {wanted}") from error
    if most is not None and size > most:
        raise FileError(f"{key}={path}: has {size:,} bytes, more than {most:,}; expected {wanted}")
    if len(start) < 2 or start[0] != pickle.PROTO[0] or start[1] not in PROTOCOLS:
        raise _format_error(path, key, wanted, "it is no pickle of protocol 2 to 5")
    if end != pickle.STOP:
        raise _format_error(path, key, wanted, "it is truncated")


def _entries(path: Path, key: str, wanted: str, most: int | None = None) -> Iterator[Any]:
    check_pickle(path, key, most, wanted)
    found = False
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for entry in _Parser(data).entries():
                found = True
                yield entry
    except OSError as error:
        raise FileError(f"{key}={path}: cannot be read ({error.strerror}); expected {wanted}") from error
    except (_PickleError, LookupError, TypeError, ValueError) as error:
        problem = str(error) if isinstance(error, _PickleError) else "it is damaged"
        raise _format_error(path, key, wanted, problem) from error
    if not found:
        raise _format_error(path, key, wanted, "it is an empty list")


def _format_error(path: Path, key: str, wanted: str, problem: str) -> FormatError:
    return FormatError(f"{key}={path}: {problem}; expected {wanted}")


@dataclass(frozen=True)
class PickledTokens:
    """The token ids that `binarized_data.py` has written.

    Attributes:
        path: The file.
        max_examples: Maximum number of texts.
        cache: The digest of the file is stored in its `digests` folder.
        key: Config key for messages.
        share: Share of the texts that is held out; a checksum of the ids decides.
        part: `eval` for the held-out texts, `train` for the others.
    """

    path: str
    max_examples: int | None
    cache: Path
    key: str = "data.train"
    share: float = 0.0
    part: str = "train"

    @property
    def name(self) -> str:
        """The name of the file."""
        held_out = f" ({self.share:.2%} held out)" if self.part == "eval" else ""
        return f"{Path(self.path).name}{held_out}"

    def check(self) -> None:
        """See `TextSource`; reads both ends of the file."""
        check_pickle(Path(self.path), self.key)

    def fingerprint(self) -> dict[str, Any]:
        """See `TextSource`."""
        digest = remembered_digest(Path(self.path), self.cache / "digests", self.key)
        return {"kind": "pickle", "sha256": digest, "max_examples": self.max_examples, "held_out": self._held_out}

    @property
    def _held_out(self) -> list[Any]:
        return [self.share, self.part]

    def batches(self, size: int, vocabulary: Vocabulary) -> Iterator[tuple[NDArray[np.integer], NDArray[np.int64]]]:
        """Texts in their order, without the special tokens around them.

        Args:
            size: Tokens of a batch, about.
            vocabulary: Of the tokenizer that has written the file.

        Yields:
            `(tokens,)` ids end to end, and the `(texts,)` number of each.

        Raises:
            FormatError: The file cannot be read.
            TokenizerError: Its ids or special tokens are not those of the tokenizer.
        """
        border, batch, tokens = int(self.share * 2**32), list[NDArray[np.integer]](), 0
        for ids in islice(read_arrays(Path(self.path), self.key), self.max_examples):
            if self.share and (zlib.crc32(ids.astype("<i8").tobytes()) < border) != (self.part == "eval"):
                continue
            batch.append(ids)
            tokens += len(ids)
            if tokens >= size:
                yield self._bodies(batch, vocabulary)
                batch, tokens = [], 0
        if batch:
            yield self._bodies(batch, vocabulary)

    def _bodies(
        self, batch: list[NDArray[np.integer]], vocabulary: Vocabulary
    ) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
        start, end = vocabulary.start_id is not None, vocabulary.end_id is not None
        ids, lengths = np.concatenate(batch), np.array(list(map(len, batch)), dtype=np.int64)
        fits = bool((lengths >= start + end).all()) and 0 <= ids.min(initial=0) <= ids.max(initial=0) < vocabulary.size
        body = np.ones(len(ids), dtype=bool)
        ends = np.cumsum(lengths)
        for place, special in ((ends - lengths, vocabulary.start_id), (ends - 1, vocabulary.end_id)):
            if fits and special is not None:
                fits = bool((ids[place] == special).all())
                body[place] = False
        if not fits:
            raise TokenizerError(
                f"{self.key}={self.path}: has sequences that do not lie between the special tokens of the tokenizer "
                f"'{vocabulary.path}', or other ids; data.tokenizer=<folder of the one that binarized it>"
            )
        return ids[body], lengths - start - end
