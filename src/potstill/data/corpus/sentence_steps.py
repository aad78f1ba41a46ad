"""Optimizer steps of texts of a sentence encoder, or of rows of several texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from potstill.data.common.batching import Ints, length_groups
from potstill.data.common.ragged import starts_of
from potstill.data.common.steps import BatchSettings, StepDataModule
from potstill.data.corpus.datamodule import MicroBatch, StepBatch, pad
from potstill.data.corpus.sentences import SentenceRows, Sentences, TextVectors


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
