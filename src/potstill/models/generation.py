"""Completions that causal language models write, in batches with a cache of keys and values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import linear
from transformers import DynamicCache

from potstill.models.backbone import Backbone

Prompt = NDArray[np.integer]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: of the distribution; 0: the likeliest token (greedy).
        top_p: mass of the smallest set of likeliest tokens that is drawn from (Holtzman et al. 2020).
        max_new_tokens: most tokens of a completion, its end token included.
        batch_size: most prompts at a time; None for all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    batch_size: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0


@dataclass(frozen=True)
class Tokens:
    """The tokens that a completion is made of.

    Attributes:
        size: number of the tokenizer's tokens; columns of a wider head are never chosen.
        ends: tokens that end a completion.
        pad: a token for padding.
    """

    size: int
    ends: Collection[int]
    pad: int


@torch.no_grad()
def complete(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    tokens: Tokens,
    *,
    seeds: Sequence[Sequence[int]] = (),
    max_length: int | None = None,
) -> list[NDArray[np.int64]]:
    """Complete prompts, in evaluation mode and without gradients.

    A row's random numbers are a function of its own seed, so that it gets the same completion in any batch, except for
    rounding differences between batches.

    Args:
        backbone: of a causal language model.
        prompts: each (tokens,) ids, one or more.
        sampling: how tokens are chosen.
        tokens: what they are chosen from.
        seeds: of the rows, each a list of integers from 0; not read by greedy sampling.
        max_length: most tokens of a prompt with its completion; None: the model's maximum.

    Returns:
        For each prompt its completion, (tokens,) int64 with the end token if there is one; one token at least, unless
        the prompt leaves no position.
    """
    most = backbone.max_length if max_length is None else max_length
    limits = np.array([min(sampling.max_new_tokens, most - len(prompt)) for prompt in prompts])
    found: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(prompts)
    order = sorted(np.flatnonzero(limits > 0).tolist(), key=lambda row: (len(prompts[row]), row))
    size = sampling.batch_size or max(len(order), 1)
    with evaluating(backbone.model):
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            drawn = None
            if not sampling.greedy:
                drawn = np.stack([np.random.default_rng(seeds[row]).random(sampling.max_new_tokens) for row in rows])
            made = _complete(backbone, [prompts[row] for row in rows], limits[rows], sampling, tokens, drawn)
            for row, ids in zip(rows, made, strict=True):
                found[row] = ids
    return found


def _complete(
    backbone: Backbone,
    prompts: list[Prompt],
    limits: NDArray[np.int64],
    sampling: Sampling,
    tokens: Tokens,
    drawn: NDArray[np.float64] | None,
) -> list[NDArray[np.int64]]:
    """One batch."""
    device = backbone.decoder[0].device
    ids_BL, mask_BL = (part.to(device) for part in _padded(prompts, tokens.pad))
    drawn_BT = None if drawn is None else torch.from_numpy(drawn).to(device)

    def chosen(logits_BV: Tensor, rows: Tensor, step: int) -> Tensor:
        own = None if drawn_BT is None else drawn_BT[rows, step, None]
        return choose(logits_BV[:, : tokens.size].float(), sampling, own)[:, 0]

    read = read_prompts(backbone, ids_BL, mask_BL)
    written = write(backbone, read, torch.from_numpy(limits).to(device), chosen, sorted(tokens.ends)).cpu().numpy()
    return [row[row >= 0] for row in written]


@dataclass(frozen=True)
class Prompts:
    """Prompts that were run once, without their last tokens, from which any number of texts continues.

    Attributes:
        cache: keys and values of all tokens but the last; padded on the left, so that texts follow their prompts.
        mask_BL: 0 at padding, of all tokens.
        last_B: the last token of each prompt.
    """

    cache: Any
    mask_BL: Tensor
    last_B: Tensor

    def of(self, rows: slice | Tensor) -> Prompts:
        """Some rows, or one row several times; what continues from them changes nothing here."""
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        cache.batch_select_indices(rows)
        return Prompts(cache, self.mask_BL[rows], self.last_B[rows])

    def states(self, backbone: Backbone, ids_BT: Tensor) -> Tensor:
        """Inputs of the projection at tokens that begin with the last one of the prompt; the cache grows."""
        mask_BS = torch.cat([self.mask_BL[:, :-1], self.mask_BL.new_ones(ids_BT.shape)], 1)
        begins_B1 = self.mask_BL[:, :-1].sum(1, keepdim=True)
        places_BT = begins_B1 + torch.arange(ids_BT.shape[1], device=ids_BT.device)
        return backbone.head(_run(backbone, ids_BT, mask_BS, places_BT, self.cache))


@torch.no_grad()
def read_prompts(backbone: Backbone, ids_BL: Tensor, mask_BL: Tensor) -> Prompts:
    """Run prompts once.

    Args:
        backbone: of a causal language model, in evaluation mode.
        ids_BL: prompts of at least one token, padded on the left.
        mask_BL: 0 at padding.
    """
    cache = DynamicCache(config=backbone.model.config)
    if ids_BL.shape[1] > 1:
        before_BS = mask_BL[:, :-1]
        _run(backbone, ids_BL[:, :-1], before_BS, (before_BS.cumsum(-1) - 1).clamp(min=0), cache)
    return Prompts(cache, mask_BL, ids_BL[:, -1])


@torch.no_grad()
def write(
    backbone: Backbone,
    prompts: Prompts,
    limits_B: Tensor,
    chosen: Callable[[Tensor, Tensor, int], Tensor],
    ends: Sequence[int],
    stop: Sequence[int] = (),
) -> Tensor:
    """Continue prompts token by token; a row that has ended leaves the batch.

    Args:
        backbone: of the prompts' model.
        prompts: their cache grows, see `Prompts.of`.
        limits_B: most tokens of each row.
        chosen: the next tokens, from logits (rows left, columns of the head), the numbers of these rows, and the step.
        ends: tokens that end a row.
        stop: tokens that end a row where they follow one another.

    Returns:
        Token ids (batch, steps), with what ended a row; -1 behind it.
    """
    device = limits_B.device
    ends_E, stop_K = torch.tensor(list(ends), device=device), torch.tensor(list(stop), device=device)
    written_BT = torch.full((len(limits_B), int(limits_B.max())), -1, device=device)
    alive, own, step = torch.arange(len(limits_B), device=device), prompts, 0
    for step in range(written_BT.shape[1]):
        states_BD = own.states(backbone, own.last_B[:, None])[:, -1]
        token_B = chosen(linear(states_BD, *backbone.decoder), alive, step)
        written_BT[alive, step] = token_B
        ended_B = torch.isin(token_B, ends_E) | (limits_B[alive] <= step + 1)
        if stop and step + 1 >= len(stop):
            ended_B |= written_BT[alive, step + 1 - len(stop) : step + 1].eq(stop_K).all(1)
        going = (~ended_B).nonzero()[:, 0]
        if not len(going):
            break
        own = Prompts(own.cache, functional.pad(own.mask_BL, (0, 1), value=1), token_B)
        if len(going) < len(alive):
            alive, own = alive[going], own.of(going)
    return written_BT[:, : step + 1]


def _run(backbone: Backbone, ids: Tensor, mask: Tensor, places: Tensor, cache: DynamicCache) -> Tensor:
    """Last hidden states after the final norm."""
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": places, "past_key_values": cache}
    return backbone.model.base_model(**inputs, use_cache=True).last_hidden_state


def _padded(prompts: list[Prompt], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask; a completion begins behind the last column, so padding is on the left."""
    width = max(map(len, prompts))
    ids, mask = np.full((len(prompts), width), pad, np.int64), np.zeros((len(prompts), width), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the context, a model is in evaluation mode, and its compiled parts run as they are written.

    A cache grows with every token, for which a part would be compiled again and again.
    """
    was = model.training
    compiled = any(getattr(part, "_compiled_call_impl", None) is not None for part in model.modules())
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        model.train(was)


def choose(logits: Tensor, sampling: Sampling, drawn: Tensor | None) -> Tensor:
    """The next token of each row.

    Args:
        logits: (batch, vocab), float32.
        sampling: how it is chosen.
        drawn: numbers from [0, 1), (batch, 1) float64; not read by greedy sampling.

    Returns:
        Token ids (batch, 1).
    """
    if sampling.greedy:
        return logits.argmax(-1, keepdim=True)
    assert drawn is not None
    scores = logits / sampling.temperature
    if sampling.top_p < 1:
        return quantile_token(scores, drawn, sampling.top_p)
    total_BV = scores.double().softmax(-1).cumsum(-1)  # in the order of the vocabulary, so that nothing is sorted
    mass_B1 = total_BV[:, -1:]
    place_B1 = torch.minimum(drawn * mass_B1, mass_B1.nextafter(torch.zeros_like(mass_B1)))
    return torch.searchsorted(total_BV, place_B1, right=True)


def quantile_token(scores: Tensor, drawn: Tensor, top_p: float) -> Tensor:
    """The token at a quantile of the nucleus of a distribution, in descending order of probability.

    Args:
        scores: Logits (batch, vocab).
        drawn: Numbers from [0, 1), (batch, 1).
        top_p: Probability of the nucleus, the smallest set of most likely tokens with it (Holtzman et al. 2020).

    Returns:
        Token ids (batch, 1).
    """
    # Float64: the rounding error of a float32 sum over a large vocabulary exceeds rare tokens.
    sorted_BV, order_BV = scores.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
    total_BV = sorted_BV.cumsum(-1)
    kept_B1 = ((total_BV - sorted_BV) < top_p).sum(-1, keepdim=True)
    mass_B1 = total_BV.gather(-1, kept_B1 - 1)
    place_B1 = torch.searchsorted(total_BV, drawn * mass_B1, right=True)
    return order_BV.gather(-1, torch.minimum(place_B1, kept_B1 - 1))
