"""Binarization: texts to a store of token ids, in parallel and in constant memory.

The store has the same bytes for any number of workers, local or of Ray (`ray_encoding.py`).
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from potstill.data.common.store import build_once, store_key
from potstill.data.common.tokenizers import Vocabulary, load_backend
from potstill.data.corpus.pickled import PickledTokens
from potstill.data.corpus.sources import TextSource
from potstill.data.corpus.splits import LOCAL, RAY
from potstill.data.corpus.store import StoreWriter, TokenStore, token_dtype
from potstill.errors import DataError
from potstill.runtime.workers import worker_pool

# Large enough to make passing a batch cheap, small enough for memory: the encoder needs about 1 kB per token.
BATCH_CHARACTERS = 2**18
# Batches per worker: one in work, one waiting.
WINDOW = 2
UNBOUNDED = 2**31 - 1  # tokens of a text that is not split


@dataclass(frozen=True)
class Framing:
    """Special tokens and limits of sequences.

    Attributes:
        start_id: First token of every sequence, if any.
        end_id: Last token of every sequence, if any.
        unk_id: Unknown token, if any.
        max_length: Maximum number of tokens, with special tokens; longer texts are split.
        min_length: Minimum number of tokens, with special tokens; shorter sequences are dropped.
        max_unknown: Sequences with this share of unknown tokens or more are dropped.
        whole: Whether each text is one sequence, with the tokenizer's own special tokens, cut at `max_length`; none is
            dropped.
    """

    start_id: int | None
    end_id: int | None
    unk_id: int | None
    max_length: int
    min_length: int
    max_unknown: float
    whole: bool = False

    @property
    def specials(self) -> int:
        """Number of special tokens per sequence."""
        return (self.start_id is not None) + (self.end_id is not None)


@dataclass
class Tally:
    """Counts: texts read, sequences and tokens kept, texts split, sequences dropped."""

    texts: int = 0
    sequences: int = 0
    tokens: int = 0
    split: int = 0
    dropped_short: int = 0
    dropped_unknown: int = 0

    def add(self, other: "Tally") -> None:
        """Add the counts of `other`."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


Encoded = tuple[npt.NDArray[Any], npt.NDArray[np.int32], Tally]


def frame(ids: npt.NDArray[Any], lengths: npt.NDArray[np.int64], framing: Framing) -> Encoded:
    """Cut texts into sequences with special tokens, and drop short and mostly unknown ones.

    These are the rules of DistilBERT's data preparation (Sanh et al. 2019).

    Args:
        ids: `(tokens,)` ids of the texts end to end, without special tokens.
        lengths: `(texts,)` tokens of each text.
        framing: Special tokens and limits.

    Returns:
        `(kept tokens,)` ids with special tokens, `(sequences,)` int32 lengths, and counts.
    """
    body = framing.max_length - framing.specials
    pieces = np.maximum(1, -(-lengths // body))
    # For each piece: its number in its text, its start in `ids`, and its length.
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    offsets = np.repeat(np.cumsum(lengths) - lengths, pieces) + number * body
    taken = np.minimum(body, np.repeat(lengths, pieces) - number * body)
    framed = taken + framing.specials

    long_enough = (framed >= framing.min_length) & (taken > 0)
    known = np.ones(len(taken), dtype=bool)
    if framing.unk_id is not None:
        unknown_before = np.concatenate([[0], np.cumsum(ids == framing.unk_id)])
        unknown = unknown_before[offsets + taken] - unknown_before[offsets]
        known = unknown < framing.max_unknown * framed
    kept = long_enough & known
    offsets, framed = offsets[kept], framed[kept]

    ends = np.cumsum(framed)
    starts = ends - framed
    total = int(framed.sum())
    # Special tokens are overwritten below.
    places = np.arange(total) + np.repeat(offsets - starts - (framing.start_id is not None), framed)
    framed_ids = ids.take(places, mode="clip") if total else ids[:0]
    if framing.start_id is not None:
        framed_ids[starts] = framing.start_id
    if framing.end_id is not None:
        framed_ids[ends - 1] = framing.end_id
    tally = Tally(
        texts=len(lengths),
        sequences=len(framed),
        tokens=total,
        split=int((pieces > 1).sum()),
        dropped_short=int((~long_enough).sum()),
        dropped_unknown=int((long_enough & ~known).sum()),
    )
    return framed_ids, framed.astype(np.int32), tally


@dataclass(frozen=True)
class Encoder:
    """Texts to framed sequences."""

    tokenizer: Tokenizer
    framing: Framing
    dtype: np.dtype[Any]

    def __call__(self, texts: list[str]) -> Encoded:
        """Encode and frame a batch of texts."""
        whole = self.framing.whole
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=whole)
        lengths = np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))
        tokens = chain.from_iterable(encoding.ids for encoding in encodings)
        ids = np.fromiter(tokens, dtype=self.dtype, count=int(lengths.sum()))
        if not whole:
            return frame(ids, lengths, self.framing)
        cut = sum(bool(encoding.overflowing) for encoding in encodings)
        return ids, lengths.astype(np.int32), Tally(len(texts), len(texts), len(ids), cut)


def binarize(
    source: TextSource | PickledTokens,
    vocabulary: Vocabulary,
    *,
    cache: Path,
    max_length: int,
    min_length: int = 12,
    max_unknown: float = 0.5,
    packed: bool = False,
    whole: bool = False,
    num_proc: int | None,
    engine: str = LOCAL,
    progress: Callable[[int], None] | None = None,
) -> TokenStore:
    """Open the store of a source's sequences, and build it if it does not exist.

    Args:
        source: The texts, or their token ids.
        vocabulary: Vocabulary of the tokenizer.
        cache: The store is in its `stores` folder.
        max_length: See `Framing`.
        min_length: See `Framing`.
        max_unknown: See `Framing`.
        packed: Whether texts, each with its special tokens, are joined end to end and cut into sequences of
            `max_length` tokens, the last one shorter; only that one can be shorter than `min_length`, and is dropped.
        whole: See `Framing`; the other limits are not read, nor is `packed`.
        num_proc: Worker processes, None for one per core. Locally, 1 uses this process. The result is the same.
        engine: `local` for processes of this machine, `ray` for Ray Data. The result is the same.
        progress: Called with the number of texts done.

    Raises:
        DataError: All sequences are dropped, or the source cannot be read.
        WriteError: The cache cannot be written.
    """
    framing = Framing(vocabulary.start_id, vocabulary.end_id, vocabulary.unk_id, max_length, min_length, max_unknown)
    if max_length <= framing.specials:
        raise DataError(
            f"data.max_length={max_length}: must be at least {framing.specials + 1}, above the number of special tokens"
        )
    fingerprint, options = source.fingerprint(), asdict(framing) | ({"packed": True} if packed else {})
    del options["whole"]  # stores of earlier versions have no such entry
    if whole:
        framing, options = replace(framing, whole=True), {"max_length": max_length, "whole": True}
    if packed:
        framing = replace(framing, max_length=UNBOUNDED, min_length=framing.specials + 1)
    folder = cache / "stores" / store_key(fingerprint, vocabulary.digest, options)

    def build(temporary: Path) -> None:
        writer = StoreWriter(temporary, vocabulary.size)
        dtype = token_dtype(vocabulary.size)
        if isinstance(source, PickledTokens):
            encoding = _framed(source, vocabulary, framing, dtype)
        else:
            tokenizer = load_backend(vocabulary.path)
            if whole:
                tokenizer.enable_truncation(max_length)
            encoding = _encoded_by(engine, Encoder(tokenizer, framing, dtype), source, num_proc)
        tally = Tally()
        with closing(encoding) as encoded:
            for ids, lengths, counts in _joined(encoded, max_length, min_length) if packed else encoded:
                writer.add(ids, lengths)
                tally.add(counts)
                if progress:
                    progress(tally.texts)
        if not tally.sequences:
            raise DataError(
                f"{source.name}: all of {tally.texts} texts are dropped: {tally.dropped_short} sequences have fewer "
                f"than {min_length} tokens and {tally.dropped_unknown} are mostly unknown to the tokenizer "
                f"'{vocabulary.path}'; use longer texts, a lower data.min_length or another data.tokenizer"
            )
        writer.close(fingerprint, vocabulary.digest, options, asdict(tally))

    build_once(folder, build)
    return TokenStore.open(folder)


def _joined(encoded: Iterable[Encoded], max_length: int, min_length: int) -> Iterator[Encoded]:
    """The tokens of all texts end to end, in sequences of `max_length`."""
    rest: npt.NDArray[Any] = np.empty(0, np.int64)
    for ids, _, tally in encoded:
        tokens = np.concatenate([rest.astype(ids.dtype), ids])
        count = len(tokens) // max_length
        done, rest = np.split(tokens, [count * max_length])
        yield done, np.full(count, max_length, np.int32), replace(tally, sequences=count, tokens=len(done))
    if len(rest) >= min_length:
        yield rest, np.array([len(rest)], np.int32), Tally(sequences=1, tokens=len(rest))
    else:
        yield rest[:0], np.empty(0, np.int32), Tally(dropped_short=min(len(rest), 1))


def _framed(
    source: PickledTokens, vocabulary: Vocabulary, framing: Framing, dtype: np.dtype[Any]
) -> Generator[Encoded, None, None]:
    for ids, lengths in source.batches(BATCH_CHARACTERS, vocabulary):
        yield frame(ids.astype(dtype, copy=False), lengths, framing)


def _encoded_by(
    engine: str, encoder: Encoder, source: TextSource, num_proc: int | None
) -> Generator[Encoded, None, None]:
    if engine == RAY:
        # Ray is an optional dependency.
        from potstill.data.corpus.ray_encoding import encoded_on_ray

        return encoded_on_ray(encoder, source, BATCH_CHARACTERS, num_proc)
    return _encoded(encoder, source.batches(BATCH_CHARACTERS), num_proc or os.cpu_count() or 1)


def _encoded(encoder: Encoder, batches: Iterable[list[str]], num_proc: int) -> Generator[Encoded, None, None]:
    """Encode batches in order, a bounded number at a time."""
    if num_proc == 1:
        yield from map(encoder, batches)
        return
    arguments = (encoder.tokenizer.to_str(), encoder.framing, encoder.dtype)
    pending: deque[Future[Encoded]] = deque()
    try:
        with worker_pool(num_proc, _start_encoder, arguments) as pool:
            for batch in batches:
                pending.append(pool.submit(_encode, batch))
                if len(pending) >= WINDOW * num_proc:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            f"data.num_proc={num_proc}: a worker process was killed, probably out of memory; use fewer"
        ) from error


_worker_encoder: Encoder


def _start_encoder(tokenizer: str, framing: Framing, dtype: np.dtype[Any]) -> None:
    global _worker_encoder
    # Threads would compete with the other processes.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker_encoder = Encoder(Tokenizer.from_str(tokenizer), framing, dtype)


def _encode(texts: list[str]) -> Encoded:
    return _worker_encoder(texts)
