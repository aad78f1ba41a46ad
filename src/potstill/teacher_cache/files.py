"""Logits or vectors of a teacher in files of the user's own, one entry per row of the training data.

`.npy` holds one array; `.safetensors` a tensor `logits`; `.parquet` a column `logits` of lists of numbers. A user's own
module with several heads has `logits.0`, `logits.1` and so on. Vectors are the only tensor or column of lists, or
`vectors`. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.config.models import FILES
from potstill.errors import FileError, FormatError
from potstill.runtime.small_files import not_a_file

NAME, VECTORS = "logits", "vectors"
_CHECKED = 1 << 16  # rows that are checked at once
_Choice = Callable[[Sequence[str], str], list[str]]  # of the names of a file, those to read


@dataclass(frozen=True)
class FileLogits:
    """Logits of the rows of the training data, in their order.

    Attributes:
        logits: (rows, ..., labels), of any numeric type.
    """

    logits: NDArray[Any]

    def __call__(self, rows: Tensor) -> Tensor:
        """Float32 logits of (batch,) numbers of rows, on their device."""
        found = self.logits[rows.cpu().numpy()].astype(np.float32)
        return torch.from_numpy(found).to(rows.device)


def read_logits(path: Path, key: str) -> list[FileLogits]:
    """The logits of each head; all have equally many rows, and all are finite.

    Args:
        path: of the file.
        key: configuration key for messages.

    Raises:
        FileError: the file does not exist or cannot be read.
        FormatError: it holds no such logits, or one that is not finite.
    """
    where = f"{key}={path}"
    heads = _read(path, where, _heads)
    for number, head in enumerate(heads):
        _check(head, f"{where}: {NAME}" if len(heads) == 1 else f"{where}: {NAME}.{number}")
    if len({len(head) for head in heads}) > 1:
        raise FormatError(f"{where}: its heads have {', '.join(str(len(head)) for head in heads)} rows; must be equal")
    return [FileLogits(head) for head in heads]


def read_vectors(paths: Sequence[Path], key: str) -> list[NDArray[Any]]:
    """The vectors of each file, (rows, width); all are finite and none is zero. A `.npy` file is memory-mapped.

    Args:
        paths: of the files.
        key: configuration key for messages.

    Raises:
        FileError: a file does not exist or cannot be read.
        FormatError: it holds no vectors, or some of another width than the first file, or one that is not finite, or
            zero.
    """
    found: list[NDArray[Any]] = []
    for path in paths:
        where = f"{key}={path}"
        (array,) = _read(path, where, _vectors)
        if array.ndim != 2:
            raise FormatError(f"{where}: has the shape {array.shape}; must be (rows, width)")
        _check(array, where, "(rows, width)", zero=False)
        if found and array.shape[1] != found[0].shape[1]:
            raise FormatError(f"{where}: is {array.shape[1]} wide, and {paths[0]} {found[0].shape[1]}; must be equal")
        found.append(array)
    return found


def _read(path: Path, where: str, choose: _Choice) -> list[NDArray[Any]]:
    """The arrays of a file that `choose` names."""
    if not path.is_file():
        raise FileError(f"{where}: {not_a_file(path)}")
    try:
        return _READERS[path.suffix](path, where, choose)
    except (OSError, MemoryError) as error:
        raise FileError(f"{where}: cannot be read ({error})") from error


def task_logits(path: Path, key: str, *, rows: int, labels: Sequence[str]) -> FileLogits:
    """The logits of a task's teacher.

    Args:
        path: of the file.
        key: configuration key for messages.
        rows: number of rows that are trained on.
        labels: names of the labels, one per column; none for scores.

    Raises:
        FileError: as `read_logits`.
        FormatError: as `read_logits`, or another number of rows or columns.
    """
    heads = read_logits(path, key)
    where, names = f"{key}={path}", f" ({', '.join(labels)})" if labels else ""
    if len(heads) > 1 or heads[0].logits.ndim > 2:
        found = f"{len(heads)} tensors" if len(heads) > 1 else f"shape {heads[0].logits.shape}"
        raise FormatError(f"{where}: has {found}; must be one of (rows, labels)")
    logits = heads[0].logits if heads[0].logits.ndim == 2 else heads[0].logits[:, None]
    wanted = max(len(labels), 1)
    if logits.shape[1] != wanted:
        what = f"{wanted} labels{names}, in this order" if labels else "1 score"
        raise FormatError(f"{where}: has {logits.shape[1]} columns; must have one for each of {what}")
    check_rows(logits, rows, where)
    return FileLogits(logits)


def check_rows(logits: NDArray[Any], rows: int, where: str) -> None:
    """Compare the number of rows with that of the training data.

    Raises:
        FormatError: they differ.
    """
    if len(logits) != rows:
        raise FormatError(
            f"{where}: has {len(logits):,} rows, and {rows:,} are trained on; must have one for each, in their order"
        )


def _check(values: NDArray[Any], where: str, shape: str = "(rows, labels)", *, zero: bool = True) -> None:
    """Reject other than finite numbers and, without `zero`, rows of zeros."""
    if values.dtype.kind not in "fiu" or not values.ndim:
        raise FormatError(f"{where}: has type {values.dtype} and shape {values.shape}; must be numbers, {shape}")
    for start in range(0, len(values), _CHECKED):
        with np.errstate(over="ignore"):
            part = (
                values[start : start + _CHECKED].astype(np.float32).reshape(len(values[start : start + _CHECKED]), -1)
            )
        for good, problem in (
            (np.isfinite(part).all(axis=1), "has a value that is not finite in float32"),
            (part.any(axis=1) | zero, "is zero, and a vector of zeros has no direction"),
        ):
            if not good.all():
                raise FormatError(f"{where}: row {start + int(np.argmin(good))} {problem}")


def _npy(path: Path, where: str, choose: _Choice) -> list[NDArray[Any]]:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise FormatError(f"{where}: is no array of numbers in the format of numpy.save ({error})") from error
    if not isinstance(found, np.ndarray):
        raise FormatError(f"{where}: is an archive of arrays; must be one array, of numpy.save")
    return [found]


def _safetensors(path: Path, where: str, choose: _Choice) -> list[NDArray[Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return [file.get_tensor(name).float().numpy() for name in choose(list(file.keys()), where)]
    except SafetensorError as error:
        raise FormatError(f"{where}: is no file of safetensors ({error})") from error


def _parquet(path: Path, where: str, choose: _Choice) -> list[NDArray[Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        columns = [own.name for own in parquet.read_schema(path) if choose is not _vectors or _is_list(own.type)]
        names = choose(columns, where)
        table = parquet.read_table(path, columns=names)
        return [_column(table[name].combine_chunks(), f"{where}: {name}") for name in names]
    except pa.ArrowInvalid as error:
        raise FormatError(f"{where}: is no Parquet file ({error})") from error


def _column(column: Any, where: str) -> NDArray[Any]:
    """A column of numbers, or of lists of equally many numbers."""
    import pyarrow as pa

    if not _is_list(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    fixed = pa.types.is_fixed_size_list(column.type)
    lengths = {column.type.list_size} if fixed else {own.as_py() for own in column.value_lengths().unique()}
    if column.null_count or len(lengths) > 1:
        raise FormatError(f"{where}: its lists have different lengths, or are missing; must be equally many numbers")
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values).reshape(len(column), -1)


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _vectors(found: Sequence[str], where: str) -> list[str]:
    """The name of the vectors."""
    if VECTORS in found or len(found) == 1:
        return [VECTORS] if VECTORS in found else list(found)
    raise FormatError(f"{where}: has {', '.join(found) or 'no vectors'}; must have {VECTORS}, or one alone")


def _heads(found: Sequence[str], where: str) -> list[str]:
    """The names of the heads, in order."""
    if NAME in found:
        return [NAME]
    heads = [f"{NAME}.{number}" for number in range(len(found))]
    names = [name for name in heads if name in found]
    if not names or names != heads[: len(names)]:
        raise FormatError(f"{where}: has {', '.join(found) or 'nothing'}; must have {NAME}, or {NAME}.0, {NAME}.1, ...")
    return names


_READERS = dict(zip(FILES, (_npy, _safetensors, _parquet), strict=True))
