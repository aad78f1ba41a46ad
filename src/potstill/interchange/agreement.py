"""Interchange agreement: how often, and how closely, two models react in the same way to an intervention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from potstill.interchange.intervene import Swap, blocks_read, counterfactual, run
from potstill.interchange.mappings import InterchangeMapping, Site, mapping_names
from potstill.models.backbone import Backbone
from potstill.models.views import Flow

AGREEMENT = ("interchange_agreement", "interchange_kl", "interchange_followed")  # by mapping, and as their mean
CHANGED, UNSWAPPED = "interchange_changed", "interchange_unswapped"
BASE = -1  # the run without a swap, after those with one
CHUNK_BYTES = 64 * 2**20


class Reactions(NamedTuple):
    """Sums over the compared predictions of a micro-batch; those by mapping have M float64 numbers.

    Attributes:
        same_M: Equal counterfactual predictions.
        kl_M: KL(teacher || student) of the counterfactual predictions in nats, at temperature 1.
        changed_M: Predictions of the teacher that the swap changes.
        followed_M: Those among them that the student's counterfactual prediction equals.
        unswapped: Predictions that are equal without a swap.
        compared: Predictions.
    """

    same_M: Tensor
    kl_M: Tensor
    changed_M: Tensor
    followed_M: Tensor
    unswapped: Tensor
    compared: int


@torch.no_grad()
def interchange_agreement(
    teacher: Backbone,
    student: Backbone,
    input_ids_BL: Tensor,
    attention_mask_BL: Tensor,
    swap: Swap,
    positions_N: Tensor,
    mappings: Sequence[InterchangeMapping],
    read_site: str = "block_output",
) -> Reactions:
    """Compare the counterfactual predictions of two language models per mapping; sources are in the batch.

    States that several mappings share are computed once, so a grid of all pairs of blocks costs one run of each model
    per block instead of per pair.

    Args:
        teacher: The reference.
        student: The compared model; may be the same one.
        input_ids_BL: `(batch, length)`.
        attention_mask_BL: `(batch, length)`.
        swap: Positions that are swapped.
        positions_N: `(positions,)` indices into the flattened batch where predictions are compared.
        mappings: M mappings.
        read_site: See `counterfactual`.

    Returns:
        Sums over the positions; a prediction is the most probable token.

    Source: interchange intervention accuracy, Geiger et al. 2022 (arXiv:2112.00826), for a whole distribution.
    """
    inputs, index = [], []
    for backbone, side in ((teacher, "teacher"), (student, "student")):
        flow = backbone.embed(input_ids_BL, attention_mask_BL)
        hidden, variant_of = _counterfactuals(backbone, side, flow, swap, mappings, read_site)
        inputs.append([backbone.head(last.flatten(0, 1)[positions_N]) for last in hidden])
        index.append(variant_of)
    same_M = torch.zeros(len(mappings), dtype=torch.float64, device=input_ids_BL.device)
    kl_M, changed_M, followed_M = (torch.zeros_like(same_M) for _ in range(3))
    unswapped = same_M.new_zeros(())
    width = min(teacher.decoder[0].shape[0], student.decoder[0].shape[0])  # heads may be padded
    rows = max(1, CHUNK_BYTES // (4 * width * sum(map(len, inputs))))
    for start in range(0, len(positions_N), rows):
        theirs, ours = (
            [_log_probabilities(backbone, x[start : start + rows], width) for x in side]
            for backbone, side in zip((teacher, student), inputs, strict=True)
        )
        our_tokens, their_tokens = [x.argmax(-1) for x in ours], [x.argmax(-1) for x in theirs]
        unswapped += (our_tokens[BASE] == their_tokens[BASE]).sum()
        probabilities = [x.exp() for x in theirs]
        entropies = [(p * x).sum() for p, x in zip(probabilities, theirs, strict=True)]
        for m, (t, s) in enumerate(zip(*index, strict=True)):
            same_N, changed_N = our_tokens[s] == their_tokens[t], their_tokens[t] != their_tokens[BASE]
            same_M[m] += same_N.sum()
            changed_M[m] += changed_N.sum()
            followed_M[m] += (same_N & changed_N).sum()
            kl_M[m] += entropies[t] - torch.dot(probabilities[t].flatten(), ours[s].flatten())
    return Reactions(same_M, kl_M, changed_M, followed_M, unswapped, len(positions_N))


@torch.no_grad()
def class_agreement(
    teacher: Backbone,
    student: Backbone,
    input_ids_BL: Tensor,
    attention_mask_BL: Tensor,
    token_type_ids_BL: Tensor | None,
    swap: Swap,
    read: Callable[[Backbone, Tensor], Tensor],
    mappings: Sequence[InterchangeMapping],
    read_site: str = "block_output",
) -> Reactions:
    """Compare the counterfactual predictions of two task models, as `interchange_agreement`.

    Args:
        teacher: The reference.
        student: The compared model.
        input_ids_BL: `(batch, length)`.
        attention_mask_BL: `(batch, length)`.
        token_type_ids_BL: `(batch, length)` or None.
        swap: Positions that are swapped.
        read: Returns the compared logits, `(predictions, labels)`, of a backbone and its last hidden states.
        mappings: M mappings.
        read_site: See `counterfactual`.

    Returns:
        Sums over the predictions; a prediction is the most probable label.
    """
    logits, unswapped = [], []
    for backbone, side in ((teacher, "teacher"), (student, "student")):
        types = token_type_ids_BL if backbone.token_types > 1 else None
        flow = backbone.embed(input_ids_BL, attention_mask_BL, types)
        hidden, index = _counterfactuals(backbone, side, flow, swap, mappings, read_site)
        classes = [read(backbone, last).double().log_softmax(-1) for last in hidden]
        logits.append(torch.stack([classes[i] for i in index]))  # (M, predictions, labels)
        unswapped.append(classes[BASE].argmax(-1))
    (theirs, ours), (their_base, our_base) = logits, unswapped
    same, changed = theirs.argmax(-1) == ours.argmax(-1), theirs.argmax(-1) != their_base  # (M, predictions)
    return Reactions(
        same.sum(-1).double(),
        (theirs.exp() * (theirs - ours)).sum((-1, -2)),
        changed.sum(-1).double(),
        (same & changed).sum(-1).double(),
        (their_base == our_base).sum().double(),
        theirs.shape[1],
    )


class AgreementMetric(Metric):
    """Means of what two models' reactions have in common over an evaluation set and all ranks.

    Args:
        mappings: M mappings.
    """

    same: Tensor
    kl: Tensor
    changed: Tensor
    followed: Tensor
    unswapped: Tensor
    count: Tensor

    def __init__(self, mappings: Sequence[InterchangeMapping]):
        super().__init__()
        self.names = mapping_names(mappings)
        for name in ("same", "kl", "changed", "followed"):
            self.add_state(name, torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("unswapped", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def start(self) -> None:
        """Reset for a set that may have nothing to swap, which torchmetrics would warn of."""
        self.reset()
        none = torch.zeros_like(self.count)
        self.update(Reactions(none, none, none, none, none, 0))

    def update(self, found: Reactions) -> None:
        """Add the sums of a micro-batch."""
        self.same += found.same_M
        self.kl += found.kl_M
        self.changed += found.changed_M
        self.followed += found.followed_M
        self.unswapped += found.unswapped
        self.count += found.compared

    def compute(self) -> dict[str, float]:
        """What is logged; {} without data.

        By `_<mapping>` and over all mappings `interchange_agreement`, `interchange_kl`, and `interchange_followed`, the
        agreement on the predictions of the teacher that the swap changes, missing if there are none; over all mappings
        `interchange_changed`, the share of those predictions, and `interchange_unswapped`, that without a swap.
        """
        if not self.names or not self.count:
            return {}
        found: dict[str, float] = {}
        counts_M = self.count.expand(len(self.names))
        sums = ((self.same, counts_M), (self.kl, counts_M), (self.followed, self.changed))
        for what, (sums_M, of_M) in zip(AGREEMENT, sums, strict=True):
            shares = zip(self.names, sums_M.tolist(), of_M.tolist(), strict=True)
            found |= {f"{what}_{name}": value / of for name, value, of in shares if of}
            if total := float(of_M.sum()):
                found[what] = float(sums_M.sum()) / total
        found[CHANGED] = float(self.changed.sum() / counts_M.sum())
        found[UNSWAPPED] = float(self.unswapped / self.count)
        return found


def _counterfactuals(
    backbone: Backbone, side: str, flow: Flow, swap: Swap, mappings: Sequence[InterchangeMapping], read_site: str
) -> tuple[list[Tensor], list[int]]:
    """Last hidden states after each distinct intervention of a side, then without one; their index for each mapping."""
    variants: list[tuple[Site, ...]] = list(dict.fromkeys(getattr(mapping, side) for mapping in mappings))
    keep = {sites[0].block for sites in variants} | set().union(*(blocks_read(sites, read_site) for sites in variants))
    base = run(backbone, flow, keep)
    assert base.last_BLD is not None
    hidden = [counterfactual(backbone, base, base, sites, swap, read_site) for sites in variants]
    return [*hidden, base.last_BLD], [variants.index(getattr(mapping, side)) for mapping in mappings]


def _log_probabilities(backbone: Backbone, inputs_ND: Tensor, width: int) -> Tensor:
    weight_VD, bias_V = backbone.decoder
    logits_NV = torch.nn.functional.linear(inputs_ND, weight_VD, bias_V)[:, :width]
    return torch.log_softmax(logits_NV.float(), dim=-1)
