"""The data module of step-by-step distillation: one item is one optimizer step, both tasks of a row in one batch."""

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
from potstill.data.common.steps import BatchSettings, StepDataModule
from potstill.data.rationales.features import RationaleFeatures, Tokens
from potstill.data.rationales.rows import EXPLAIN, PREDICT, SOFT

VALID, TEST = "valid", "test"
_COLUMNS = ("predict", "explain", "labels", "rationales")
TARGET_BIN = 8  # tokens: rationales of like lengths are together, and among them inputs of like lengths
_WIDE = 2**20  # more than any input has tokens, and a multiple of any usual bin of lengths


@dataclass(frozen=True)
class RationaleSequences:
    """Rows of a part as a student reads them.

    Attributes:
        features: both inputs and both targets of its rows.
        explains: whether the second task is asked for.
        choices: for each row the token ids of what its label can be; None where labels are free.
        budgeted: micro-batches are cut by tokens, so lengths are numbers of tokens.
        soft: for each row an LLM's probabilities of its choices, in their order, None where it has none; None where
            they are not learnt. Choices of rows without are not read.
    """

    features: RationaleFeatures
    explains: bool = True
    choices: Sequence[Sequence[Sequence[int]]] | None = None
    budgeted: bool = False
    soft: Sequence[Sequence[float] | None] | None = None

    def __len__(self) -> int:
        return len(self.features)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """`(rows,)` what rows of like lengths are told by, see `likeness`."""
        return likeness({name: getattr(self.features, name).lengths for name in self._columns}, self.budgeted)

    @property
    def _columns(self) -> tuple[str, ...]:
        return _COLUMNS if self.explains else ("predict", "labels")

    def item(self, bases: NDArray, sources: NDArray, seed: int, training: bool) -> dict[str, Any]:
        """A step of these rows: the texts of each column end to end, with their lengths."""
        item: dict[str, Any] = {
            "rows": torch.from_numpy(bases.astype(np.int64)),
            "seed": seed,
            "training": training,
        }
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
    """Padded inputs and targets; the rows of both tasks one under the other, prediction first.

    Attributes:
        input_ids: `(inputs, length)` of the rows of all tasks.
        attention_mask: `(inputs, length)` int64, 0 at padding.
        targets: by task, `(rows of the task, target length)` token ids, -100 at padding.
        rows: by task, `(rows of the task,)` numbers of the rows in their part.
        choices: `(candidates, length)` what labels can be, -100 at padding; None where they are free.
        choice_rows: `(candidates,)` place of the row of prediction that each is of.
        soft: `(candidates,)` an LLM's probability of each; None where they are not learnt.
    """

    input_ids: Tensor
    attention_mask: Tensor
    targets: dict[str, Tensor]
    rows: dict[str, Tensor]
    choices: Tensor | None = None
    choice_rows: Tensor | None = None
    soft: Tensor | None = None

    def rows_of(self, task: str) -> slice:
        """Where the inputs of a task are."""
        start = 0
        for name, rows in self.rows.items():
            if name == task:
                return slice(start, start + len(rows))
            start += len(rows)
        raise KeyError(task)

    def only(self, tasks: Collection[str]) -> RationaleBatch:
        """The batch with the inputs of these tasks alone."""
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
    """All that one optimizer step, or one step of evaluation, reads on this rank.

    Attributes:
        micro: the micro-batches.
        targets: target tokens of the whole step by task, over all ranks; of `soft` the rows with label probabilities.
        tokens: real tokens of the whole step, inputs and targets of both tasks.
        seed: of everything random in this step.
    """

    micro: list[RationaleBatch]
    targets: dict[str, int]
    tokens: int
    seed: int = 0


class RationaleDataModule(StepDataModule):
    """Batches of rows with rationales.

    Args:
        train: what is trained on.
        evaluation: what is selected on (`VALID`) and reported on (`TEST`), as far as there is any.
        pad_id: what fills up inputs.
        settings: the keys of `data`; those of masking are not used.
    """

    def __init__(
        self,
        train: RationaleSequences | None,
        evaluation: Mapping[str, RationaleSequences],
        *,
        pad_id: int,
        settings: BatchSettings,
    ):
        self._budgeted = settings.max_tokens is not None
        super().__init__(None if train is None else replace(train, budgeted=self._budgeted), settings)
        self.evaluation, self.pad_id = dict(evaluation), pad_id

    def val_dataloader(self) -> DataLoader:
        """Batches of what is selected on."""
        return self.evaluation_loader(self.evaluation[VALID])

    def test_dataloader(self) -> DataLoader:
        """Batches of what is reported on."""
        return self.evaluation_loader(self.evaluation[TEST])

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> RationaleStep:
        """Cut this rank's micro-batches out of a step, and pad them."""
        lengths = {
            name: batch[f"{name}.lengths"].cpu().numpy() for name in _COLUMNS if f"{name}.lengths" in batch
        }
        like = likeness(lengths, self._budgeted)
        micro = [
            self._padded(batch, lengths, cut) for cut in self.cuts(like, bool(batch["training"])) if len(cut)
        ]
        tokens = int(sum(own.sum() for own in lengths.values()))
        targets = {PREDICT: int(lengths["labels"].sum())}
        if "rationales" in lengths:
            targets[EXPLAIN] = int(lengths["rationales"].sum())
        if "soft" in batch:
            targets[SOFT] = sum(own is not None for own in batch["soft"])
        return RationaleStep(micro, targets, tokens, int(batch["seed"]))

    def _padded(
        self, batch: dict[str, Any], lengths: dict[str, NDArray], cut: NDArray[np.int64]
    ) -> RationaleBatch:
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
            shown_rows = [
                (place, row) for place, row in enumerate(cut) if soft is None or soft[row] is not None
            ]
            flat = [(place, own) for place, row in shown_rows for own in batch["choices"][row]]
            if flat and soft is not None:
                values = [value for _, row in shown_rows for value in soft[row]]
                made.soft = torch.tensor(values, dtype=torch.float32, device=ids.device)
            if flat:
                made.choices = torch.nn.utils.rnn.pad_sequence(
                    [torch.tensor(own, dtype=torch.long) for _, own in flat],
                    batch_first=True,
                    padding_value=IGNORED,
                ).to(ids.device)
                made.choice_rows = torch.tensor([place for place, _ in flat], device=ids.device)
        return made


def likeness(lengths: Mapping[str, NDArray[np.integer]], budgeted: bool) -> NDArray[np.int64]:
    """Figures that are near each other for rows that waste little padding together.

    The decoder's padding is that of rationales, the encoder's that of inputs, and they are hardly related. So rows are
    ordered by bins of the one and then by the other, which pads less than an order by their sum.

    Args:
        lengths: by column, `(rows,)` tokens of each row.
        budgeted: the figures are to be numbers of tokens: both inputs and both targets.
    """
    total: NDArray[np.int64] = np.stack(list(lengths.values())).sum(axis=0, dtype=np.int64)
    if budgeted or "rationales" not in lengths:
        return total
    bins, inputs = lengths["rationales"].astype(np.int64) // TARGET_BIN, lengths["predict"].astype(np.int64)
    return np.add(bins * _WIDE, inputs)


def _taken(tokens: Tokens, rows: NDArray) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The texts of some rows, end to end, and their lengths."""
    lengths = tokens.lengths.astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    own = lengths[rows]
    ends = np.cumsum(own)
    places = np.repeat(starts[rows] - (ends - own), own) + np.arange(int(own.sum()))
    return tokens.ids[places], own


def _pad(
    batch: dict[str, Any], name: str, lengths: NDArray, rows: NDArray, width: int
) -> tuple[Tensor, Tensor]:
    """Ids of some rows `(rows, width)` with anything at padding, and where they are real."""
    ids = batch[f"{name}.ids"]
    starts = (np.cumsum(lengths) - lengths)[rows]
    columns = np.arange(width)
    real = columns < lengths[rows][:, None]
    places = torch.from_numpy(np.where(real, starts[:, None] + columns, 0)).to(ids.device)
    if not len(ids):  # no row has such a text
        return places.new_zeros(places.shape), torch.from_numpy(real).to(ids.device)
    return ids[places].long(), torch.from_numpy(real).to(ids.device)


def _target(batch: dict[str, Any], name: str, lengths: NDArray, rows: NDArray) -> Tensor:
    ids, real = _pad(batch, name, lengths, rows, max(int(lengths[rows].max()), 1))
    return ids.masked_fill(~real, IGNORED)
