"""A parser of pickled lists of integers and integer arrays, which builds nothing else and calls nothing.

A pickle may call any function and allocate any memory. Here a parser of the opcodes that such lists have gives one
entry at a time. Source: `pickletools` of the standard library, which defines the opcodes, and numpy's `__reduce_ex__`.
"""

from __future__ import annotations

import mmap
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROTOCOLS = range(2, 6)
REMEMBERED = 32  # longest text that an entry shares with another one; arrays and their bytes are never shared
_INTEGERS = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8")
_ORDERS = {"<": "<", ">": ">", "|": "="}
_MARK = object()
_TEXTS = (bytes, str)


class PickleError(Exception):
    """A pickle with something else than integers and arrays of them."""


class _Dtype:
    """An integer type of numpy."""

    __slots__ = ("numpy",)

    def __init__(self, code: Any) -> None:
        if code not in _INTEGERS:
            raise PickleError(f"it has values of type {code}")
        self.numpy = np.dtype(code)

    def build(self, state: Any) -> None:
        """Set the order of bytes."""
        self.numpy = self.numpy.newbyteorder(_ORDERS[state[1]])


class PickledArray:
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
            raise PickleError("it has an array that is not of integers of one dimension")
        ids = np.frombuffer(data, dtype.numpy)
        if len(ids) != shape[0]:
            raise PickleError(f"it has {len(ids)} values of an array of {shape[0]}")
        self.ids = ids


def _from_buffer(data: Any, dtype: Any, shape: Any, *_: Any) -> PickledArray:
    array = PickledArray()
    array.fill(data, dtype, shape)
    return array


def _encoded(text: Any, encoding: Any) -> bytes:
    """Bytes in protocol 2, whose values are those of characters."""
    if type(text) is not str or encoding != "latin1":
        raise PickleError("it has bytes of another encoding")
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
    _NAMES[f"numpy.{_core}.multiarray", "_reconstruct"] = lambda *_: PickledArray()
    _NAMES[f"numpy.{_core}.numeric", "_frombuffer"] = _from_buffer


class ListParser:
    """Reads the entries of a pickled list from the bytes of a file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.memoized = 0

    def entries(self) -> Iterator[Any]:
        """The entries of the list that the pickle is.

        Raises:
            PickleError: It is something else.
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
                    raise PickleError("it has a list in a list")
                yield from found
            elif code == _STOP and begun and not self.stack and self.at == len(data):
                return
            else:
                raise PickleError(f"it has an opcode that a list of integers does not have ({bytes([code])!r})")

    def take(self, count: int) -> bytes:
        """The next bytes."""
        start = self.at
        self.at = end = start + count
        found = self.data[start:end]
        if len(found) < count:
            raise PickleError("it is truncated")
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
            raise PickleError("it is truncated")
        return self.take(end + 1 - self.at)[:-1].decode()

    def marked(self) -> list[Any]:
        """What is on the stack above the last mark, which is removed, too."""
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:  # IndexError without a mark
            place -= 1
            if place < 0:
                raise PickleError("it is truncated")
        found = self.stack[place + 1 :]
        del self.stack[place:]
        return found

    def name(self, module: Any, name: Any) -> None:
        """Push what a name stands for; never an import."""
        if (module, name) not in _NAMES:
            raise PickleError(f"it names {module}.{name}, which is not read")
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
            raise PickleError("it is truncated")
        self.stack[-count:] = [parts]

    def call(self) -> None:
        """Do what is done in place of a named function."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple or function not in _FUNCTIONS:
            raise PickleError("it calls something else than a function of numpy")
        self.stack.append(function(*arguments))

    def build(self) -> None:
        """Set the state of an array or of a type."""
        state, value = self.stack.pop(), self.stack[-1]
        if type(state) is not tuple or type(value) not in (PickledArray, _Dtype):
            raise PickleError("it sets the state of something else than an array")
        value.build(state)


_SHARED = {_Dtype, type, type(_encoded)}
_FUNCTIONS = {own for own in _NAMES.values() if own is not _NdArray}
_LIST, _APPEND, _APPENDS, _STOP = (code[0] for code in (pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.STOP))
_STEPS: dict[int, Callable[[ListParser], Any]] = {
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
        pickle.REDUCE: ListParser.call,
        pickle.BUILD: ListParser.build,
    }.items()
}
