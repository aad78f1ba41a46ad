"""Interchange agreement: how often, and how closely, two models react in the same way to an intervention."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from potstill.interchange.intervene import Swap, blocks_read, counterfactual, run
from potstill.interchange.mappings import InterchangeMapping, Site, mapping_names
from potstill.models.backbone import Backbone
from potstill.models.views import Flow

AGREEMENT = ("interchange_agreement", "interchange_kl")
CHUNK_BYTES = 64 * 2**20


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
) -> tuple[Tensor, Tensor]:
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
        `(M,)` positions with the same most probable token, and `(M,)` sums over positions of KL(teacher || student) in
        nats, at temperature 1; both float64.

    Source: interchange intervention accuracy, Geiger et al. 2022 (arXiv:2112.00826), for a whole distribution.
    """
    inputs, index = [], []
    for backbone, side in ((teacher, "teacher"), (student, "student")):
        flow = backbone.embed(input_ids_BL, attention_mask_BL)
        hidden, variant_of = _counterfactuals(backbone, side, flow, swap, mappings, read_site)
        inputs.append([backbone.head(last.flatten(0, 1)[positions_N]) for last in hidden])
        index.append(variant_of)
    same_M = torch.zeros(len(mappings), dtype=torch.float64, device=input_ids_BL.device)
    kl_M = torch.zeros_like(same_M)
    width = min(teacher.decoder[0].shape[0], student.decoder[0].shape[0])  # heads may be padded
    rows = max(1, CHUNK_BYTES // (4 * width * sum(map(len, inputs))))
    for start in range(0, len(positions_N), rows):
        theirs, ours = (
            [_log_probabilities(backbone, x[start : start + rows], width) for x in side]
            for backbone, side in zip((teacher, student), inputs, strict=True)
        )
        our_tokens, their_tokens = [x.argmax(-1) for x in ours], [x.argmax(-1) for x in theirs]
        probabilities = [x.exp() for x in theirs]
        entropies = [(p * x).sum() for p, x in zip(probabilities, theirs, strict=True)]
        for m, (t, s) in enumerate(zip(*index, strict=True)):
            same_M[m] += (our_tokens[s] == their_tokens[t]).sum()
            kl_M[m] += entropies[t] - torch.dot(probabilities[t].flatten(), ours[s].flatten())
    return same_M, kl_M


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
) -> tuple[Tensor, Tensor, int]:
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
        `(M,)` equal predictions, `(M,)` sums of KL in nats, both float64, and the number of predictions.
    """
    logits = []
    for backbone, side in ((teacher, "teacher"), (student, "student")):
        types = token_type_ids_BL if backbone.token_types > 1 else None
        flow = backbone.embed(input_ids_BL, attention_mask_BL, types)
        hidden, index = _counterfactuals(backbone, side, flow, swap, mappings, read_site)
        classes = [read(backbone, last).double().log_softmax(-1) for last in hidden]
        logits.append(torch.stack([classes[i] for i in index]))  # (M, predictions, labels)
    theirs, ours = logits
    same_M = (theirs.argmax(-1) == ours.argmax(-1)).sum(-1).double()
    return same_M, (theirs.exp() * (theirs - ours)).sum((-1, -2)), theirs.shape[1]


class AgreementMetric(Metric):
    """Means of agreement and KL per mapping over an evaluation set and all ranks.

    Args:
        mappings: M mappings.
    """

    same: Tensor
    kl: Tensor
    count: Tensor

    def __init__(self, mappings: Sequence[InterchangeMapping]):
        super().__init__()
        self.names = mapping_names(mappings)
        for name in ("same", "kl"):
            self.add_state(name, torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, same_M: Tensor, kl_M: Tensor, count: int) -> None:
        """Add sums over `count` positions or rows."""
        self.same += same_M
        self.kl += kl_M
        self.count += count

    def compute(self) -> dict[str, float]:
        """`interchange_agreement` and `interchange_kl` per `_<mapping>` and as means over mappings; {} without data."""
        if not self.names or not self.count:
            return {}
        found: dict[str, float] = {}
        for what, sums_M in zip(AGREEMENT, (self.same, self.kl), strict=True):
            means = (sums_M / self.count).tolist()
            found |= {f"{what}_{name}": mean for name, mean in zip(self.names, means, strict=True)}
            found[what] = sum(means) / len(means)
        return found


def _counterfactuals(
    backbone: Backbone, side: str, flow: Flow, swap: Swap, mappings: Sequence[InterchangeMapping], read_site: str
) -> tuple[list[Tensor], list[int]]:
    """Last hidden states after each distinct intervention of a side, and their index for each mapping."""
    variants: list[tuple[Site, ...]] = list(dict.fromkeys(getattr(mapping, side) for mapping in mappings))
    keep = {sites[0].block for sites in variants} | set().union(*(blocks_read(sites, read_site) for sites in variants))
    base = run(backbone, flow, keep, whole=False)
    hidden = [counterfactual(backbone, base, base, sites, swap, read_site) for sites in variants]
    return hidden, [variants.index(getattr(mapping, side)) for mapping in mappings]


def _log_probabilities(backbone: Backbone, inputs_ND: Tensor, width: int) -> Tensor:
    weight_VD, bias_V = backbone.decoder
    logits_NV = torch.nn.functional.linear(inputs_ND, weight_VD, bias_V)[:, :width]
    return torch.log_softmax(logits_NV.float(), dim=-1)
