"""Interchange agreement: how often, and how closely, two models react alike to the same intervention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from potstill.interchange.intervene import Swap, blocks_read, counterfactual, run
from potstill.interchange.mappings import InterchangeMapping, Site
from potstill.models.trunk import Trunk

CHUNK_BYTES = 64 * 2**20


@torch.no_grad()
def interchange_agreement(
    teacher: Trunk,
    student: Trunk,
    input_ids_BL: Tensor,
    attention_mask_BL: Tensor,
    swap: Swap,
    positions_N: Tensor,
    mappings: Sequence[InterchangeMapping],
    read_site: str = "block_output",
) -> tuple[Tensor, Tensor]:
    """Compare the counterfactual predictions of two language models, mapping by mapping; sources are in the batch.

    Every state that several mappings share is computed once: a grid of all pairs of blocks costs a run of each model a
    block, not a pair.

    Args:
        teacher: the reference.
        student: compared with it; may be the same model.
        input_ids_BL: `(batch, length)`.
        attention_mask_BL: `(batch, length)`.
        swap: what swaps.
        positions_N: `(positions,)` indices into the flattened batch where predictions are compared.
        mappings: M of them.
        read_site: as in `counterfactual`.

    Returns:
        `(M,)` positions on which the most probable tokens are the same, and `(M,)` sums over positions of
        KL(teacher || student) in nats, at temperature 1; both float64.

    Source: interchange intervention accuracy, Geiger et al. 2022 (arXiv:2112.00826), for a whole distribution.
    """
    parts = []
    for trunk, side in ((teacher, "teacher"), (student, "student")):
        variants = list(dict.fromkeys(getattr(mapping, side) for mapping in mappings))
        inputs = _head_inputs(trunk, input_ids_BL, attention_mask_BL, swap, positions_N, variants, read_site)
        parts.append((inputs, [variants.index(getattr(mapping, side)) for mapping in mappings]))
    (teacher_in, teacher_of), (student_in, student_of) = parts
    same_M = torch.zeros(len(mappings), dtype=torch.float64, device=input_ids_BL.device)
    kl_M = torch.zeros_like(same_M)
    width = min(teacher.decoder[0].shape[0], student.decoder[0].shape[0])  # heads may be padded
    rows = max(1, CHUNK_BYTES // (4 * width * (len(teacher_in) + len(student_in))))
    for start in range(0, len(positions_N), rows):
        ours = [_log_probabilities(student, x[start : start + rows], width) for x in student_in]
        theirs = [_log_probabilities(teacher, x[start : start + rows], width) for x in teacher_in]
        our_tokens, their_tokens = [x.argmax(-1) for x in ours], [x.argmax(-1) for x in theirs]
        probabilities = [x.exp() for x in theirs]
        entropies = [(p * x).sum() for p, x in zip(probabilities, theirs, strict=True)]
        for index, (t, s) in enumerate(zip(teacher_of, student_of, strict=True)):
            same_M[index] += (our_tokens[s] == their_tokens[t]).sum()
            kl_M[index] += entropies[t] - torch.dot(probabilities[t].flatten(), ours[s].flatten())
    return same_M, kl_M


def _head_inputs(
    trunk: Trunk,
    input_ids_BL: Tensor,
    attention_mask_BL: Tensor,
    swap: Swap,
    positions_N: Tensor,
    variants: list[tuple[Site, ...]],
    read_site: str,
) -> list[Tensor]:
    """Inputs of the vocabulary projection after each intervention, (positions, width) each."""
    keep = {sites[0].block for sites in variants} | set().union(
        *(blocks_read(sites, read_site) for sites in variants)
    )
    base = run(trunk, trunk.embed(input_ids_BL, attention_mask_BL), keep, whole=False)
    return [
        trunk.head(counterfactual(trunk, base, base, sites, swap, read_site).flatten(0, 1)[positions_N])
        for sites in variants
    ]


def _log_probabilities(trunk: Trunk, inputs_ND: Tensor, width: int) -> Tensor:
    weight_VD, bias_V = trunk.decoder
    logits_NV = torch.nn.functional.linear(inputs_ND, weight_VD, bias_V)[:, :width]
    return torch.log_softmax(logits_NV.float(), dim=-1)
