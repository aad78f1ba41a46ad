"""Labels of language models: masked positions by token counts, or the next token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.data.common.batching import IGNORED


def token_weights(counts: NDArray[np.int64], smoothing: float, special_ids: Sequence[int]) -> Tensor:
    """Masking weights of tokens: `max(count, 1) ** -smoothing`, and 0 for special tokens.

    This is the token-count smoothing of DistilBERT (Sanh et al. 2019) after XLM: rare words are masked more often.

    Args:
        counts: `(vocab,)` occurrences in the corpus.
        smoothing: 0.7 in the recipe; 0 for uniform weights.
        special_ids: Ids that are never masked.

    Returns:
        `(vocab,)` float32, not normalized.
    """
    weights = np.maximum(counts, 1).astype(np.float64) ** -smoothing
    weights[list(special_ids)] = 0.0
    return torch.from_numpy(weights).float()


def masked_count(tokens: int, share: float) -> int:
    """ceil(share * tokens), without rounding errors of a product such as 0.15 * 20."""
    return math.ceil(round(share * tokens, 6))


def mask_tokens(
    ids: Tensor, weights: Tensor, *, share: float, replace: Sequence[float], mask_id: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mask positions of a whole batch, as DistilBERT's distiller does.

    `ceil(share * tokens)` positions are drawn without replacement, with probability proportional to the weight of their
    token (the smallest `-log(u) / weight`, Efraimidis & Spirakis 2006). Each is replaced by the mask token, by a random
    token, or by itself, with the probabilities `replace`.

    Args:
        ids: `(tokens,)` token ids of all sequences of the batch, without padding.
        weights: `(vocab,)` from `token_weights`, on the device of `ids`.
        share: Share of all tokens, including special ones, which are never masked.
        replace: Probabilities of the mask token, a random token, and the token itself.
        mask_id: The mask token.
        generator: Generator on the device of `ids`.

    Returns:
        Masked ids and labels, each `(tokens,)`; a label is the original token, or -100.
    """
    chances = weights[ids]
    race = torch.empty_like(chances).exponential_(generator=generator) / chances  # weight 0: infinite, never chosen
    count = min(masked_count(len(ids), share), len(ids))
    chosen = race.topk(count, largest=False).indices
    chosen = chosen[race[chosen].isfinite()]
    kinds = torch.multinomial(
        torch.tensor(list(replace), device=ids.device), max(len(chosen), 1), replacement=True, generator=generator
    )[: len(chosen)]
    random_ids = torch.randint(len(weights), chosen.shape, device=ids.device, generator=generator, dtype=ids.dtype)
    hidden = ids[chosen]
    masked, labels = ids.clone(), torch.full_like(ids, IGNORED)
    labels[chosen] = hidden
    masked[chosen] = torch.where(kinds == 0, mask_id, torch.where(kinds == 1, random_ids, hidden))
    return masked, labels


def next_tokens(ids: Tensor, ends: Tensor) -> Tensor:
    """Labels of a causal language model: the next token, and -100 at the last position of each sequence.

    Args:
        ids: `(tokens,)` token ids of all sequences, without padding.
        ends: `(sequences,)` index of the last token of each sequence.
    """
    labels = torch.roll(ids, -1)
    labels[ends] = IGNORED
    return labels
