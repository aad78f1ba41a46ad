"""Stored outputs in a teacher's place: what an objective asks of a store, as targets on the student's device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.data.common.batching import Ints
from potstill.losses.sparse import SampledRows, TopRows
from potstill.teacher_cache.formats import FullForm, SampledForm, TopForm
from potstill.teacher_cache.store import OutputStore


@dataclass(frozen=True)
class StoredLogits:
    """A task's teacher.

    Attributes:
        store: a unit a row of the part.
        form: of the store.
        units: (rows,) the unit of each row.
    """

    store: OutputStore
    form: FullForm
    units: Ints

    def __call__(self, rows: Tensor) -> Tensor:
        """(predictions, labels) float32 logits of (batch,) rows: those of a row's words, or tokens, are neighbours."""
        gathered = self.store.gather(self.units[rows.cpu().numpy()])
        return self.form.decode(gathered).to(rows.device)


@dataclass(frozen=True)
class StoredVocabulary:
    """A language model's teacher.

    Attributes:
        store: a unit a token.
        form: of the store.
        temperature: T of the targets.
    """

    store: OutputStore
    form: TopForm | SampledForm
    temperature: float

    def __call__(self, units: Tensor, device: torch.device) -> TopRows | SampledRows:
        """Targets of (rows,) units, on a device."""
        gathered, form = self.store.gather(units.numpy()), self.form
        if isinstance(form, TopForm):
            return form.decode(gathered, self.temperature).to(device)
        return form.decode(gathered).to(device)
