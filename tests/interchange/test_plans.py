"""Position plans: literal cases, and what holds for all lengths and settings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.interchange.plans import NOBODY, PlanSettings, cut_swaps, draw_swaps, partners, reached_tokens, swappable

lengths_of = st.lists(st.integers(1, 40), min_size=2, max_size=9).map(lambda n: np.array(n, dtype=np.int64))
settings_of = st.builds(
    PlanSettings,
    proportion=st.floats(0.05, 1.0),
    max_tokens=st.none() | st.integers(1, 6),
    positions=st.sampled_from(["consecutive", "free"]),
    crossway=st.booleans(),
)


def drawn(lengths, settings, seed=0, **kwargs):
    return draw_swaps(
        lengths, partners(len(lengths), crossway=settings.crossway), settings, np.random.default_rng(seed), **kwargs
    )


@pytest.mark.parametrize(
    ("count", "crossway", "expected"),
    [
        (1, False, [NOBODY]),
        (2, False, [1, 0]),
        (3, False, [1, 2, 0]),
        (3, True, [1, 0, NOBODY]),
        (4, False, [1, 0, 3, 2]),
        (5, False, [1, 0, 3, 4, 2]),
    ],
)
def test_partners(count, crossway, expected):
    assert partners(count, crossway=crossway).tolist() == expected


@given(st.integers(2, 50))
def test_partners_are_a_permutation_without_fixed_points(count):
    found = partners(count)
    assert sorted(found) == list(range(count))
    assert not (found == np.arange(count)).any()


@given(lengths_of, settings_of, st.integers(0, 5))
def test_padding_is_never_swapped_and_the_share_holds(lengths, settings, seed):
    swaps = drawn(lengths, settings, seed)
    partner = partners(len(lengths), crossway=settings.crossway)
    assert (swaps.base_column < lengths[swaps.base_row]).all()
    assert (swaps.source_column < lengths[swaps.source_row]).all()
    assert (swaps.source_row == partner[swaps.base_row]).all()
    for row, source in enumerate(partner):
        mine = swaps.base_row == row
        if source == NOBODY:
            assert not mine.any()
            continue
        count = int(settings.proportion * min(lengths[row], lengths[source]) + 1e-9)
        count = count if settings.max_tokens is None else min(count, settings.max_tokens)
        assert mine.sum() == count
        for columns in (swaps.base_column[mine], swaps.source_column[mine]):
            assert len(set(columns.tolist())) == count
            if settings.positions == "consecutive":
                assert (np.diff(columns) == 1).all()
    assert (np.diff(swaps.base_row) >= 0).all()


@given(lengths_of, settings_of, st.integers(0, 5))
def test_a_plan_is_a_function_of_its_seed(lengths, settings, seed):
    one, two = (drawn(lengths, settings, seed) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@given(lengths_of, st.integers(0, 5))
def test_crossway_is_its_own_reverse(lengths, seed):
    swaps = drawn(lengths, PlanSettings(0.5, positions="free", crossway=True), seed)
    forth = set(zip(swaps.base_row, swaps.base_column, swaps.source_row, swaps.source_column, strict=True))
    assert forth == {(c, d, a, b) for a, b, c, d in forth}


def test_masked_positions_swap_with_any():
    masked = [np.array([1, 5, 7]), np.array([0, 2, 3, 8])]
    swaps = drawn(np.array([9, 9]), PlanSettings(0.7, positions="masked"), masked=masked)
    assert np.bincount(swaps.base_row).tolist() == [2, 2]  # 0.7 of 3 and of 4
    assert all(column in masked[base] for base, column in zip(swaps.base_row, swaps.base_column, strict=True))


@pytest.mark.parametrize("pairing", ["in_batch", "shuffled"])
def test_a_proportion_of_one_takes_all_masked_positions(pairing):
    masked = [np.array([1, 5, 7]), np.array([0, 2, 3, 8]), np.array([0, 1, 2, 3]), np.array([], dtype=np.int64)]
    lengths, settings = np.array([9, 9, 5, 5]), PlanSettings(1.0, positions="masked", pairing=pairing)
    for seed in range(20):
        if pairing == "in_batch":
            swaps = drawn(lengths, settings, seed, masked=masked)
        else:
            swaps = draw_swaps(
                lengths, np.arange(4), settings, np.random.default_rng(seed), source_lengths=lengths, masked=masked
            )
        for row, columns in enumerate(masked):
            mine = swaps.base_row == row
            assert swaps.base_column[mine].tolist() == columns.tolist()
            assert len(set(swaps.source_column[mine].tolist())) == len(columns)
    few = draw_swaps(
        np.array([9]), np.arange(1), settings, np.random.default_rng(0), source_lengths=np.array([2]), masked=masked[:1]
    )
    assert len(few.base_column) == 2  # the source has no more


def test_separate_sources():
    swaps = draw_swaps(
        np.array([10, 20]), np.arange(2), PlanSettings(0.5), np.random.default_rng(0), source_lengths=np.array([6, 30])
    )
    assert np.bincount(swaps.base_row).tolist() == [3, 10]
    assert swaps.source_row.tolist() == swaps.base_row.tolist()


def test_free_positions_are_spread_evenly():
    lengths = np.full(4000, 10)
    swaps = drawn(lengths, PlanSettings(0.3, positions="free"))
    share = np.bincount(swaps.base_column, minlength=10) / len(lengths)
    assert share == pytest.approx(np.full(10, 0.3), abs=0.03)


def test_swappable_sequences():
    assert swappable(np.array([1, 3, 4, 40]), PlanSettings(0.3)) == 2
    assert swappable(np.array([10]), PlanSettings(0.1)) == 1
    assert swappable(np.array([9]), PlanSettings(0.1)) == 0


def test_reached_tokens():
    lengths, rows, columns = np.array([3, 2, 4]), np.array([0, 2, 2]), np.array([1, 3, 2])
    bidirectional = reached_tokens(lengths, rows, columns, causal=False)
    assert bidirectional.tolist() == [True] * 3 + [False] * 2 + [True] * 4
    causal = reached_tokens(lengths, rows, columns, causal=True)
    assert causal.tolist() == [False, True, True, False, False, False, False, True, True]


@given(lengths_of, settings_of, st.integers(0, 3))
def test_a_cut_has_the_swaps_of_its_rows(lengths, settings, seed):
    swaps = drawn(lengths, settings, seed)
    rows = np.arange(len(lengths))[:2] if len(lengths) != 3 else np.arange(3)
    width = int(lengths[rows].max())
    if len(lengths) % 2 and len(lengths) > 3:
        rows = rows[:2]
    base, source = cut_swaps(swaps, rows, width)
    mine = np.isin(swaps.base_row, rows)
    assert np.array_equal(rows[base // width], swaps.base_row[mine])
    assert np.array_equal(base % width, swaps.base_column[mine])
    assert np.array_equal(rows[source // width], swaps.source_row[mine])
    assert np.array_equal(source % width, swaps.source_column[mine])
