"""Sparse rows of a teacher's logits: the top-k tokens, or sampled tokens."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Cumulative sums are float64: with 100,000 tokens, float32 would lose rare ones.
BLOCK_BYTES = 64 * 2**20


class Top(NamedTuple):
    """The top-k tokens of each row.

    Attributes:
        ids: (rows, k) int64.
        log_probs: (rows, k) at temperature 1, descending.
        log_tails: (rows, temperatures) log of the sum over all other tokens of p ** (1 / T).
    """

    ids: Tensor
    log_probs: Tensor
    log_tails: Tensor


class Drawn(NamedTuple):
    """Tokens sampled from each row, row after row, each token once.

    Attributes:
        ids: (tokens,) int64, ascending within a row.
        weights: (tokens,) float64; divided by the number of draws, an unbiased estimate of the row's distribution.
        counts: (rows,) tokens of each row, at most the number of draws.
        entropy: (rows,) entropy of the distribution in nats.
    """

    ids: NDArray[np.int64]
    weights: NDArray[np.float64]
    counts: NDArray[np.int64]
    entropy: NDArray[np.float64]


def top_of(logits_NV: Tensor, k: int, temperatures: tuple[float, ...]) -> Top:
    """The top-k tokens, and the mass of all others at each temperature.

    Args:
        logits_NV: (rows, vocab).
        k: Number of tokens; all of a smaller vocabulary.
        temperatures: T of the tails, such as (1.0, 2.0).
    """
    log_NV = logits_NV.float().log_softmax(dim=1)
    log_probs_NK, ids_NK = log_NV.topk(min(k, log_NV.shape[1]), dim=1)
    rest_NV = log_NV.scatter(1, ids_NK, -torch.inf)
    log_tails = torch.stack([(rest_NV / temperature).logsumexp(dim=1) for temperature in temperatures], dim=1)
    return Top(ids_NK, log_probs_NK, log_tails)


def draw(
    logits_NV: Tensor,
    units: NDArray[np.int64],
    *,
    samples: int,
    power: float,
    temperature: float,
    seed: int,
    systematic: bool,
) -> Drawn:
    """Draw tokens with replacement from q proportional to p ** power, each draw weighted with p / q.

    The expectation of the weights of a token, over the seed and divided by `samples`, is its probability p. At
    power 1 all draws weigh the same, and the weights are counts.

    Args:
        logits_NV: (rows, vocab).
        units: (rows,) numbers of the rows; draws are a function of (seed, number), not of the batch.
        samples: Draws per row.
        power: Power of the proposal; below 1 rare tokens are drawn more often, above 1 less.
        temperature: T of p = softmax(logits / T).
        seed: Seed of all draws.
        systematic: Whether to use one random number u per row: draw j takes the token at (j + u) / samples of the
            cumulative distribution. The mean count of each token is the same, with a deviation below 1.

    Source: Anshumann et al. 2025 (arXiv:2503.16870), random sampling; for systematic draws, Kish 1965, Survey
    Sampling, chapter 4.
    """
    step = max(1, BLOCK_BYTES // (8 * logits_NV.shape[1]))
    parts = []
    for start in range(0, len(logits_NV), step):
        rows = slice(start, start + step)
        log_p_RV = (logits_NV[rows].double() / temperature).log_softmax(dim=1)
        log_q_RV = (log_p_RV * power).log_softmax(dim=1) if power != 1 else log_p_RV
        if systematic:
            shares = (np.arange(samples) + uniforms(seed, units[rows], 1)) / samples
        else:
            shares = uniforms(seed, units[rows], samples)
        parts.append(_inverted(log_p_RV, log_q_RV, torch.from_numpy(shares).to(log_p_RV.device)))
    if not parts:
        none = np.zeros(0, dtype=np.int64)
        return Drawn(none, none.astype(np.float64), none, none.astype(np.float64))
    return Drawn(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _inverted(log_p_RV: Tensor, log_q_RV: Tensor, shares_RS: Tensor) -> Drawn:
    """The tokens at the given shares of the cumulative distribution q, weighted with p / q."""
    cumulative_RV = log_q_RV.exp().cumsum(dim=1)
    # Right, so that a token of probability 0 is never drawn.
    ids_RS = torch.searchsorted(cumulative_RV, shares_RS * cumulative_RV[:, -1:], right=True)
    vocabulary = log_p_RV.shape[1]
    rows_R1 = torch.arange(len(ids_RS), device=ids_RS.device).unsqueeze(1)
    places, draws = (rows_R1 * vocabulary + ids_RS).unique(return_counts=True)
    weights = draws * (log_p_RV.flatten()[places] - log_q_RV.flatten()[places]).exp()
    counts = torch.bincount(places // vocabulary, minlength=len(ids_RS))
    entropy = torch.special.entr(log_p_RV.exp()).sum(dim=1)
    arrays = (places % vocabulary, weights, counts, entropy)
    return Drawn(*(array.cpu().numpy() for array in arrays))


def uniforms(seed: int, units: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) as a hash of (seed, unit, draw), which is faster than one generator per unit.

    Returns:
        (units, draws).
    """
    key = _mixed(np.array(seed, dtype=np.uint64).reshape(1, 1))
    by_unit = _mixed(key ^ _mixed(units.astype(np.uint64).reshape(-1, 1)))
    bits = _mixed(by_unit ^ _mixed(np.arange(draws, dtype=np.uint64).reshape(1, -1)))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 (Steele et al. 2014)."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
