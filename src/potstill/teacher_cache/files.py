"""Logits of a teacher in a file of the user's own, one entry per row of the training data.

`.npy` holds one array; `.safetensors` a tensor `logits`; `.parquet` a column `logits` of lists of numbers. A user's own
module with several heads has `logits.0`, `logits.1` and so on. Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
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

NAME = "logits"
_CHECKED = 1 << 16  # rows that are checked at once


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
    if not path.is_file():
        raise FileError(f"{where}: {not_a_file(path)}")
    try:
        heads = _READERS[path.suffix](path, where)
    except (OSError, MemoryError) as error:
        raise FileError(f"{where}: cannot be read ({error})") from error
    for number, head in enumerate(heads):
        _check(head, f"{where}: {NAME}" if len(heads) == 1 else f"{where}: {NAME}.{number}")
    if len({len(head) for head in heads}) > 1:
        raise FormatError(f"{where}: its heads have {', '.join(str(len(head)) for head in heads)} rows; must be equal")
    return [FileLogits(head) for head in heads]


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


def _check(logits: NDArray[Any], where: str) -> None:
    if logits.dtype.kind not in "fiu" or not logits.ndim:
        raise FormatError(f"{where}: has type {logits.dtype} and shape {logits.shape}; must be numbers, (rows, labels)")
    for start in range(0, len(logits), _CHECKED):
        with np.errstate(over="ignore"):
            part = np.isfinite(logits[start : start + _CHECKED].astype(np.float32))
        if not part.all():
            row = start + int(np.argmin(part.reshape(len(part), -1).all(axis=1)))
            raise FormatError(f"{where}: row {row} has a value that is not finite in float32")


def _npy(path: Path, where: str) -> list[NDArray[Any]]:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise FormatError(f"{where}: is no array of numbers in the format of numpy.save ({error})") from error
    if not isinstance(found, np.ndarray):
        raise FormatError(f"{where}: is an archive of arrays; must be one array, of numpy.save")
    return [found]


def _safetensors(path: Path, where: str) -> list[NDArray[Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return [file.get_tensor(name).float().numpy() for name in _names(list(file.keys()), where)]
    except SafetensorError as error:
        raise FormatError(f"{where}: is no file of safetensors ({error})") from error


def _parquet(path: Path, where: str) -> list[NDArray[Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        names = _names(parquet.read_schema(path).names, where)
        table = parquet.read_table(path, columns=names)
        return [_column(table[name].combine_chunks(), f"{where}: {name}") for name in names]
    except pa.ArrowInvalid as error:
        raise FormatError(f"{where}: is no Parquet file ({error})") from error


def _column(column: Any, where: str) -> NDArray[Any]:
    """A column of numbers, or of lists of equally many numbers."""
    import pyarrow as pa

    lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if not lists and not pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    lengths = {length.as_py() for length in column.value_lengths().unique()} if lists else {column.type.list_size}
    if column.null_count or len(lengths) > 1:
        raise FormatError(f"{where}: its lists have different lengths, or are missing; must be one number per label")
    values = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values).reshape(len(column), -1)


def _names(found: Sequence[str], where: str) -> list[str]:
    """The names of the heads, in order."""
    if NAME in found:
        return [NAME]
    heads = [f"{NAME}.{number}" for number in range(len(found))]
    names = [name for name in heads if name in found]
    if not names or names != heads[: len(names)]:
        raise FormatError(f"{where}: has {', '.join(found) or 'nothing'}; must have {NAME}, or {NAME}.0, {NAME}.1, ...")
    return names


_READERS = dict(zip(FILES, (_npy, _safetensors, _parquet), strict=True))
