"""Paired bootstrap: the confidence interval of a difference between two models on the same examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Metric = Callable[[NDArray[np.int64]], float]

RESAMPLES = 1000
LEVEL = 0.95


class Difference(NamedTuple):
    """A difference of two metrics with its confidence interval."""

    value: float
    low: float
    high: float


def paired_bootstrap(
    one: Metric, other: Metric, examples: int, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Difference:
    """`one - other` with its percentile interval; both metrics are computed on the same resampled examples.

    Source: Efron & Tibshirani 1993, chapter 13; Berg-Kirkpatrick et al. 2012 (D12-1091).

    Args:
        one: a metric as a function of example indices, which may repeat.
        other: the same metric of another model.
        examples: number of examples.
        resamples: number of samples, drawn with replacement.
        level: share of the resampled differences within the interval.
        seed: of the samples.

    Raises:
        ValueError: no examples, or a level outside of (0, 1).
    """
    if examples < 1 or not 0 < level < 1:
        raise ValueError(f"examples={examples}, level={level}: expected at least one, and a level in (0, 1)")
    rng, whole = np.random.default_rng(seed), np.arange(examples)
    drawn = [rng.integers(0, examples, examples) for _ in range(resamples)]
    differences = np.array([one(rows) - other(rows) for rows in drawn])
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return Difference(one(whole) - other(whole), float(low), float(high))
