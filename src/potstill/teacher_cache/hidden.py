"""A language model's last hidden states on disk, and the projection that turns them into its logits.

One vector per token instead of a row over the vocabulary: nothing of the teacher's distribution is lost but the
precision in which the vectors are stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from potstill.data.common.store import Field, Gathered
from potstill.errors import ConfigError
from potstill.models.backbone import Backbone
from potstill.teacher_cache.formats import Format
from potstill.teacher_cache.store import OutputStore

# numpy has no bfloat16: its bits are stored as integers.
FIELD_TYPES = {"float16": "<f2", "bfloat16": "<i2", "float32": "<f4"}


def to_stored(values_ND: Tensor, precision: str, what: str) -> NDArray[Any]:
    """Values as they are stored.

    Args:
        values_ND: of any shape.
        precision: a key of `FIELD_TYPES`.
        what: they are, for the message: "a vector".

    Raises:
        ConfigError: a value is too large for the precision.
    """
    kept_ND = values_ND.detach().to(getattr(torch, precision))
    if not kept_ND.isfinite().all():
        raise ConfigError(
            f"teacher.cache.precision={precision}: {what} of the teacher has a value of "
            f"{float(values_ND.abs().max()):g}, which is no finite number of this type; use bfloat16 or float32"
        )
    bits_ND = kept_ND.view(torch.int16) if precision == "bfloat16" else kept_ND
    return np.asarray(bits_ND.cpu().numpy())


def from_stored(values: NDArray[Any], precision: str) -> Tensor:
    """Values that `to_stored` has made, in their precision."""
    found = torch.from_numpy(values)
    return found.view(torch.bfloat16) if precision == "bfloat16" else found


@dataclass(frozen=True)
class HiddenFormat(Format):
    """The last hidden state of each token, before the head and the vocabulary projection.

    Attributes:
        width: Dimension of the teacher's hidden states.
        precision: Type of the values, "float16", "bfloat16" or "float32".
        labelled: Whether tokens without a label (those that are not masked) are left out.

    Example:
        >>> import torch
        >>> from potstill.teacher_cache import HiddenFormat
        >>> form = HiddenFormat(width=8, precision="bfloat16")
        >>> form.decode(form.encode(torch.randn(3, 8), torch.ones(3, dtype=torch.bool))).dtype
        torch.bfloat16
    """

    _kind = "hidden"
    width: int
    precision: str = "float16"
    labelled: bool = False

    @property
    def fields(self) -> tuple[Field, ...]:
        """Arrays of a store."""
        return (Field("hidden", FIELD_TYPES[self.precision], self.width, ragged=self.labelled),)

    def encode(self, hidden_ND: Tensor, labelled_N: Tensor) -> Gathered:
        """Outputs of items from (items, width) hidden states.

        Args:
            hidden_ND: (items, width).
            labelled_N: (items,) whether the item has a label.

        Raises:
            ConfigError: A value is too large for the precision.
        """
        counts = None
        if self.labelled:
            hidden_ND, counts = hidden_ND[labelled_N], labelled_N.long().cpu().numpy()
        return Gathered({"hidden": to_stored(hidden_ND, self.precision, "a hidden state")}, counts)

    def decode(self, gathered: Gathered) -> Tensor:
        """(items, width) hidden states in the precision of the store.

        Raises:
            ValueError: An item was left out.
        """
        if gathered.counts is not None and (gathered.counts != 1).any():
            raise ValueError("hidden states of tokens without a label are not stored")
        return from_stored(gathered.values["hidden"], self.precision)


class Projection:
    """A teacher's head and vocabulary projection, without its embeddings and blocks.

    Args:
        backbone: Of the teacher; its head and projection are frozen, and shared with it.
        dtype: Type of the weights; None as they are.

    Attributes:
        decoder: As `Backbone.decoder`.
    """

    decoder: tuple[Tensor, Tensor | None]

    def __init__(self, backbone: Backbone, dtype: torch.dtype | None = None) -> None:
        model, self._dtype = backbone.model, dtype
        self._steps: list[Callable[[Any], Any]] = [
            model.get_submodule(step) if isinstance(step, str) else step for step in backbone.view.head
        ]
        for step in self._steps:
            if isinstance(step, nn.Module):
                step.requires_grad_(False).eval()
        weight, bias = backbone.decoder
        self.decoder = weight.detach(), None if bias is None else bias.detach()

    def to(self, device: torch.device) -> None:
        """Move the weights."""
        for step in self._steps:
            if isinstance(step, nn.Module):
                step.to(device=device, dtype=self._dtype)
        weight, bias = self.decoder
        self.decoder = (
            weight.to(device=device, dtype=self._dtype),
            None if bias is None else bias.to(device=device, dtype=self._dtype),
        )

    def head(self, hidden_ND: Tensor) -> Tensor:
        """As `Backbone.head`."""
        return reduce(lambda state, step: step(state), self._steps, hidden_ND)


@dataclass(frozen=True)
class StoredHidden:
    """Last hidden states of a language model's teacher.

    Attributes:
        store: Store with one item per token.
        form: Format of the store.
        projection: The teacher's.
    """

    store: OutputStore
    form: HiddenFormat
    projection: Projection

    def __call__(self, units: Tensor, device: torch.device) -> Tensor:
        """(rows, width) hidden states of (rows,) items, on a device, in the type of the projection."""
        self.projection.to(device)
        hidden_ND = self.form.decode(self.store.gather(units.numpy()))
        return hidden_ND.to(device).to(self.projection.decoder[0].dtype)
