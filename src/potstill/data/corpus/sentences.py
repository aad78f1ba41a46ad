"""Texts of a sentence encoder: each once, one sequence per text, in the tokens of student and teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from potstill.data.common.batching import Ints, length_groups
from potstill.data.common.ragged import starts_of
from potstill.data.common.steps import BatchSettings, StepDataModule
from potstill.data.corpus.datamodule import MicroBatch, StepBatch, pad
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


@dataclass(frozen=True)
class StepRows:
    """The rows of a step, each of a query, a positive and negatives.

    Attributes:
        texts: `(rows, 2 + most negatives)` places of their texts among those of the step; -1: no negative.
        scores: `(rows, most negatives)` given margins, the score of the positive less that of the negative; None
            without scores.
        negatives: Number of negatives.
    """

    texts: Tensor
    scores: Tensor | None
    negatives: int

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.texts)

    @property
    def given_margins(self) -> Tensor:
        """`(negatives,)` of the scores, in the order of `margins`."""
        assert self.scores is not None
        return self.scores[self.texts[:, 2:] >= 0]

    def documents(self) -> tuple[Tensor, Tensor]:
        """Places of all positives, then of all negatives; and which are no negatives of a query.

        Returns:
            `(documents,)` places, of which number i is the positive of row i.
            `(rows, documents)`, True for the query itself and for positives of the same query in other rows.
        """
        queries, positives, negatives = self.texts[:, 0], self.texts[:, 1], self.texts[:, 2:]
        found = torch.cat([positives, negatives[negatives >= 0]])
        same = (queries[:, None] == queries).float() @ (positives[:, None] == found).float()
        excluded = (same > 0) | (queries[:, None] == found)
        return found, excluded.fill_diagonal_(False)

    def margins(self, vectors: Tensor) -> Tensor:
        """`(negatives,)` inner product of query and positive less that of query and negative.

        Args:
            vectors: `(texts, width)` of the step.
        """
        row, column = (self.texts[:, 2:] >= 0).nonzero(as_tuple=True)
        queries, positives = (vectors[self.texts[row, side]] for side in (0, 1))
        return (queries * (positives - vectors[self.texts[row, column + 2]])).sum(-1)


@dataclass
class TextGroup(MicroBatch):
    """Texts of a micro-batch that are padded to one length.

    Attributes:
        places: `(batch,)` places of the texts among all texts of the step, on all ranks.
        other: The same texts in the teacher's tokens; None where these are the student's.
        vectors: `(batch, width)` the teacher's vectors, where they are not computed in the step.
        targets: `(batch, width)` what these are for the student; None until they are computed.
    """

    places: Tensor = field(kw_only=True)
    other: MicroBatch | None = None
    vectors: Tensor | None = None
    targets: Tensor | None = None


@dataclass
class SentenceBatch:
    """Texts of a micro-batch.

    Attributes:
        groups: Texts of similar lengths; each group is padded by itself.
        step_texts: Number of texts of the step, on all ranks.
        rows: The rows of the whole step; None for single texts.
    """

    groups: list[TextGroup]
    step_texts: int
    rows: StepRows | None = None

    @property
    def places(self) -> Tensor:
        """`(batch,)` places of all its texts."""
        return torch.cat([group.places for group in self.groups])


@dataclass
class SentenceStep(StepBatch):
    """One optimizer step of this rank.

    Attributes:
        rows: Its rows, on all ranks; None for single texts.
    """

    micro: list[SentenceBatch]  # type: ignore[assignment]
    rows: StepRows | None = None


class SentenceDataModule(StepDataModule):
    """Batches of texts, or of rows of several texts, of similar lengths.

    Args:
        train: Training texts or rows, if any.
        evaluation: Evaluation texts or rows, if any.
        pad_id: Padding id of the student's tokens.
        teacher_pad_id: Padding id of the teacher's.
        settings: Settings of steps.
        vectors: The teacher's vectors of training and evaluation texts, by number of the text in the corpus; None where
            they are computed in the step.
    """

    def __init__(
        self,
        train: Sentences | SentenceRows | None,
        evaluation: Sentences | SentenceRows | None,
        pad_id: int,
        teacher_pad_id: int,
        settings: BatchSettings,
        vectors: tuple[TextVectors | None, TextVectors | None] = (None, None),
    ):
        super().__init__(train, settings)
        self.train, self.evaluation, self.pad_id, self.teacher_pad_id = train, evaluation, pad_id, teacher_pad_id
        self._vectors = vectors

    def val_dataloader(self) -> DataLoader | list:
        """Evaluation batches of similar lengths, in a fixed order."""
        return [] if self.evaluation is None else self.evaluation_loader(self.evaluation)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> SentenceStep:
        """Cut this rank's micro-batches from a step."""
        lengths = batch["lengths"].cpu().numpy()
        micro, step_rows, columns = [], None, 1
        vectors = self._step_vectors(bool(batch["training"]), batch["sequences"].cpu().numpy(), batch["ids"].device)
        if "rows" in batch:
            columns = batch["rows"].shape[1]  # of all rows, whatever these have
            step_rows = StepRows(batch["rows"], batch.get("scores"), int(batch["negatives"]))
        for rows in self.cuts(lengths, bool(batch["training"]), columns):
            if len(rows):
                groups = [self._group(batch, lengths, rows[own], vectors) for own in length_groups(lengths[rows])]
                micro.append(SentenceBatch(groups, len(lengths), step_rows))
        return SentenceStep(
            micro=micro,
            tokens=int(lengths.sum()),
            labelled=0,
            seed=int(batch["seed"]),
            sequences=len(lengths),
            pairs=int(np.square(lengths.astype(np.int64)).sum()),
            rows=step_rows,
        )

    def _step_vectors(self, training: bool, sequences: Ints, device: torch.device) -> Tensor | None:
        """The teacher's vectors of the texts of a step, where they are stored."""
        texts, vectors = (self.train, self._vectors[0]) if training else (self.evaluation, self._vectors[1])
        if vectors is None or texts is None:
            return None
        return vectors(texts.texts[sequences]).to(device)

    def _group(
        self, batch: dict[str, Any], lengths: NDArray[np.int64], rows: Ints, vectors: Tensor | None
    ) -> TextGroup:
        """Some texts of a step, by their places."""
        part = _cut(batch["ids"], lengths, rows, self.pad_id)
        other = None
        if "teacher_ids" in batch:
            theirs = batch["teacher_lengths"].cpu().numpy()
            other = _cut(batch["teacher_ids"], theirs, rows, self.teacher_pad_id)
        return TextGroup(
            part.input_ids,
            part.attention_mask,
            part.positions,
            part.labels,
            sequences=batch["sequences"].cpu().numpy()[rows],
            places=torch.from_numpy(rows).to(part.input_ids.device),
            other=other,
            vectors=None if vectors is None else vectors[rows],
        )


def _cut(ids: Tensor, lengths: NDArray[np.int64], rows: Ints, pad_id: int) -> MicroBatch:
    ids = ids.long()
    return pad(ids, ids, lengths[rows], starts_of(lengths)[rows], pad_id)
