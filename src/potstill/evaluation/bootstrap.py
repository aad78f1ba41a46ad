"""How sure a difference between two models is: the paired bootstrap over the examples that both were judged on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Metric = Callable[[NDArray[np.int64]], float]

RESAMPLES = 1000
LEVEL = 0.95


class Difference(NamedTuple):
    """A difference of two metrics and its interval, in the metric's unit."""

    value: float
    low: float
    high: float


def paired_bootstrap(
    one: Metric,
    other: Metric,
    examples: int,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Difference:
    """`one - other` with its percentile interval: both metrics are computed on the same resampled examples.

    Source: Efron & Tibshirani 1993, chapter 13; Berg-Kirkpatrick et al. 2012 (D12-1091).

    Args:
        one: a metric of the examples whose numbers it is given, which may come up several times.
        other: the same metric of another model.
        examples: how many there are.
        resamples: how often `examples` of them are drawn with replacement.
        level: share of the resampled differences within the interval.
        seed: of the draws.

    Raises:
        ValueError: no examples, or a level outside (0, 1).
    """
    if examples < 1 or not 0 < level < 1:
        raise ValueError(
            f"{examples} examples at level {level}: needs one or more, and a level within (0, 1)"
        )
    rng, whole = np.random.default_rng(seed), np.arange(examples)
    drawn = [rng.integers(0, examples, examples) for _ in range(resamples)]
    differences = np.array([one(rows) - other(rows) for rows in drawn])
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return Difference(one(whole) - other(whole), float(low), float(high))
