"""Texts of a sentence encoder: each once, one sequence per text, in the tokens of student and teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.data.common.batching import Ints
from potstill.data.corpus.sources import TextSource
from potstill.data.corpus.splits import HeldOut
from potstill.data.corpus.store import Corpus

_DIGEST_BYTES = 8
_READ_CHARACTERS = 2**18

TextVectors = Callable[[Ints], Tensor]  # (n,) numbers of texts -> (n, width)


@dataclass(frozen=True)
class Distinct:
    """The texts of several sources, each once, with a prompt before it.

    A set of 8-byte digests is in memory while they are read, about 80 bytes per text.

    Attributes:
        sources: The sources, read in this order.
        prompt: Text before every text.
        lower: Whether texts are put into lower case.
    """

    sources: tuple[TextSource, ...]
    prompt: str = ""
    lower: bool = False

    @property
    def name(self) -> str:
        """The names of the sources."""
        return ", ".join(source.name for source in self.sources)

    def check(self) -> None:
        """See `TextSource`."""
        for source in self.sources:
            source.check()

    def fingerprint(self) -> dict[str, Any]:
        """See `TextSource`."""
        sources = [source.fingerprint() for source in self.sources]
        return {"kind": "distinct", "sources": sources, "prompt": self.prompt, "lower": self.lower}

    def batches(self, size: int) -> Iterator[list[str]]:
        """See `TextSource`."""
        seen: set[bytes] = set()
        for source in self.sources:
            for batch in source.batches(size):
                if kept := [f"{self.prompt}{self._text(text)}" for text in batch if self._is_new(text, seen)]:
                    yield kept

    def rows(self) -> tuple[Ints, int]:
        """The place of each text of `batches` among all texts of the sources, and the number of all.

        All are those of every source without `data.max_examples`, also where only a share is used.
        """
        seen: set[bytes] = set()
        found, total = [], 0
        for source in self.sources:
            held = source if isinstance(source, HeldOut) else None
            whole: Any = source if held is None else held.source
            limit, start = whole.max_examples, total
            for batch in cast(TextSource, replace(whole, max_examples=None)).batches(_READ_CHARACTERS):
                for text in batch:
                    used = limit is None or total - start < limit
                    if used and (held is None or held.keeps(text)) and self._is_new(text, seen):
                        found.append(total)
                    total += 1
        return np.array(found, np.int64), total

    def _text(self, text: str) -> str:
        return text.lower() if self.lower else text

    def _is_new(self, text: str, seen: set[bytes]) -> bool:
        """Whether a text was not seen before; now it was."""
        digest = blake2b(self._text(text).encode(), digest_size=_DIGEST_BYTES).digest()
        before = len(seen)
        seen.add(digest)
        return len(seen) > before


class Sentences:
    """Texts by number, in the tokens of the student and, where these are others, of the teacher.

    Attributes:
        texts: Numbers of the texts that are used, those of `min_length` tokens or more.
        source: What the corpus was made of.
        lengths: `(texts,)` tokens of the student.
        columns: Most texts of an entry.
    """

    columns = 1

    def __init__(
        self, corpus: Corpus, other: Corpus | None = None, min_length: int = 1, source: TextSource | None = None
    ) -> None:
        """Choose the texts that are long enough.

        Args:
            corpus: In the student's tokens.
            other: The same texts in the teacher's tokens; None where these are the same.
            min_length: Tokens of the student; a text has one or more in both.
            source: What the corpus was made of.
        """
        self.corpus, self.other, self.source = corpus, other, source
        kept = corpus.lengths >= max(min_length, 1)
        if other is not None:
            assert len(other) == len(corpus)
            kept &= other.lengths > 0
        self.texts: Ints = np.flatnonzero(kept)
        self.lengths: NDArray[np.int32] = corpus.lengths[self.texts]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "source": None}  # worker processes read tokens alone; texts may be large

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def used(self) -> Ints:
        """Numbers of the texts."""
        return np.arange(len(self))

    def describe(self) -> dict[str, int]:
        """Counts of the texts."""
        return {
            "texts": len(self.texts),
            "tokens": int(self.lengths.sum()),
            "truncated": self.corpus.describe()["split"],
            "dropped_short": len(self.corpus) - len(self.texts),
        }

    def read(self, numbers: Ints, *, teacher: bool = False) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Token ids of texts end to end, and their lengths."""
        corpus = self.other if teacher and self.other is not None else self.corpus
        return corpus.gather(self.texts[numbers])

    def item(self, bases: Ints, sources: Ints, seed: int, training: bool) -> dict[str, Any]:
        """See `steps.Sequences`."""
        ids, lengths = self.read(bases)
        found: dict[str, Any] = {
            "ids": torch.from_numpy(ids),
            "lengths": torch.from_numpy(lengths.astype(np.int64)),
            "sequences": torch.from_numpy(bases.astype(np.int64)),
            "seed": seed,
            "training": training,
        }
        if self.other is not None:
            theirs, own = self.read(bases, teacher=True)
            found |= {"teacher_ids": torch.from_numpy(theirs), "teacher_lengths": torch.from_numpy(own)}
        return found


class SentenceRows:
    """Rows of a query, a positive and negatives, each text once.

    Attributes:
        lengths: `(rows,)` tokens of all texts of each row.
        used: Numbers of the texts that they have.
    """

    def __init__(
        self,
        sentences: Sentences,
        numbers: Ints,
        margins: NDArray[np.float32] | None = None,
        left_out: Mapping[str, int] | None = None,
    ) -> None:
        """Keep what the rows are made of.

        Args:
            sentences: The texts of these rows, and others.
            numbers: `(rows, 2 + most negatives)` numbers of their texts; -1: no negative.
            margins: `(rows, most negatives)` given margins; None without scores.
            left_out: Counts of rows of the same sources that are not among them, by reason.
        """
        self.sentences, self.numbers, self.margins = sentences, numbers, margins
        self._left_out = dict(left_out or {})
        self.lengths: NDArray[np.int64] = np.where(numbers < 0, 0, sentences.lengths[numbers]).sum(1)
        self.used: Ints = np.unique(numbers[numbers >= 0])

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def columns(self) -> int:
        """Most texts of a row."""
        return self.numbers.shape[1]

    @property
    def texts(self) -> Ints:
        """See `Sentences`."""
        return self.sentences.texts

    def describe(self) -> dict[str, int]:
        """Counts of rows and texts."""
        return {
            "rows": len(self.numbers),
            "negatives": int((self.numbers[:, 2:] >= 0).sum()),
            "texts": len(self.used),
            "tokens": int(self.sentences.lengths[self.used].sum()),
            **self._left_out,
        }

    def read(self, numbers: Ints, *, teacher: bool = False) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """See `Sentences`."""
        return self.sentences.read(numbers, teacher=teacher)

    def item(self, bases: Ints, sources: Ints, seed: int, training: bool) -> dict[str, Any]:
        """See `steps.Sequences`: the texts of the rows, each once, and their places in each row."""
        rows = self.numbers[bases]
        given = rows >= 0
        texts, places = np.unique(rows[given], return_inverse=True)
        found = np.full(rows.shape, -1, np.int64)
        found[given] = places
        item = self.sentences.item(texts, sources, seed, training)
        item |= {"rows": torch.from_numpy(found), "negatives": int(given[:, 2:].sum())}
        return item if self.margins is None else item | {"scores": torch.from_numpy(self.margins[bases])}
