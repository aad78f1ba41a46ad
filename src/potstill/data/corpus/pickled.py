"""Pickles of DistilBERT's and Causal-Distill's scripts: token ids and token counts, read without unpickling code.

`binarized_data.py` writes a list of integer arrays, one per text, with the special tokens at both ends;
`token_counts.py` a list of integers. A pickle may name any function to call. Here every name of numpy stands for a
class of this module, which takes integers and their bytes alone, and any other name is rejected; so nothing that a file
names is called.
"""

from __future__ import annotations

import os
import pickle
import zlib
from collections.abc import Iterator
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

MOST_BYTES = 2**35  # of token ids, which are read as a whole
COUNTS_BYTES = 2**28
PROTOCOLS = range(2, 6)
_INTEGERS = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8")
_ARRAYS, _COUNTS = "a list of integer arrays, from binarized_data.py", "a list of integers, from token_counts.py"


class _Dtype:
    """Stands for numpy.dtype: an integer type."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any) -> None:
        if code not in _INTEGERS:
            raise pickle.UnpicklingError(f"values of type {code}")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = {"<": "<", ">": ">", "|": "="}[state[1]]


class _Array:
    """Stands for numpy.ndarray: integers of one dimension."""

    __slots__ = ("ids",)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, _, data = state
        self.fill(data, dtype, shape)

    def fill(self, data: Any, dtype: Any, shape: Any) -> None:
        """Take the values from their bytes."""
        if not isinstance(data, bytes | bytearray) or type(dtype) is not _Dtype or shape[1:]:
            raise pickle.UnpicklingError("an array that is not of integers of one dimension")
        self.ids = np.frombuffer(data, np.dtype(dtype.order + dtype.code))
        if len(self.ids) != shape[0]:
            raise pickle.UnpicklingError(f"{len(self.ids)} values of an array of {shape[0]}")


class _Named:
    """Stands for a function that a pickle calls; has no state that a pickle could set."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a state of a function")


class _Reconstruct(_Named):
    def __call__(self, *_: Any) -> _Array:
        return _Array()


class _FromBuffer(_Named):
    def __call__(self, data: Any, dtype: Any, shape: Any, *_: Any) -> _Array:
        array = _Array()
        array.fill(data, dtype, shape)
        return array


class _Bytes(_Named):
    """Bytes in protocol 2: characters up to 255, or nothing."""

    def __call__(self, text: Any = "", *_: Any) -> bytes:
        return str.encode(text, "latin-1")


_NAMES: dict[tuple[str, str], Any] = {
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _Reconstruct()),
            ("numeric", "_frombuffer", _FromBuffer()),
        )
    },
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Bytes(),
    ("__builtin__", "bytes"): _Bytes(),
}


class _Reader(pickle.Unpickler):
    """Reads lists, integers and arrays of integers."""

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the file stands for; never an import."""
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not read")
        return _NAMES[module, name]


def read_arrays(path: Path, key: str) -> list[NDArray[np.integer]]:
    """The arrays of a file of token ids, `(tokens,)` each.

    Raises:
        FileError: It does not exist or is too large; the message starts with `key`.
        FormatError: It is no such file, or is truncated.
    """
    found = _read(path, key, MOST_BYTES, _ARRAYS)
    if not all(type(array) is _Array and hasattr(array, "ids") for array in found):
        raise _format_error(path, key, _ARRAYS, "it has other entries")
    # A small file may name one array many times.
    if sum(array.ids.nbytes for array in found) > path.stat().st_size:
        raise _format_error(path, key, _ARRAYS, "it repeats arrays")
    return [array.ids for array in found]


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
    found = _read(path, key, COUNTS_BYTES, _COUNTS)
    if not all(type(count) is int and 0 <= count < 2**63 for count in found):
        raise _format_error(path, key, _COUNTS, "it has other entries")
    if len(found) != size:
        raise TokenizerError(
            f"{key}={path}: counts {len(found):,} tokens, and the tokenizer has {size:,}; use the counts of "
            "its corpus, or null to count them here"
        )
    return np.array(found, dtype=np.int64)


def check_pickle(path: Path, key: str, most: int, wanted: str = _ARRAYS) -> None:
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
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(size - 1, 0))
            end = stream.read(1)
    except OSError as error:
        raise FileError(f"{key}={path}: cannot be read ({error.strerror}); expected {wanted}") from error
    if size > most:
        raise FileError(f"{key}={path}: has {size:,} bytes, more than {most:,}; binarize the text itself instead")
    if len(start) < 2 or start[0] != pickle.PROTO[0] or start[1] not in PROTOCOLS:
        raise _format_error(path, key, wanted, "it is no pickle of protocol 2 to 5")
    if end != pickle.STOP:
        raise _format_error(path, key, wanted, "it is truncated")


def _read(path: Path, key: str, most: int, wanted: str) -> list[Any]:
    check_pickle(path, key, most, wanted)
    try:
        with path.open("rb") as stream:
            found = _Reader(stream).load()
    except OSError as error:
        raise FileError(f"{key}={path}: cannot be read ({error.strerror}); expected {wanted}") from error
    except Exception as error:  # of any kind, depending on the bytes
        raise _format_error(path, key, wanted, " ".join(str(error).split()) or type(error).__name__) from error
    if type(found) is not list or not found:
        raise _format_error(path, key, wanted, "it is not a list, or an empty one")
    return found


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
        check_pickle(Path(self.path), self.key, MOST_BYTES)

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
