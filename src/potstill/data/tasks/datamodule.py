"""The data module of task models: batches of similar lengths; one item is one optimizer step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from potstill.data.common.batching import IGNORED
from potstill.data.common.ragged import flat_indices, padded_indices, starts_of
from potstill.data.common.steps import BatchSettings, StepDataModule
from potstill.data.common.swaps import Exchange, evaluation_exchange, training_exchange
from potstill.data.tasks.augment import Noise, augment
from potstill.data.tasks.features import Features
from potstill.interchange.intervene import Swap

AUGMENTING = 1  # stream of a step's seed


@dataclass(frozen=True)
class TaskSet:
    """Features and labels of a part.

    Attributes:
        features: Features of the rows.
        labels: `(rows,)` int64 label numbers or float32 scores; `(rows, labels)` multi-hot sets of labels; `(rows, 2)`
            first and last token of an answer; `(tokens,)` token labels; None without labels.
        words: With token labels, `(tokens,)` number of the word for its first token, -1 for other tokens.
    """

    features: Features
    labels: NDArray[np.integer] | NDArray[np.float32] | None
    words: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class OwnInputs:
    """The training rows in the tokens of a teacher with another tokenizer than the student's.

    Attributes:
        features: Features of the same rows.
        pad_id: Padding id.
        token_types: Whether the teacher reads token types.
    """

    features: Features
    pad_id: int
    token_types: bool


@dataclass
class TaskBatch:
    """Padded rows and their labels.

    Attributes:
        input_ids: `(batch, length)`.
        attention_mask: `(batch, length)` int64, 0 at padding.
        token_type_ids: `(batch, length)`; None for models without token types.
        labels: As in `TaskSet`, by row; token labels are `(batch, length)` with -100 elsewhere.
        rows: `(batch,)` numbers of the rows in their part.
        words: `(batch, length)` as in `TaskSet`; None without token labels.
        reached: `(batch, length)` real tokens that an intervention can change; None without interventions.
        swap: Positions to swap; None without interventions.
        sources: Sources, if they are not in this micro-batch.
        teachers: The same rows in the tokens of each teacher, None for the student's tokenizer; empty if all share it.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor | None
    labels: Tensor | None
    rows: Tensor
    words: Tensor | None = None
    reached: Tensor | None = None
    swap: Swap | None = None
    sources: TaskBatch | None = None
    teachers: Sequence[TaskBatch | None] = ()

    def read_by(self, teacher: int) -> TaskBatch:
        """The same rows in the tokens of a teacher, by its number."""
        return (self.teachers[teacher] if self.teachers else None) or self


@dataclass
class TaskStep:
    """One optimizer step, or one evaluation batch, of this rank.

    Counts are of the whole step over all ranks; they include drawn sources that are bases too.

    Attributes:
        micro: Micro-batches.
        predictions: Number of predictions: labels or scores of rows, labels of words, or ends of answers.
        tokens: Real tokens.
        seed: Seed of everything random in this step.
        reached: Predictions that an intervention reaches.
        reached_tokens: Tokens that an intervention can change.
        sequences: Rows.
        pairs: Sum of their squared lengths.
        task: Name of the task, for a student of several tasks.
    """

    micro: list[TaskBatch]
    predictions: int
    tokens: int
    seed: int = field(default=0)
    reached: int = 0
    reached_tokens: int = 0
    sequences: int = 0
    pairs: int = 0
    task: str = ""


class TaskDataModule(StepDataModule):
    """Batches of a benchmark's rows.

    Args:
        train: Training set.
        evaluation: Evaluation sets by name, one loader each.
        pad_id: Padding id.
        token_types: Whether the model reads token types.
        settings: The keys of `data`, without those of masking.
        causal: Whether an intervention reaches later positions only.
        noise: Augmentation of the training rows.
        teachers: `train` in the tokens of each teacher, None for the student's tokenizer.
    """

    def __init__(
        self,
        train: TaskSet | None,
        evaluation: Mapping[str, TaskSet],
        *,
        pad_id: int,
        token_types: bool,
        settings: BatchSettings,
        causal: bool = False,
        noise: Noise | None = None,
        teachers: Sequence[OwnInputs | None] = (),
    ):
        self.teachers = tuple(teachers)
        super().__init__(_Flat(train, noise, self.teachers) if train is not None else None, settings)
        self.train, self.evaluation = train, dict(evaluation)
        self.pad_id, self.token_types, self.causal = pad_id, token_types, causal

    def val_dataloader(self) -> list[DataLoader]:
        """One loader per evaluation set, in a fixed order."""
        return [self.evaluation_loader(_Flat(part)) for part in self.evaluation.values()]

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> TaskStep:
        """Draw the swaps of a step, and cut this rank's micro-batches."""
        lengths, bases = batch["lengths"].cpu().numpy(), int(batch["bases"])
        starts = starts_of(lengths)
        exchange = self._exchange(lengths, batch)
        reached = None if exchange is None else torch.from_numpy(exchange.reached).to(batch["ids"].device)
        micro = []
        for cut in self.cuts(lengths[:bases], bool(batch["training"])):
            if not len(cut):
                continue
            part = self._padded(batch, lengths[cut], starts[cut], cut, reached)
            part.teachers = self._read_by_teachers(batch, cut, part.rows)
            if exchange is not None:
                if bases < len(lengths):
                    far = cut + bases
                    part.sources = self._padded(batch, lengths[far], starts[far], far, reached)
                source_width = None if part.sources is None else part.sources.input_ids.shape[1]
                part.swap = exchange.cut(cut, part.input_ids.shape[1], batch["ids"].device, source_width)
            micro.append(part)
        plan = self.settings.interchange
        used = len(lengths) if plan is not None and plan.crossway else bases  # drawn sources are bases too
        tokens = int(lengths[:used].sum())
        words = batch["words"].cpu().numpy()[:tokens] >= 0 if "words" in batch else None
        # One prediction per word or row, both ends of an answer, or one for each label that a row can have.
        each = batch["labels"].shape[1] if "labels" in batch and batch["labels"].ndim == 2 else 1
        step = TaskStep(micro, used * each if words is None else int(words.sum()), tokens, int(batch["seed"]))
        step.sequences, step.pairs = used, int(np.square(lengths[:used]).sum())
        if exchange is not None:
            reached_tokens = exchange.reached[:tokens]
            rows = np.add.reduceat(reached_tokens.astype(np.int64), starts[:used]) > 0
            step.reached = int(rows.sum()) * each if words is None else int((reached_tokens & words).sum())
            step.reached_tokens = int(reached_tokens.sum())
        return step

    def train_batches(self, order: NDArray[np.int64], device: torch.device) -> Iterator[TaskBatch]:
        """The training rows without augmentation, in a given order, in batches of `eval_batch_size`."""
        assert self.train is not None
        flat, size = _Flat(self.train), self.settings.eval_batch_size
        for rows in np.split(order, range(size, len(order), size)):
            item = flat.item(rows, rows[:0], 0, training=False)
            batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in item.items()}
            lengths = item["lengths"].numpy()
            yield self._padded(batch, lengths, starts_of(lengths), np.arange(len(rows)), None)

    def _exchange(self, lengths: NDArray[np.int64], batch: dict[str, Any]) -> Exchange | None:
        plan = self.settings.interchange
        if plan is None:
            return None
        if batch["training"]:
            return training_exchange(plan, lengths, int(batch["bases"]), int(batch["seed"]), causal=self.causal)
        rows = batch["rows"].cpu().numpy()
        return evaluation_exchange(plan, lengths, rows, self.settings.seed, causal=self.causal)

    def _padded(
        self, batch: dict[str, Any], lengths: NDArray, starts: NDArray, cut: NDArray[np.int64], reached: Tensor | None
    ) -> TaskBatch:
        device = batch["ids"].device
        source, mask = _places(lengths, starts, device)
        rows = torch.from_numpy(cut).to(device)
        return TaskBatch(
            batch["ids"].long()[source].masked_fill(~mask, self.pad_id),
            mask.long(),
            batch["types"].long()[source].masked_fill(~mask, 0) if self.token_types else None,
            self._labels(batch, rows, source, mask),
            batch["rows"][rows],
            batch["words"][source].masked_fill(~mask, -1) if "words" in batch else None,
            None if reached is None else reached[source] & mask,
        )

    def _read_by_teachers(self, batch: dict[str, Any], cut: NDArray[np.int64], rows: Tensor) -> list[TaskBatch | None]:
        """The rows of a micro-batch in the tokens of each teacher; empty in evaluation."""
        found: list[TaskBatch | None] = []
        for own, item in zip(self.teachers, batch.get("teachers", ()), strict=False):
            if own is None:
                found.append(None)
                continue
            lengths = item["lengths"].cpu().numpy()
            source, mask = _places(lengths[cut], starts_of(lengths)[cut], rows.device)
            ids = item["ids"].long()[source].masked_fill(~mask, own.pad_id)
            types = item["types"].long()[source].masked_fill(~mask, 0) if own.token_types else None
            found.append(TaskBatch(ids, mask.long(), types, None, rows))
        return found

    def _labels(self, batch: dict[str, Any], rows: Tensor, source: Tensor, mask: Tensor) -> Tensor | None:
        if "labels" not in batch:
            return None
        if "words" in batch:
            return batch["labels"][source].masked_fill(~mask, IGNORED)
        return batch["labels"][rows]


def _places(lengths: NDArray, starts: NDArray, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """`(rows, longest)` indices into flat tokens, and a mask that is False at padding."""
    source, mask = padded_indices(starts, lengths)
    return torch.from_numpy(source).to(device), torch.from_numpy(mask).to(device)


class _Gathered:
    """Features with access by row."""

    def __init__(self, features: Features):
        self.features, self.lengths = features, features.lengths
        self.starts = starts_of(self.lengths)

    def places(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices of the tokens of rows, one row after another, and their lengths."""
        lengths = self.lengths[rows].astype(np.int64)
        return flat_indices(self.starts[rows], lengths), lengths

    def gather(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        """Ids, types and lengths of rows."""
        places, lengths = self.places(rows)
        return {
            "ids": torch.from_numpy(self.features.ids[places]),
            "types": torch.from_numpy(self.features.types[places]),
            "lengths": torch.from_numpy(lengths),
        }


class _Flat(_Gathered):
    """A part as `Sequences`."""

    def __init__(self, part: TaskSet, noise: Noise | None = None, teachers: Sequence[OwnInputs | None] = ()):
        super().__init__(part.features)
        self.part, self.noise = part, noise
        self.teachers = [None if own is None else _Gathered(own.features) for own in teachers]

    def item(self, bases: NDArray[np.int64], sources: NDArray[np.int64], seed: int, training: bool) -> dict[str, Any]:
        wanted = np.concatenate([bases, sources])
        places, lengths = self.places(wanted)
        ids = self.part.features.ids[places]
        if self.noise is not None and training:
            special = np.isin(ids, self.noise.special_ids)
            changed = augment(lengths, special, self.noise.how, np.random.default_rng((seed, AUGMENTING)))
            places, lengths = places[changed.places], changed.lengths
            ids = np.where(changed.masked, self.noise.mask_id or 0, ids[changed.places]).astype(np.int32)
        item = {
            "bases": len(bases),
            "ids": torch.from_numpy(ids),
            "types": torch.from_numpy(self.part.features.types[places]),
            "lengths": torch.from_numpy(lengths),
            "rows": torch.from_numpy(wanted.astype(np.int64)),
            "seed": seed,
            "training": training,
        }
        if self.part.words is not None:
            item["words"] = torch.from_numpy(self.part.words[places])
        if self.part.labels is not None:
            labelled = wanted if self.part.words is None else places
            item["labels"] = torch.from_numpy(self.part.labels[labelled])
        if self.teachers:
            item["teachers"] = [{} if own is None else own.gather(wanted) for own in self.teachers]
        return item
