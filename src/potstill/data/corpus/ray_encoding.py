"""Encoding on Ray Data (`data.engine=ray`): the texts of a source are read and encoded by the processes of a cluster.

A part of a source is read by one task, and what it reads is encoded by others while it goes on. Blocks of texts and of
ids stream through Ray's object store, which holds tasks back when it is full; this process takes the ids in the order
of the texts and writes them. So no process has more of the corpus than a few blocks. What a killed worker was doing
Ray does again: reading and encoding depend on nothing but the text.
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

from potstill.data.corpus.binarize import Encoded, Encoder, Framing, Tally
from potstill.data.corpus.sources import Docstrings, TextFiles, TextSource
from potstill.data.corpus.splits import HeldOut
from potstill.errors import DataError
from potstill.runtime.ray_cluster import connected

# What a task hands on at once. Large enough that Ray's milliseconds a block do not count, small enough that a few
# blocks a process are nothing next to its memory.
BLOCK_BYTES = 16 * 2**20
# Reading is hardly work; and with another share of a CPU than encoding, Ray does not make one task of both.
READING_CPUS = 0.25

_FAULT, _TEXTS = "fault", "texts"
_READ = pa.schema({_TEXTS: pa.list_(pa.large_string()), _FAULT: pa.string()})
_ENCODED = pa.schema(
    {
        "ids": pa.large_binary(),
        "lengths": pa.large_binary(),
        "tally": pa.list_(pa.int64()),
        _FAULT: pa.string(),
    }
)


def encoded_on_ray(
    encoder: Encoder, source: TextSource, size: int, num_proc: int | None
) -> Generator[Encoded, None, None]:
    """Encode a source on the cluster of RAY_ADDRESS, else on this machine's CPUs.

    Args:
        encoder: Texts to framed sequences.
        source: The texts; the cluster's machines read them where this machine does.
        size: Characters of a batch, about.
        num_proc: Tasks that encode at a time; None for as many as there are CPUs.

    Yields:
        The encoded batches, in the order of the texts.

    Raises:
        DataError: Some part of the source cannot be read, which is told as it is without Ray; or Ray gave up.
    """
    import ray.data
    from ray.exceptions import RayError

    parts = parts_of(source)
    encode = partial(_encode, encoder.tokenizer.to_str(), encoder.framing, encoder.dtype.str)
    with _quiet(), connected():
        try:
            dataset = (
                ray.data.from_items(list(range(len(parts))), override_num_blocks=len(parts))
                .map_batches(
                    partial(_read, parts, size), batch_size=1, batch_format="pyarrow", num_cpus=READING_CPUS
                )
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
                f"data.engine=ray: Ray gave up ({reason}); give its workers more memory or a smaller data.num_proc, "
                "or use data.engine=local"
            ) from error


def parts_of(source: TextSource) -> list[TextSource]:
    """Sources whose texts, one source after another, are those of `source`; each can be read by another process.

    A file is a part. A data set of the hub or of `save_to_disk`, and a source of which only so many texts are wanted,
    is one part: its texts are encoded by many processes, but read by one.
    """
    if isinstance(source, HeldOut):
        return [replace(source, source=part) for part in parts_of(source.source)]
    if isinstance(source, Docstrings):  # extracted here, by processes of this machine
        text = str(source.materialise())
        return [TextFiles((text,), "line", None, source.max_examples, source.cache)]
    if isinstance(source, TextFiles) and source.max_examples is None:
        return [replace(source, files=(file,)) for file in source.files]
    return [source]


def _read(parts: list[TextSource], size: int, numbers: pa.Table) -> Iterator[pa.Table]:
    """Read a part: a row a batch of texts. A fault travels as a row, since Ray would wrap it in its own."""
    for number in numbers.column("item").to_pylist():
        try:
            for texts in parts[number].batches(size):
                yield pa.Table.from_pylist([{_TEXTS: texts, _FAULT: None}], schema=_READ)
        except DataError as fault:
            yield pa.Table.from_pylist([{_TEXTS: [], _FAULT: str(fault)}], schema=_READ)


def _encode(tokenizer: str, framing: Framing, dtype: str, batches: pa.Table) -> pa.Table:
    """Encode batches of texts: a row each."""
    encoder = _encoder(tokenizer, framing, dtype)
    rows: list[dict[str, Any]] = []
    for batch in batches.to_pylist():
        ids, lengths, tally = encoder(batch[_TEXTS])
        encoded = {"ids": ids.tobytes(), "lengths": lengths.tobytes(), "tally": list(astuple(tally))}
        rows.append(encoded | {_FAULT: batch[_FAULT]})
    return pa.Table.from_pylist(rows, schema=_ENCODED)


@lru_cache(maxsize=1)
def _encoder(tokenizer: str, framing: Framing, dtype: str) -> Encoder:
    # The processes are the parallelism; threads on top of them would only compete.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return Encoder(Tokenizer.from_str(tokenizer), framing, np.dtype(dtype))


def _decoded(block: pa.Table, dtype: np.dtype[Any]) -> Iterator[Encoded]:
    for row in block.to_pylist():
        if row[_FAULT] is not None:
            raise DataError(row[_FAULT])
        ids, lengths = np.frombuffer(row["ids"], dtype), np.frombuffer(row["lengths"], np.int32)
        yield ids, lengths, Tally(*row["tally"])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Ray Data's account of its plans."""
    log = logging.getLogger("ray.data")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
