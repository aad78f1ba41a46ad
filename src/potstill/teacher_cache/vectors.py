"""A sentence encoder's vectors on disk, one per text: a store that was computed, or files of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.data.common.ragged import Ints
from potstill.data.common.store import Field, Gathered
from potstill.teacher_cache.formats import Format
from potstill.teacher_cache.hidden import FIELD_TYPES, from_stored, to_stored
from potstill.teacher_cache.parts import Parts, build_in_parts
from potstill.teacher_cache.store import OutputStore

PART_TEXTS = 8192  # texts of a part, which a killed run may lose
_SAMPLED = 8192  # vectors whose lengths are measured
_UNIT = 2e-3  # by which their lengths may differ from 1, more than the rounding of float16


class Vectors(Protocol):
    """Vectors by number of their text."""

    @property
    def width(self) -> int:
        """Of the vectors."""

    def __call__(self, texts: Ints) -> Tensor:
        """Float32 vectors of the `(n,)` texts, `(n, width)`."""


@dataclass(frozen=True)
class VectorFormat(Format):
    """The vector of each text, as the teacher makes it.

    Attributes:
        width: of the vectors.
        precision: type of the values, "float16", "bfloat16" or "float32".

    Example:
        >>> import torch
        >>> from potstill.teacher_cache.vectors import VectorFormat
        >>> form = VectorFormat(width=8, precision="bfloat16")
        >>> form.decode(form.encode(torch.ones(3, 8))).shape, form.text_bytes
        (torch.Size([3, 8]), 16)
    """

    _kind = "vectors"
    width: int
    precision: str = "float16"

    @property
    def fields(self) -> tuple[Field, ...]:
        """Arrays of a store."""
        return (Field("vectors", FIELD_TYPES[self.precision], self.width),)

    @property
    def text_bytes(self) -> int:
        """Bytes of a text."""
        return self.width * np.dtype(FIELD_TYPES[self.precision]).itemsize

    def encode(self, vectors_ND: Tensor) -> Gathered:
        """Outputs of texts from (texts, width) vectors.

        Raises:
            ConfigError: a value is too large for the precision.
        """
        return Gathered({"vectors": to_stored(vectors_ND, self.precision, "a vector")})

    def decode(self, gathered: Gathered) -> Tensor:
        """(texts, width) vectors in the precision of the store."""
        return from_stored(gathered.values["vectors"], self.precision)


@dataclass(frozen=True)
class StoredVectors:
    """Vectors of a store with one item per text.

    Attributes:
        store: of the vectors.
        form: of the store.
    """

    store: OutputStore
    form: VectorFormat

    @property
    def width(self) -> int:
        """See `Vectors`."""
        return self.form.width

    def __call__(self, texts: Ints) -> Tensor:
        """See `Vectors`."""
        return self.form.decode(self.store.gather(texts)).float()


class FileVectors:
    """Vectors of the rows of a user's own arrays, of which texts have some.

    Args:
        arrays: (rows, width) of each file, whose rows follow one another.
        rows: (texts,) row of each text; None: text i has row i.
    """

    def __init__(self, arrays: Sequence[NDArray[Any]], rows: Ints | None = None) -> None:
        self._arrays, self._rows = arrays, rows
        self._ends = np.cumsum([len(array) for array in arrays])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def width(self) -> int:
        """See `Vectors`."""
        return int(self._arrays[0].shape[1])

    def __call__(self, texts: Ints) -> Tensor:
        """See `Vectors`."""
        rows = texts if self._rows is None else self._rows[texts]
        found = np.empty((len(rows), self.width), np.float32)
        file_of = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(file_of):
            here = file_of == number
            found[here] = self._arrays[number][rows[here] - (self._ends[number] - len(self._arrays[number]))]
        return torch.from_numpy(found)

    def of(self, rows: Ints) -> FileVectors:
        """The same of texts that have these rows."""
        return FileVectors(self._arrays, rows)


def have_length_1(vectors: Vectors, count: int) -> bool:
    """Whether `count` vectors are normalised, by a sample of them spread over all."""
    chosen = np.unique(np.linspace(0, count - 1, _SAMPLED).astype(np.int64))
    return bool(((vectors(chosen).norm(dim=1) - 1).abs() < _UNIT).all())


def build_vectors(
    folder: Path,
    identity: Mapping[str, Any],
    form: VectorFormat,
    count: int,
    compute: Callable[[int, Callable[[int, Tensor], None]], None],
    progress: Callable[[int], None],
    *,
    wait: bool = False,
) -> int:
    """The store of `count` texts, computed if it does not exist; see `build_in_parts`.

    Args:
        folder: of the store.
        identity: origin of the vectors.
        form: of the store.
        count: number of texts.
        compute: called with the number of texts that are stored, and with a function that takes the number of a text
            and the (texts, width) vectors from there on.
        progress: called with the number of texts done.
        wait: whether to wait for another process that computes the store.

    Returns:
        The number of texts that are stored; fewer than `count` if `compute` ended early.

    Raises:
        CacheError: as `build_in_parts`.
        ConfigError: as `VectorFormat.encode`.
        WriteError: as `build_in_parts`.
    """

    def in_parts(parts: Parts[Tensor]) -> None:
        def add(first: int, vectors_ND: Tensor) -> None:
            for number, vector in enumerate(vectors_ND.cpu(), first):
                parts.add(number, vector)
            progress(parts.done)

        compute(parts.done, add)

    def pack(vectors: list[Tensor]) -> Gathered:
        return form.encode(torch.stack(vectors))

    counts = np.ones(count, np.int64)
    return build_in_parts(folder, identity, form.fields, counts, pack, in_parts, part_items=PART_TEXTS, wait=wait)
