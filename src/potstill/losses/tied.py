"""One gradient for a weight shared by the embeddings and the vocabulary projection.

Autograd allocates a gradient of the vocabulary's size for each of the two uses and adds them. The embeddings use a few
rows only: here their backward pass, which runs last, adds these rows to the projection's gradient and returns that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding


class TiedGradient:
    """Holds the projection's gradient for the embeddings, within one backward pass."""

    def __init__(self) -> None:
        self._grad_VD: Tensor | None = None

    def give(self, grad_VD: Tensor) -> None:
        """Store a gradient of the weight, which `take` may return changed; a second one is added to the first."""
        self._grad_VD = grad_VD if self._grad_VD is None else self._grad_VD.add_(grad_VD)

    def take(self) -> Tensor | None:
        """Return the stored gradient and forget it."""
        grad_VD, self._grad_VD = self._grad_VD, None
        return grad_VD


def embed_tied(weight_VD: Tensor, ids: Tensor, padding_id: int | None, tied: TiedGradient) -> Tensor:
    """Rows of a weight, whose gradient is that of the rows plus the one that `tied` holds.

    Args:
        weight_VD: (vocab, width).
        ids: token ids of any shape.
        padding_id: its row gets no gradient of the embeddings, as in `torch.nn.Embedding`.
        tied: holds the projection's gradient.

    Returns:
        (*ids.shape, width).
    """
    return _EmbedTied.apply(weight_VD, ids, padding_id, tied)  # type: ignore[no-untyped-call]


class _EmbedTied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, ids: Tensor, padding_id: int | None, tied: TiedGradient) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.padding_id, ctx.tied, ctx.like = padding_id, tied, (weight_VD.shape, weight_VD.dtype)
        return embedding(ids, weight_VD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        (vocab, width), dtype = ctx.like
        total_VD = ctx.tied.take()
        if total_VD is None:
            total_VD = grad.new_zeros((vocab, width), dtype=dtype)
        ids_N, grad_ND = ids.flatten(), grad.flatten(0, -2).to(dtype)
        if ctx.padding_id is not None:
            grad_ND = grad_ND.masked_fill(ids_N.eq(ctx.padding_id).unsqueeze(1), 0)
        return total_VD.index_add_(0, ids_N, grad_ND), None, None, None
