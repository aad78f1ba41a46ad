"""Encoding on Ray Data (`data.engine=ray`): the texts of a source are read and encoded by the processes of a cluster.

One task reads a part of a source while others encode its blocks. Blocks stream through Ray's object store, and this
process writes the ids in the order of the texts, so each process holds a few blocks only. Ray repeats the tasks of a
killed worker.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import astuple, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from potstill import errors
from potstill.data.corpus.binarize import Encoded, Encoder, Framing, Tally
from potstill.data.corpus.docstrings import Docstrings
from potstill.data.corpus.sources import TextFiles, TextSource
from potstill.data.corpus.splits import HeldOut
from potstill.errors import DataError
from potstill.runtime.ray_cluster import connected

# Large compared with Ray's overhead of milliseconds per block, small compared with the memory of a process.
BLOCK_BYTES = 16 * 2**20
# Reading needs little CPU; with another share than encoding, Ray does not fuse both into one task.
READING_CPUS = 0.25

_ERROR, _TEXTS = "error", "texts"
_ERROR_TYPE = pa.list_(pa.string())  # class and message
_READ = pa.schema({_TEXTS: pa.list_(pa.large_string()), _ERROR: _ERROR_TYPE})
_ENCODED = pa.schema(
    {"ids": pa.large_binary(), "lengths": pa.large_binary(), "tally": pa.list_(pa.int64()), _ERROR: _ERROR_TYPE}
)


def encoded_on_ray(
    encoder: Encoder, source: TextSource, size: int, num_proc: int | None
) -> Generator[Encoded, None, None]:
    """Encode a source on the cluster of RAY_ADDRESS, or on this machine's CPUs.

    Args:
        encoder: Texts to framed sequences.
        source: The texts, with the same paths on all machines.
        size: Approximate number of characters per batch.
        num_proc: Maximum number of encoding tasks at a time; None for the number of CPUs.

    Yields:
        The encoded batches, in the order of the texts.

    Raises:
        DataError: The source cannot be read, or Ray failed.
    """
    import ray.data
    from ray.exceptions import RayError

    parts = parts_of(source)
    encode = partial(_encode, encoder.tokenizer.to_str(), encoder.framing, encoder.dtype.str)
    with _quiet(), connected():
        try:
            dataset = (
                ray.data.from_items(list(range(len(parts))), override_num_blocks=len(parts))
                .map_batches(partial(_read, parts, size), batch_size=1, batch_format="pyarrow", num_cpus=READING_CPUS)
                .map_batches(encode, batch_size=1, batch_format="pyarrow", num_cpus=1, concurrency=num_proc)
            )
            dataset.context.execution_options.preserve_order = True
            dataset.context.target_max_block_size = BLOCK_BYTES
            dataset.context.enable_progress_bars = False
            for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                yield from _decoded(block, encoder.dtype)
        except RayError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(
                f"data.engine=ray: Ray failed ({reason}); use more memory per worker, a smaller data.num_proc, or "
                "data.engine=local"
            ) from error


def parts_of(source: TextSource) -> list[TextSource]:
    """Split a source into consecutive parts that different processes can read.

    Each file is a part. A data set of the hub or of `save_to_disk`, and a source with `max_examples`, is one part.
    """
    if isinstance(source, HeldOut):
        return [replace(source, source=part) for part in parts_of(source.source)]
    if isinstance(source, Docstrings):  # extracted by processes of this machine
        text = str(source.write_texts())
        return [TextFiles((text,), "line", None, source.max_examples, source.cache)]
    if isinstance(source, TextFiles) and source.max_examples is None:
        return [replace(source, files=(file,)) for file in source.files]
    return [source]


def _read(parts: list[TextSource], size: int, numbers: pa.Table) -> Iterator[pa.Table]:
    """Read a part: one row per batch of texts. A DataError becomes a row, since Ray would wrap it."""
    for number in numbers.column("item").to_pylist():
        try:
            for texts in parts[number].batches(size):
                yield pa.Table.from_pylist([{_TEXTS: texts, _ERROR: None}], schema=_READ)
        except DataError as error:
            row = {_TEXTS: [], _ERROR: [type(error).__name__, str(error)]}
            yield pa.Table.from_pylist([row], schema=_READ)


def _encode(tokenizer: str, framing: Framing, dtype: str, batches: pa.Table) -> pa.Table:
    """Encode batches of texts, one row each."""
    encoder = _encoder(tokenizer, framing, dtype)
    rows: list[dict[str, Any]] = []
    for batch in batches.to_pylist():
        ids, lengths, tally = encoder(batch[_TEXTS])
        encoded = {"ids": ids.tobytes(), "lengths": lengths.tobytes(), "tally": list(astuple(tally))}
        rows.append(encoded | {_ERROR: batch[_ERROR]})
    return pa.Table.from_pylist(rows, schema=_ENCODED)


@lru_cache(maxsize=1)
def _encoder(tokenizer: str, framing: Framing, dtype: str) -> Encoder:
    # Threads would compete with the other processes.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return Encoder(Tokenizer.from_str(tokenizer), framing, np.dtype(dtype))


def _decoded(block: pa.Table, dtype: np.dtype[Any]) -> Iterator[Encoded]:
    for row in block.to_pylist():
        if row[_ERROR] is not None:
            kind, message = row[_ERROR]
            raise getattr(errors, kind)(message)
        ids, lengths = np.frombuffer(row["ids"], dtype), np.frombuffer(row["lengths"], np.int32)
        yield ids, lengths, Tally(*row["tally"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Ray Data's reports of its plans."""
    log = logging.getLogger("ray.data")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
