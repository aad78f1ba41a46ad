"""The data module of step-by-step distillation: one item is one optimizer step with both tasks of each row."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from potstill.data.common.batching import IGNORED
from potstill.data.common.ragged import flat_indices, padded_indices, starts_of
from potstill.data.common.steps import BatchSettings, StepDataModule
from potstill.data.rationales.features import COLUMNS, RationaleFeatures
from potstill.data.rationales.forms import Tokens
from potstill.data.rationales.rows import EXPLAIN, PREDICT, SOFT

VALID, TEST = "valid", "test"
WATCHED = "watched"  # the test part, where it is evaluated with the validation part
TARGET_BIN = 8  # tokens: rows are sorted by bins of the rationale's length, then by the input's length
_WIDE = 2**20  # above the length of any input, and a multiple of any usual bin of lengths


@dataclass(frozen=True)
class RationaleSequences:
    """Rows of a part as token ids.

    Attributes:
        features: Inputs and targets of both tasks.
        explains: Whether the rows have the explanation task.
        choices: Token ids of the possible labels of each row; None for free labels.
        budgeted: Whether micro-batches are cut by tokens, so that lengths must be numbers of tokens.
        soft: An LLM's probabilities of the choices of each row, None for a row without; None if they are not used.
        padded_by: The column whose lengths pad the decoder, see `length_keys`; None: all texts are one sequence, or
            targets are short.
    """

    features: RationaleFeatures
    explains: bool = True
    choices: Sequence[Sequence[Sequence[int]]] | None = None
    budgeted: bool = False
    soft: Sequence[Sequence[float] | None] | None = None
    padded_by: str | None = "rationales"

    def __len__(self) -> int:
        return len(self.features)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """`(rows,)` sort keys for batches with little padding, see `length_keys`."""
        return length_keys({name: getattr(self.features, name).lengths for name in self._columns}, self._padded_by)

    @property
    def _padded_by(self) -> str | None:
        return None if self.budgeted or self.padded_by not in self._columns else self.padded_by

    @property
    def _columns(self) -> tuple[str, ...]:
        return COLUMNS if self.explains else ("predict", "labels")

    def item(self, bases: NDArray, sources: NDArray, seed: int, training: bool) -> dict[str, Any]:
        """A step of rows: the texts of each column end to end, with their lengths."""
        item: dict[str, Any] = {"rows": torch.from_numpy(bases.astype(np.int64)), "seed": seed, "training": training}
        item["padded_by"] = self._padded_by
        for name in self._columns:
            ids, lengths = _taken(getattr(self.features, name), bases)
            item |= {f"{name}.ids": torch.from_numpy(ids), f"{name}.lengths": torch.from_numpy(lengths)}
        if self.choices is not None:
            item["choices"] = [self.choices[row] for row in bases]
        if self.soft is not None:
            item["soft"] = [self.soft[row] for row in bases]
        return item


@dataclass
class RationaleBatch:
    """Padded inputs and targets; rows of the prediction task come first.

    Attributes:
        input_ids: `(inputs, length)` of both tasks.
        attention_mask: `(inputs, length)` int64, 0 at padding.
        targets: By task, `(rows, target length)` token ids, -100 at padding.
        rows: By task, `(rows,)` numbers of the rows in their part.
        choices: `(candidates, length)` possible labels, -100 at padding; None for free labels.
        choice_rows: `(candidates,)` index of the prediction row of each candidate.
        soft: `(candidates,)` an LLM's probabilities; None if they are not used.
    """

    input_ids: Tensor
    attention_mask: Tensor
    targets: dict[str, Tensor]
    rows: dict[str, Tensor]
    choices: Tensor | None = None
    choice_rows: Tensor | None = None
    soft: Tensor | None = None

    def rows_of(self, task: str) -> slice:
        """Rows of a task in `input_ids`."""
        start = 0
        for name, rows in self.rows.items():
            if name == task:
                return slice(start, start + len(rows))
            start += len(rows)
        raise KeyError(task)

    def only(self, tasks: Collection[str]) -> RationaleBatch:
        """The batch with the rows of some tasks only."""
        if set(self.rows) <= set(tasks):
            return self
        kept = [task for task in self.rows if task in tasks]
        places = [self.rows_of(task) for task in kept]
        return replace(
            self,
            input_ids=torch.cat([self.input_ids[place] for place in places]),
            attention_mask=torch.cat([self.attention_mask[place] for place in places]),
            targets={task: self.targets[task] for task in kept},
            rows={task: self.rows[task] for task in kept},
        )


@dataclass
class RationaleStep:
    """One optimizer step, or one evaluation batch, of this rank.

    Attributes:
        micro: Micro-batches.
        targets: By task, target tokens of the whole step over all ranks; for `soft`, rows with label probabilities.
        tokens: Real tokens of the whole step, inputs and targets of both tasks.
        seed: Seed of everything random in this step.
    """

    micro: list[RationaleBatch]
    targets: dict[str, int]
    tokens: int
    seed: int = 0


class RationaleDataModule(StepDataModule):
    """Batches of rows with rationales.

    Args:
        train: Training rows.
        evaluation: Rows for model selection (`VALID`) and for reports (`TEST`).
        pad_id: Padding id of inputs.
        settings: The keys of `data`, without those of masking.
    """

    def __init__(
        self,
        train: RationaleSequences | None,
        evaluation: Mapping[str, RationaleSequences],
        *,
        pad_id: int,
        settings: BatchSettings,
    ):
        budgeted = settings.max_tokens is not None
        super().__init__(None if train is None else replace(train, budgeted=budgeted), settings)
        self.evaluation, self.pad_id = dict(evaluation), pad_id

    @property
    def validated(self) -> list[str]:
        """The parts of a validation, in the order of their loaders."""
        return [part for part in (VALID, WATCHED) if part in self.evaluation]

    def val_dataloader(self) -> list[DataLoader]:
        """Batches of the validation part, and of the test part if it is watched."""
        return [self.evaluation_loader(self.evaluation[part]) for part in self.validated]

    def test_dataloader(self) -> DataLoader:
        """Batches of the test part."""
        return self.evaluation_loader(self.evaluation[TEST])

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> RationaleStep:
        """Cut this rank's micro-batches from a step, and pad them."""
        lengths = {name: batch[f"{name}.lengths"].cpu().numpy() for name in COLUMNS if f"{name}.lengths" in batch}
        like = length_keys(lengths, batch["padded_by"])
        micro = [self._padded(batch, lengths, cut) for cut in self.cuts(like, bool(batch["training"])) if len(cut)]
        tokens = int(sum(own.sum() for own in lengths.values()))
        targets = {PREDICT: int(lengths["labels"].sum())}
        if "rationales" in lengths:
            targets[EXPLAIN] = int(lengths["rationales"].sum())
        if "soft" in batch:
            targets[SOFT] = sum(own is not None for own in batch["soft"])
        return RationaleStep(micro, targets, tokens, int(batch["seed"]))

    def _padded(self, batch: dict[str, Any], lengths: dict[str, NDArray], cut: NDArray[np.int64]) -> RationaleBatch:
        explained = cut[lengths["explain"][cut] > 0] if "explain" in lengths else cut[:0]
        shown = {PREDICT: (cut, "labels"), EXPLAIN: (explained, "rationales")}
        shown = {task: part for task, part in shown.items() if len(part[0])}
        width = max(int(lengths[task][rows].max()) for task, (rows, _) in shown.items())
        parts = [_pad(batch, task, lengths[task], rows, width) for task, (rows, _) in shown.items()]
        ids, real = (torch.cat(column) for column in zip(*parts, strict=True))
        made = RationaleBatch(
            ids.masked_fill(~real, self.pad_id),
            real.long(),
            {task: _target(batch, name, lengths[name], rows) for task, (rows, name) in shown.items()},
            {task: batch["rows"][torch.from_numpy(rows).to(ids.device)] for task, (rows, _) in shown.items()},
        )
        if "choices" in batch:
            soft = batch.get("soft")
            shown_rows = [(place, row) for place, row in enumerate(cut) if soft is None or soft[row] is not None]
            flat = [(place, own) for place, row in shown_rows for own in batch["choices"][row]]
            if flat and soft is not None:
                values = [value for _, row in shown_rows for value in soft[row]]
                made.soft = torch.tensor(values, dtype=torch.float32, device=ids.device)
            if flat:
                made.choices = torch.nn.utils.rnn.pad_sequence(
                    [torch.tensor(own, dtype=torch.long) for _, own in flat], batch_first=True, padding_value=IGNORED
                ).to(ids.device)
                made.choice_rows = torch.tensor([place for place, _ in flat], device=ids.device)
        return made


def length_keys(lengths: Mapping[str, NDArray[np.integer]], padded_by: str | None) -> NDArray[np.int64]:
    """Sort keys that bring rows of similar lengths together.

    Rationales pad the decoder and inputs the encoder, and their lengths are hardly related. Sorting by bins of the
    rationale's length and then by the input's length pads less than sorting by their sum. So it is with the two
    passes of a decoder-only student, of which one has no rationale.

    Args:
        lengths: By column, `(rows,)` tokens of each row.
        padded_by: The column whose lengths pad the decoder; None: the keys are numbers of tokens of all columns.
    """
    total: NDArray[np.int64] = np.stack(list(lengths.values())).sum(axis=0, dtype=np.int64)
    if padded_by is None:
        return total
    bins, inputs = lengths[padded_by].astype(np.int64) // TARGET_BIN, lengths["predict"].astype(np.int64)
    return np.add(bins * _WIDE, inputs)


def _taken(tokens: Tokens, rows: NDArray) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The texts of some rows end to end, and their lengths."""
    lengths = tokens.lengths[rows].astype(np.int64)
    return tokens.ids[flat_indices(starts_of(tokens.lengths)[rows], lengths)], lengths


def _pad(batch: dict[str, Any], name: str, lengths: NDArray, rows: NDArray, width: int) -> tuple[Tensor, Tensor]:
    """`(rows, width)` ids with any value at padding, and a mask that is False there."""
    ids = batch[f"{name}.ids"]
    places, mask = (
        torch.from_numpy(own).to(ids.device) for own in padded_indices(starts_of(lengths)[rows], lengths[rows], width)
    )
    return ids[places].long() if len(ids) else torch.zeros_like(places), mask


def _target(batch: dict[str, Any], name: str, lengths: NDArray, rows: NDArray) -> Tensor:
    ids, real = _pad(batch, name, lengths, rows, max(int(lengths[rows].max()), 1))
    return ids.masked_fill(~real, IGNORED)
