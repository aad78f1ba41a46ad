"""Stored outputs as targets on the student's device, in place of a teacher."""

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
    """Outputs of a task's teacher.

    Attributes:
        store: Store with one item per row of the part.
        form: Format of the store.
        units: (rows,) item of each row.
    """

    store: OutputStore
    form: FullForm
    units: Ints

    def __call__(self, rows: Tensor) -> Tensor:
        """(predictions, labels) float32 logits of (batch,) rows, with one or several predictions per row."""
        gathered = self.store.gather(self.units[rows.cpu().numpy()])
        return self.form.decode(gathered).to(rows.device)


@dataclass(frozen=True)
class StoredVocabulary:
    """Outputs of a language model's teacher.

    Attributes:
        store: Store with one item per token.
        form: Format of the store.
        temperature: T of the targets.
    """

    store: OutputStore
    form: TopForm | SampledForm
    temperature: float

    def __call__(self, units: Tensor, device: torch.device) -> TopRows | SampledRows:
        """Targets of (rows,) items, on a device."""
        gathered, form = self.store.gather(units.numpy()), self.form
        if isinstance(form, TopForm):
            return form.decode(gathered, self.temperature).to(device)
        return form.decode(gathered).to(device)
