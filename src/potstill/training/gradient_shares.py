"""How much each term moves the student: the answer to which weight a term should get."""

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
) -> dict[str, float]:
    """Each term's share of the sum of all terms' gradient norms.

    The gradient of a term is that of its weighted share of the loss, over the whole step and all ranks; every term is
    run by itself under the same dropout. It touches no gradient of the parameters, but the random generator.

    Args:
        parameters: of the student.
        micro: the step's micro-batches on this rank.
        shares: by term, what a micro-batch adds to a step that has this term alone; its `loss` is read.
        seed: of dropout.
        world: number of ranks.

    Returns:
        By term, adding up to 1; all 0 where no term has a gradient.
    """
    norms = {}
    for term, share_of in shares.items():
        torch.manual_seed(seed)
        totals = [torch.zeros_like(parameter) for parameter in parameters]
        for part in micro:
            loss: Tensor = share_of(part).loss
            if not loss.requires_grad:
                continue
            for total, own in zip(
                totals, torch.autograd.grad(loss, list(parameters), allow_unused=True), strict=True
            ):
                if own is not None:
                    total += own
        if world > 1:
            for total in totals:
                torch.distributed.all_reduce(total)
        norms[term] = float(torch.stack([total.float().norm() for total in totals]).norm())
    whole = sum(norms.values())
    return {term: norm / whole if whole else 0.0 for term, norm in norms.items()}
