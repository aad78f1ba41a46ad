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


def paired_bootstrap(one: Metric, other: Metric, examples: int, *, resamples: int = RESAMPLES) -> Difference:
    """`one - other` with its percentile interval of `LEVEL`; both metrics are computed on the same resampled examples.

    Source: Efron & Tibshirani 1993, chapter 13; Berg-Kirkpatrick et al. 2012 (D12-1091).

    Args:
        one: a metric as a function of example indices, which may repeat.
        other: the same metric of another model.
        examples: number of examples.
        resamples: number of samples, drawn with replacement.

    Raises:
        ValueError: no examples.
    """
    if examples < 1:
        raise ValueError(f"examples={examples}: expected at least one")
    rng, whole = np.random.default_rng(0), np.arange(examples)
    drawn = [rng.integers(0, examples, examples) for _ in range(resamples)]
    differences = np.array([one(rows) - other(rows) for rows in drawn])
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(one(whole) - other(whole), float(low), float(high))
