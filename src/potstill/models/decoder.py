"""Decoder-only models that continue prompts: their parts as the losses need them, likelihood, and generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.losses.tied import TiedGradient
from potstill.models.backbone import backbone_of
from potstill.models.generation import Prompts, read_prompts, write
from potstill.models.seq2seq import Part, Rows, Seq2Seq, log_likelihoods


class Decoder:
    """A decoder-only model: a target follows its prompt in one sequence; holds a reference only.

    Args:
        model: a causal language model whose `generation_config.eos_token_id` ends a text.
    """

    def __init__(self, model: PreTrainedModel):
        self.model: Any = model
        self._backbone = backbone_of(model)

    @property
    def projection(self) -> tuple[Tensor, Tensor | None]:
        """Live weight (vocab, width) and bias (vocab,), if any, of the vocabulary projection."""
        return self._backbone.decoder

    def read(self, ids_BL: Tensor, mask_BL: Tensor, parts: Sequence[Part]) -> tuple[list[Tensor], TiedGradient | None]:
        """Inputs of the projection at the tokens of targets that follow their prompts, with a gradient.

        Each part is a pass of its own, so that short targets are not padded to the length of long ones. Sequences are
        padded on the right: tokens have their usual positions, and a causal model needs no mask.

        Args:
            ids_BL: prompts, padded on the right.
            mask_BL: 0 at padding.
            parts: rows of the prompts with their targets.

        Returns:
            As `Seq2Seq.read`.
        """
        joined = [_joined(ids_BL[rows], mask_BL[rows], target_RT) for rows, target_RT in parts]
        with self._backbone.tying() as tied:
            # One lookup, so that the weight of the embeddings has one gradient.
            embedded_ND = self.model.get_input_embeddings()(torch.cat([ids.flatten() for ids, _ in joined]))
        states = []
        lengths = [ids.numel() for ids, _ in joined]
        for (ids_RS, read_RS), part_ND in zip(joined, embedded_ND.split(lengths), strict=True):
            hidden_RSD = self.model.base_model(inputs_embeds=part_ND.view(*ids_RS.shape, -1), use_cache=False)[0]
            states.append(self._backbone.head(hidden_RSD[read_RS]))
        return states, tied if torch.is_grad_enabled() else None

    @torch.no_grad()
    def context(self, ids_BL: Tensor, mask_BL: Tensor) -> Prompts:
        """Run prompts once, from which `score` and `write` continue.

        Args:
            ids_BL: prompts of at least one token, padded on the right.
            mask_BL: 0 at padding.
        """
        places_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        places_BL = places_L - (ids_BL.shape[1] - mask_BL.sum(1, keepdim=True))
        return read_prompts(self._backbone, ids_BL.gather(1, places_BL.clamp(min=0)), places_BL.ge(0).long())

    @torch.no_grad()
    def score(self, context: Prompts, rows: Rows, labels_CT: Tensor) -> Tensor:
        """Log-probability (nats) of whole targets, (candidates,); as `Seq2Seq.score`."""
        own = context.of(rows)
        inputs_CT = torch.cat([own.last_B[:, None], labels_CT[:, :-1].clamp(min=0)], 1)
        real_CT = labels_CT.ge(0)
        return log_likelihoods(own.states(self._backbone, inputs_CT)[real_CT], self.projection, labels_CT)

    @torch.no_grad()
    def write(self, context: Prompts, rows: Rows, max_tokens: int, stop: Sequence[int] = ()) -> Tensor:
        """Greedy generation until every row has ended; as `Seq2Seq.write`."""
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        own = context.of(rows)
        limits_B = torch.full_like(own.last_B, max_tokens)
        written_BT = write(self._backbone, own, limits_B, lambda logits_BV, *_: logits_BV.argmax(-1), ends, stop)
        return written_BT.masked_fill(written_BT.lt(0), int(ends[0]))


def writer_of(model: PreTrainedModel) -> Seq2Seq | Decoder:
    """An encoder-decoder or a decoder-only model as the losses and the evaluation of generated texts read it."""
    return Seq2Seq(model) if model.config.is_encoder_decoder else Decoder(model)


def _joined(ids_BL: Tensor, mask_BL: Tensor, target_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Prompts followed by all but the last token of their targets, and where target tokens are predicted."""
    prompt_B1, target_B1 = mask_BL.sum(1, keepdim=True), target_BT.ge(0).sum(1, keepdim=True)
    width = max(int((prompt_B1 + target_B1).max()) - 1, 1)
    place_S = torch.arange(width, device=ids_BL.device)
    theirs_BS = place_S.expand(len(ids_BL), -1).clamp(max=ids_BL.shape[1] - 1)
    ours_BS = (place_S - prompt_B1).clamp(0, target_BT.shape[1] - 1)
    joined_BS = torch.where(place_S < prompt_B1, ids_BL.gather(1, theirs_BS), target_BT.gather(1, ours_BS).clamp(min=0))
    return joined_BS, (place_S >= prompt_B1 - 1) & (place_S < prompt_B1 - 1 + target_B1)
