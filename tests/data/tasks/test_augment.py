"""Augmentation: special tokens stay, no token leaves its text, and every kind of noise has its effect."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.data.tasks.augment import Augmentation, augment

LENGTHS = np.array([6, 9, 3, 2])
# [CLS] a a a a [SEP] | [CLS] a a a [SEP] b b b [SEP] | [CLS] a [SEP] | [CLS] [SEP]
SPECIAL = np.zeros(20, dtype=bool)
SPECIAL[[0, 5, 6, 10, 14, 15, 17, 18, 19]] = True
TEXTS = {1: (1, 5), 2: (7, 10), 3: (11, 14), 4: (16, 17)}  # number: first and end


def drawn(seed=0, **settings):
    return augment(
        LENGTHS, SPECIAL, Augmentation(**{"share": 1.0, "mask": 0.0} | settings), np.random.default_rng(seed)
    )


def texts_of(result):
    """The places of each text, in their new order."""
    places = result.places
    return {n: places[(places >= first) & (places < end)].tolist() for n, (first, end) in TEXTS.items()}


@given(
    seed=st.integers(0, 2**32),
    share=st.floats(0, 1),
    chances=st.tuples(*[st.floats(0, 1)] * 4),
    size=st.integers(1, 6),
    distance=st.integers(0, 5),
)
def test_special_tokens_and_texts_stay_in_place(seed, share, chances, size, distance):
    mask, delete, ngram, disorder = chances
    settings = {"mask": mask, "delete": delete, "ngram": ngram, "disorder": disorder}
    result = drawn(seed, share=share, ngram_size=size, disorder_distance=distance, **settings)
    again = drawn(seed, share=share, ngram_size=size, disorder_distance=distance, **settings)
    assert all(np.array_equal(one, other) for one, other in zip(result, again, strict=True))
    places = result.places
    assert len(set(places.tolist())) == len(places) == len(result.masked) == result.lengths.sum()
    assert (result.lengths <= LENGTHS).all()
    assert np.flatnonzero(SPECIAL).tolist() == places[SPECIAL[places]].tolist()
    assert not result.masked[SPECIAL[places]].any()
    # Texts lie in their old order, between the same special tokens.
    group = np.searchsorted(np.flatnonzero(SPECIAL), places, side="right")
    assert (np.diff(group) >= 0).all()
    assert all(kept for kept in texts_of(result).values())
    bounds = np.searchsorted(np.cumsum(LENGTHS), places, side="right")
    assert np.array_equal(np.bincount(bounds, minlength=4), result.lengths)


def test_a_share_of_the_rows_changes_and_the_rest_stays():
    lengths = np.full(4000, 5)
    special = np.tile([True, False, False, False, True], 4000)
    how = Augmentation(share=0.3, mask=1.0)
    result = augment(lengths, special, how, np.random.default_rng(0))
    rows = result.masked.reshape(4000, 5)
    assert set(rows.sum(axis=1)) == {0, 3}
    assert rows.any(axis=1).mean() == pytest.approx(0.3, abs=0.03)
    same = augment(lengths, special, Augmentation(share=0.0, mask=1.0, delete=1.0), np.random.default_rng(0))
    assert np.array_equal(same.places, np.arange(20000))
    assert not same.masked.any()


def test_ngrams_of_each_text():
    sizes = set()
    for seed in range(200):
        for kept in texts_of(drawn(seed, ngram=1.0, ngram_size=3)).values():
            assert kept == list(range(kept[0], kept[0] + len(kept)))
            assert len(kept) <= 3
            sizes.add((kept[0], len(kept)))
    # every n-gram of the first text comes up
    assert {(first, n) for first in range(1, 5) for n in range(1, 4) if first + n <= 5} <= sizes


def test_deletion_keeps_the_order_and_at_least_one_token():
    for seed in range(50):
        for kept in texts_of(drawn(seed, delete=0.5)).values():
            assert kept == sorted(kept)
            assert kept
    assert all(len(kept) == 1 for kept in texts_of(drawn(delete=1.0)).values())


def test_moved_tokens_stay_near():
    lengths, special = np.array([50]), np.zeros(50, dtype=bool)
    how = Augmentation(share=1.0, mask=0.0, disorder=1.0, disorder_distance=3)
    far = 0
    for seed in range(100):
        places = augment(lengths, special, how, np.random.default_rng(seed)).places
        assert sorted(places.tolist()) == list(range(50))
        far = max(far, int(np.abs(places - np.arange(50)).max()))
    assert far == 3
