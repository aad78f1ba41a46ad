"""The paired bootstrap: known widths, pairing, determinism."""

import numpy as np
import pytest

from potstill.evaluation.bootstrap import paired_bootstrap


def mean_of(values):
    return lambda rows: float(values[rows].mean())


def test_the_interval_of_a_mean_equals_that_of_its_standard_error():
    gaps = np.random.default_rng(0).normal(0.3, 1.0, 400)
    found = paired_bootstrap(mean_of(gaps), mean_of(np.zeros(400)), 400, resamples=4000)
    error = gaps.std() / 20
    assert found.value == pytest.approx(gaps.mean())
    assert found.low == pytest.approx(gaps.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(gaps.mean() + 1.96 * error, abs=0.1 * error)
    assert found.low > 0
    assert found == paired_bootstrap(mean_of(gaps), mean_of(np.zeros(400)), 400, resamples=4000)


def test_variation_common_to_both_models_does_not_widen_the_interval():
    hardness = np.random.default_rng(1).normal(0, 10, 200)
    found = paired_bootstrap(mean_of(hardness + 0.01), mean_of(hardness), 200)
    assert found.low == pytest.approx(0.01)
    assert found.high == pytest.approx(0.01)
    assert paired_bootstrap(mean_of(hardness), mean_of(hardness), 200) == (0, 0, 0)


def test_no_examples_are_rejected():
    with pytest.raises(ValueError, match="examples="):
        paired_bootstrap(mean_of(np.ones(5)), mean_of(np.ones(5)), 0)
