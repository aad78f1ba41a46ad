"""Decoder-only models that continue prompts: their parts as the losses need them, likelihood, and generation."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import DynamicCache, PreTrainedModel

from potstill.losses.tied import TiedGradient
from potstill.models.backbone import backbone_of
from potstill.models.seq2seq import Part, Rows, Seq2Seq, log_likelihoods


@dataclass(frozen=True)
class Prompts:
    """Prompts that were run once, without their last tokens, from which any number of targets continues.

    Attributes:
        cache: keys and values of all tokens but the last; padded on the left, so that targets follow their prompts.
        mask_BL: 0 at padding, of all tokens.
        last_B: the last token of each prompt.
    """

    cache: Any
    mask_BL: Tensor
    last_B: Tensor

    def of(self, rows: Rows) -> Prompts:
        """Some rows, or one row several times; what continues from them changes nothing here."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        cache.batch_select_indices(rows)
        return Prompts(cache, self.mask_BL[rows], self.last_B[rows])


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
            hidden_RSD = self._run(inputs_embeds=part_ND.view(*ids_RS.shape, -1), use_cache=False)
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
        left_BL = places_BL.ge(0)
        ids_BL = ids_BL.gather(1, places_BL.clamp(min=0))
        cache = DynamicCache(config=self.model.config)
        if ids_BL.shape[1] > 1:
            self._run(
                input_ids=ids_BL[:, :-1],
                attention_mask=left_BL[:, :-1].long(),
                position_ids=places_BL[:, :-1].clamp(min=0),
                past_key_values=cache,
                use_cache=True,
            )
        return Prompts(cache, left_BL.long(), ids_BL[:, -1])

    @torch.no_grad()
    def score(self, context: Prompts, rows: Rows, labels_CT: Tensor) -> Tensor:
        """Log-probability (nats) of whole targets, (candidates,); as `Seq2Seq.score`."""
        own = context.of(rows)
        inputs_CT = torch.cat([own.last_B[:, None], labels_CT[:, :-1].clamp(min=0)], 1)
        real_CT = labels_CT.ge(0)
        return log_likelihoods(self._continued(own, inputs_CT)[real_CT], self.projection, labels_CT)

    @torch.no_grad()
    def write(self, context: Prompts, rows: Rows, max_tokens: int, stop: Sequence[int] = ()) -> Tensor:
        """Greedy generation until every row has ended; as `Seq2Seq.write`."""
        ends = self.model.generation_config.eos_token_id
        ends_E = torch.tensor(ends if isinstance(ends, list) else [ends], device=context.last_B.device)
        own, (weight_VD, bias_V) = context.of(rows), self.projection
        stop_K = torch.tensor(list(stop), device=ends_E.device)
        next_B, ended_B, written = own.last_B, torch.zeros_like(own.last_B, dtype=torch.bool), []
        for _ in range(max_tokens):
            logits_BV = linear(self._continued(own, next_B[:, None])[:, -1], weight_VD, bias_V)
            own = Prompts(own.cache, torch.cat([own.mask_BL, own.mask_BL.new_ones(len(next_B), 1)], 1), next_B)
            next_B = logits_BV.argmax(-1).masked_fill(ended_B, int(ends_E[0]))
            written.append(next_B)
            ended_B |= torch.isin(next_B, ends_E)
            if stop and len(written) >= len(stop):
                ended_B |= torch.stack(written[-len(stop) :], 1).eq(stop_K).all(1)
            if bool(ended_B.all()):
                break
        return torch.stack(written, 1)

    def _continued(self, own: Prompts, ids_BT: Tensor) -> Tensor:
        """Inputs of the projection at tokens that begin with the last one of the prompt; the cache grows."""
        mask_BS = torch.cat([own.mask_BL[:, :-1], own.mask_BL.new_ones(ids_BT.shape)], 1)
        begins_B1 = own.mask_BL[:, :-1].sum(1, keepdim=True)
        hidden_BTD = self._run(
            input_ids=ids_BT,
            attention_mask=mask_BS,
            position_ids=begins_B1 + torch.arange(ids_BT.shape[1], device=ids_BT.device),
            past_key_values=own.cache,
            use_cache=True,
        )
        return self._backbone.head(hidden_BTD)

    def _run(self, **inputs: Any) -> Tensor:
        """Last hidden states after the final norm."""
        return self.model.base_model(**inputs).last_hidden_state


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
