"""What a language model has to predict: masked positions by token counts, or the next token."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.data.common.batching import IGNORED


def token_weights(counts: NDArray[np.int64], smoothing: float, special_ids: Sequence[int]) -> Tensor:
    """How likely each token is to be masked, relative to the others.

    `max(count, 1) ** -smoothing`, and 0 for special tokens (Sanh et al. 2019, DistilBERT's token-count smoothing,
    after XLM): rare words are masked more often than frequent ones.

    Args:
        counts: `(vocab,)` occurrences in the corpus.
        smoothing: 0.7 in the recipe; 0 masks all tokens alike.
        special_ids: Ids that are never masked.

    Returns:
        `(vocab,)` float32, unnormalised.
    """
    weights = np.maximum(counts, 1).astype(np.float64) ** -smoothing
    weights[list(special_ids)] = 0.0
    return torch.from_numpy(weights).float()


def masked_count(tokens: int, share: float) -> int:
    """ceil(share * tokens); float noise of a product such as 0.15 * 20 does not add a position."""
    return math.ceil(round(share * tokens, 6))


def mask_tokens(
    ids: Tensor,
    weights: Tensor,
    *,
    share: float,
    replace: Sequence[float],
    mask_id: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Choose positions of a whole batch and hide them, as DistilBERT's distiller does.

    `ceil(share * tokens)` positions without replacement, with probability proportional to the weight of their token
    (an exponential race: the smallest `-log(u) / weight` win, Efraimidis & Spirakis 2006, which is drawing one after
    the other without replacement). Then, a position at a time: the mask token, a random token, or the token itself,
    with the probabilities `replace`.

    Args:
        ids: `(tokens,)` token ids of all sequences of the batch, without padding.
        weights: `(vocab,)` from `token_weights`, on the device of `ids`.
        share: Share of the positions, of all tokens; special ones count, but are never chosen.
        replace: Probabilities of mask, random and kept.
        mask_id: The mask token.
        generator: On the device of `ids`.

    Returns:
        Masked ids and labels, each `(tokens,)`; a label is the hidden token, or -100.
    """
    chances = weights[ids]
    race = (
        torch.empty_like(chances).exponential_(generator=generator) / chances
    )  # weight 0: infinite, never chosen
    count = min(masked_count(len(ids), share), len(ids))
    chosen = race.topk(count, largest=False).indices
    chosen = chosen[race[chosen].isfinite()]
    kinds = torch.multinomial(
        torch.tensor(list(replace), device=ids.device),
        max(len(chosen), 1),
        replacement=True,
        generator=generator,
    )[: len(chosen)]
    random_ids = torch.randint(
        len(weights), chosen.shape, device=ids.device, generator=generator, dtype=ids.dtype
    )
    hidden = ids[chosen]
    masked, labels = ids.clone(), torch.full_like(ids, IGNORED)
    labels[chosen] = hidden
    masked[chosen] = torch.where(kinds == 0, mask_id, torch.where(kinds == 1, random_ids, hidden))
    return masked, labels


def next_tokens(ids: Tensor, ends: Tensor) -> Tensor:
    """Labels of a causal language model: the next token, and -100 at the last position of each sequence.

    Args:
        ids: `(tokens,)` token ids of all sequences, without padding.
        ends: `(sequences,)` index of the last token of each.
    """
    labels = torch.roll(ids, -1)
    labels[ends] = IGNORED
    return labels
