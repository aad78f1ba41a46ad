"""Forms in which a teacher's outputs are kept: how logits become arrays of a store, and arrays become targets.

Bytes a unit: `FullForm` 4 a label; `TopForm` 4 a token (6 with a vocabulary above 65,536 or with float32) and 4 a
temperature; `SampledForm` 4 a different token (6 likewise) and 8.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.data.common.store import Field, Gathered
from potstill.data.corpus.store import token_dtype
from potstill.losses.sparse import SampledRows, TopRows, softened
from potstill.teacher_cache.sparse_rows import draw, top_of

_GREATEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class FullForm:
    """All logits of a task's labels, float32.

    Attributes:
        labels: columns of the logits; of answers 2, the start's and the end's.
        ragged: whether a unit has any number of rows, as sentences have words and windows have tokens.
    """

    labels: int
    ragged: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """For `store_identity`."""
        return {"kind": "full"} | asdict(self)

    @property
    def fields(self) -> tuple[Field, ...]:
        """Arrays of a store."""
        return (Field("logits", "<f4", self.labels, self.ragged),)

    def encode(self, logits_NC: Tensor, counts: NDArray[np.int64] | None = None) -> Gathered:
        """Outputs of units.

        Args:
            logits_NC: (rows, labels).
            counts: (units,) rows of each unit, where the form is ragged.
        """
        return Gathered({"logits": logits_NC.detach().float().cpu().numpy()}, counts)

    def decode(self, gathered: Gathered) -> Tensor:
        """(rows, labels) float32 logits, all rows of all units end to end (`gathered.counts` says where they end)."""
        return torch.from_numpy(gathered.values["logits"])


@dataclass(frozen=True)
class TopForm:
    """The likeliest tokens of a vocabulary, at temperature 1, and the mass of all others.

    Attributes:
        k: tokens a row.
        vocabulary_size: columns of the logits.
        temperatures: T for which the mass of the others is kept; 1 and the objective's.
        precision: of the log-probabilities, "float16" or "float32".
    """

    k: int
    vocabulary_size: int
    temperatures: tuple[float, ...] = (1.0,)
    precision: str = "float16"

    @property
    def identity(self) -> dict[str, Any]:
        """For `store_identity`."""
        return {"kind": "top"} | asdict(self)

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
        """Outputs of units from (units, vocab) logits; the result does not depend on the numbers of the units."""
        top = top_of(logits_NV, self.k, self.temperatures)
        arrays = zip(self.fields, top, strict=True)
        return Gathered({field.name: values.cpu().numpy().astype(field.dtype) for field, values in arrays})

    def decode(self, gathered: Gathered, temperature: float) -> TopRows:
        """Targets at a temperature: with the tail where its mass at this temperature is kept, else without."""
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
class SampledForm:
    """Tokens drawn from a vocabulary at one temperature, weighted without bias.

    Attributes:
        samples: draws a row, 2,048 at most.
        vocabulary_size: columns of the logits.
        seed: of the draws.
        temperature: of the distribution; targets have no other.
        power: tokens are drawn from p ** power, normalised; from 0.5 to 1.5.
        systematic: one random number a row instead of one a draw (`teachers.rows.draw`).
    """

    samples: int
    vocabulary_size: int
    seed: int
    temperature: float = 1.0
    power: float = 1.0
    systematic: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """For `store_identity`."""
        return {"kind": "sampled"} | asdict(self)

    @property
    def fields(self) -> tuple[Field, ...]:
        """Arrays of a store."""
        return (
            Field("ids", token_dtype(self.vocabulary_size).str, 1, ragged=True),
            # In units of a draw: at power 1 these are counts, which float16 holds exactly.
            Field("weights", "<f2", 1, ragged=True),
            Field("entropy", "<f4"),
        )

    def encode(self, logits_NV: Tensor, units: NDArray[np.int64]) -> Gathered:
        """Outputs of units from (units, vocab) logits; draws are a function of (seed, unit)."""
        drawn = draw(
            logits_NV,
            units,
            samples=self.samples,
            power=self.power,
            temperature=self.temperature,
            seed=self.seed,
            systematic=self.systematic,
        )
        values = {
            "ids": drawn.ids,
            "weights": np.minimum(drawn.weights, _GREATEST_FLOAT16),
            "entropy": drawn.entropy,
        }
        dtypes = {field.name: field.dtype for field in self.fields}
        return Gathered({k: v.astype(dtypes[k]).reshape(-1, 1) for k, v in values.items()}, drawn.counts)

    def decode(self, gathered: Gathered) -> SampledRows:
        """Targets at the form's temperature."""
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
