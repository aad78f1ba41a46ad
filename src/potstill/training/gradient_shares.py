"""Shares of the terms in the student's gradient, which help to choose their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def gradient_shares(
    parameters: Sequence[Tensor],
    micro: Sequence[Any],
    shares: Mapping[str, Callable[[Any], Any]],
    *,
    seed: int,
    world: int = 1,
    scale: float = 1.0,
) -> dict[str, float]:
    """Each term's share of the sum of all terms' gradient norms.

    The gradient of a term is that of its weighted loss over the whole step and all ranks; every term is run by itself
    with the same dropout. Gradients of the parameters are not changed; the random generator is.

    Args:
        parameters: parameters of the student.
        micro: the step's micro-batches on this rank.
        shares: by term: (micro-batch) -> its share of a step with this term alone; its `loss` is read.
        seed: seed of dropout.
        world: number of ranks.
        scale: factor of the losses, for gradients in float16.

    Returns:
        By term, with a sum of 1; all 0 if no term has a gradient.
    """
    norms = {}
    for term, share_of in shares.items():
        torch.manual_seed(seed)
        totals = [torch.zeros_like(parameter) for parameter in parameters]
        for part in micro:
            loss: Tensor = share_of(part).loss * scale
            if not loss.requires_grad:
                continue
            for total, own in zip(totals, torch.autograd.grad(loss, list(parameters), allow_unused=True), strict=True):
                if own is not None:
                    total += own
        if world > 1:
            for total in totals:
                torch.distributed.all_reduce(total)
        norms[term] = float(torch.stack([total.float().norm() for total in totals]).norm())
    whole = sum(norms.values())
    return {term: norm / whole if whole else 0.0 for term, norm in norms.items()}
