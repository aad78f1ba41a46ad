"""Formats of a teacher's outputs: encoding logits as arrays of a store, and decoding arrays as targets.

Bytes per item: `FullFormat` 4 per label; `TopFormat` 4 per token (6 with a vocabulary above 65,536 or float32) and 4
per temperature; `SampledFormat` 4 per distinct token (6 with a vocabulary above 65,536) and 8. Hidden states: `hidden`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.data.common.batching import Ints
from potstill.data.common.store import Field, Gathered
from potstill.data.corpus.store import token_dtype
from potstill.losses.sparse import SampledRows, TopRows, softened
from potstill.teacher_cache.sparse_rows import Top, draw, top_of
from potstill.teacher_cache.store import OutputStore

_GREATEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class Format:
    """How outputs are stored."""

    _kind: ClassVar[str]

    @property
    def identity(self) -> dict[str, Any]:
        """Kind and settings, for `store_identity`."""
        return {"kind": self._kind} | asdict(self)


@dataclass(frozen=True)
class FullFormat(Format):
    """All logits of a task's labels, float32.

    Attributes:
        labels: Columns of the logits; 2 for the start and the end of answers.
        ragged: Whether an item has any number of rows, as for words of sentences and tokens of windows.
    """

    _kind = "full"
    labels: int
    ragged: bool = False

    @property
    def fields(self) -> tuple[Field, ...]:
        """Arrays of a store."""
        return (Field("logits", "<f4", self.labels, self.ragged),)

    def encode(self, logits_NC: Tensor, counts: NDArray[np.int64] | None = None) -> Gathered:
        """Outputs of items.

        Args:
            logits_NC: (rows, labels).
            counts: (items,) rows of each item in a ragged format.
        """
        return Gathered({"logits": logits_NC.detach().float().cpu().numpy()}, counts)

    def decode(self, gathered: Gathered) -> Tensor:
        """(rows, labels) float32 logits, rows of all items end to end."""
        return torch.from_numpy(gathered.values["logits"])


@dataclass(frozen=True)
class TopFormat(Format):
    """The top-k tokens of a vocabulary at temperature 1, and the mass of all others.

    Attributes:
        k: Tokens per row.
        vocabulary_size: Columns of the logits.
        temperatures: T for which the mass of the other tokens is stored.
        precision: Type of the log-probabilities, "float16" or "float32".

    Example:
        >>> import numpy as np, torch
        >>> from potstill.teacher_cache import TopFormat
        >>> form = TopFormat(k=4, vocabulary_size=100, temperatures=(1.0, 2.0))
        >>> rows = form.decode(form.encode(torch.randn(3, 100), np.arange(3)), temperature=2.0)
        >>> rows.ids.shape, rows.log_tail.shape
        (torch.Size([3, 4]), torch.Size([3]))
    """

    _kind = "top"
    k: int
    vocabulary_size: int
    temperatures: tuple[float, ...] = (1.0,)
    precision: str = "float16"

    @property
    def fields(self) -> tuple[Field, ...]:
        """Arrays of a store."""
        k = min(self.k, self.vocabulary_size)
        return (
            Field("ids", token_dtype(self.vocabulary_size).str, k),
            Field("log_probs", np.dtype(self.precision).newbyteorder("<").str, k),
            Field("log_tails", "<f4", len(self.temperatures)),
        )

    def encode(self, logits_NV: Tensor, units: NDArray[np.int64]) -> Gathered:
        """Outputs of items from (items, vocab) logits; `units` is not used."""
        return self.pack(top_of(logits_NV, self.k, self.temperatures))

    def pack(self, top: Top) -> Gathered:
        """Outputs of items from their likeliest tokens, as `top_of` returns them."""
        arrays = zip(self.fields, top, strict=True)
        return Gathered({field.name: values.cpu().numpy().astype(field.dtype) for field, values in arrays})

    def decode(self, gathered: Gathered, temperature: float) -> TopRows:
        """Targets at a temperature, with the tail if its mass is stored for this temperature."""
        values = gathered.values
        tail = None
        if temperature in self.temperatures:
            tail = torch.from_numpy(values["log_tails"][:, self.temperatures.index(temperature)])
        return softened(
            torch.from_numpy(values["ids"].astype(np.int64)),
            torch.from_numpy(values["log_probs"]),
            tail,
            temperature=temperature,
            vocabulary_size=self.vocabulary_size,
        )


@dataclass(frozen=True)
class SampledFormat(Format):
    """Tokens sampled from a vocabulary at one temperature, with unbiased weights.

    Attributes:
        samples: Draws per row, at most 2,048.
        vocabulary_size: Columns of the logits.
        seed: Seed of the draws.
        temperature: Temperature of the distribution and of the targets.
        power: Tokens are drawn from p ** power, normalized; from 0.5 to 1.5.
        systematic: Whether to use one random number per row instead of one per draw (`sparse_rows.draw`).
    """

    _kind = "sampled"
    samples: int
    vocabulary_size: int
    seed: int
    temperature: float = 1.0
    power: float = 1.0
    systematic: bool = False

    @property
    def fields(self) -> tuple[Field, ...]:
        """Arrays of a store."""
        return (
            Field("ids", token_dtype(self.vocabulary_size).str, 1, ragged=True),
            # At power 1 these are counts of draws, which are exact in float16.
            Field("weights", "<f2", 1, ragged=True),
            Field("entropy", "<f4"),
        )

    def encode(self, logits_NV: Tensor, units: NDArray[np.int64]) -> Gathered:
        """Outputs of items from (items, vocab) logits; draws are a function of (seed, item)."""
        drawn = draw(
            logits_NV,
            units,
            samples=self.samples,
            power=self.power,
            temperature=self.temperature,
            seed=self.seed,
            systematic=self.systematic,
        )
        values = {"ids": drawn.ids, "weights": np.minimum(drawn.weights, _GREATEST_FLOAT16), "entropy": drawn.entropy}
        dtypes = {field.name: field.dtype for field in self.fields}
        return Gathered({k: v.astype(dtypes[k]).reshape(-1, 1) for k, v in values.items()}, drawn.counts)

    def decode(self, gathered: Gathered, temperature: float | None = None) -> SampledRows:
        """Targets at the format's temperature; `temperature` is not used."""
        assert gathered.counts is not None
        counts, values = gathered.counts, gathered.values
        filled = np.arange(counts.max(initial=0)) < counts[:, None]
        ids = np.zeros(filled.shape, dtype=np.int64)
        weights = np.zeros(filled.shape, dtype=np.float32)
        ids[filled] = values["ids"][:, 0]
        weights[filled] = values["weights"][:, 0]
        return SampledRows(
            torch.from_numpy(ids),
            torch.from_numpy(weights / self.samples),
            torch.from_numpy(values["entropy"][:, 0]),
            self.temperature,
            self.vocabulary_size,
        )


@dataclass(frozen=True)
class StoredLogits:
    """Outputs of a task's teacher.

    Attributes:
        store: Store with one item per row of the part.
        form: Format of the store.
        units: (rows,) item of each row.
    """

    store: OutputStore
    form: FullFormat
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
        projection: None: targets are over the vocabulary.
    """

    projection: ClassVar[None] = None
    store: OutputStore
    form: TopFormat | SampledFormat
    temperature: float

    def __call__(self, units: Tensor, device: torch.device) -> TopRows | SampledRows:
        """Targets of (rows,) items, on a device."""
        return self.form.decode(self.store.gather(units.numpy()), self.temperature).to(device)
