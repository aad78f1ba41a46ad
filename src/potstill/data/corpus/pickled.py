"""Pickles of DistilBERT's and Causal-Distill's scripts: token ids and token counts, read without Python's unpickler.

`binarized_data.py` writes a list of integer arrays, one per text, with the special tokens at both ends;
`token_counts.py` a list of integers.
"""

from __future__ import annotations

import mmap
import pickle
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from potstill.data.common.pickled_lists import PROTOCOLS, ListParser, PickledArray, PickleError
from potstill.data.common.text_files import remembered_digest
from potstill.errors import FileError, FormatError, TokenizerError
from potstill.runtime.small_files import not_a_file

if TYPE_CHECKING:  # it imports transformers
    from potstill.data.common.tokenizers import Vocabulary

COUNTS_BYTES = 2**26  # most of a file of counts, which is read as a whole
_ARRAYS, _COUNTS = "a list of integer arrays, from binarized_data.py", "a list of integers, from token_counts.py"


def read_arrays(path: Path, key: str) -> Iterator[NDArray[np.integer]]:
    """The arrays of a file of token ids, `(tokens,)` each; one at a time is in memory.

    Raises:
        FileError: It does not exist; the message starts with `key`.
        FormatError: It is no such file, or is truncated.
    """
    for array in _entries(path, key, _ARRAYS):
        if type(array) is not PickledArray or array.ids is None:
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
            for entry in ListParser(data).entries():
                found = True
                yield entry
    except OSError as error:
        raise FileError(f"{key}={path}: cannot be read ({error.strerror}); expected {wanted}") from error
    except (PickleError, LookupError, TypeError, ValueError) as error:
        problem = str(error) if isinstance(error, PickleError) else "it is damaged"
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
