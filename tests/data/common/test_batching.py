import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.data.common.batching import derive_seed, length_groups, micro_batches, plan_epoch

lengths_of = st.lists(st.integers(3, 60), min_size=1, max_size=200).map(np.array)


@settings(deadline=None, max_examples=60)
@given(lengths_of, st.integers(1, 17), st.integers(0, 3), st.sampled_from([0, 1, 4]), st.sampled_from([None, 3]))
def test_every_sequence_occurs_once_per_epoch(lengths, size, epoch, length_bin, group):
    plan = plan_epoch(lengths, seed=1, epoch=epoch, sequences=size, length_bin=length_bin, group_size=group)
    assert sorted(plan.order) == list(range(len(lengths)))
    sizes = np.diff(plan.bounds)
    assert (sizes[:-1] == size).all()
    assert 0 < sizes[-1] <= size
    assert sorted(np.concatenate([plan.step(i) for i in range(len(plan))])) == list(range(len(lengths)))


@settings(deadline=None, max_examples=60)
@given(lengths_of, st.integers(64, 400))
def test_token_budget(lengths, tokens):
    plans = [plan_epoch(lengths, seed=1, epoch=e, sequences=8, tokens=tokens) for e in range(3)]
    assert len({len(plan) for plan in plans}) == 1
    for plan in plans:
        assert sorted(plan.order) == list(range(len(lengths)))
        for i in range(len(plan)):
            step = lengths[plan.step(i)]
            assert len(step) * step.max() <= tokens


def test_order_is_a_function_of_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(5, 50, 100)

    def order(seed, epoch):
        return plan_epoch(lengths, seed=seed, epoch=epoch, sequences=8).order.tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    assert len({derive_seed(s, e, i) for s in range(5) for e in range(5) for i in range(5)}) == 125


def test_groups_of_similar_lengths():
    lengths = np.random.default_rng(0).integers(5, 100, 4000)
    whole = plan_epoch(lengths, seed=1, epoch=0, sequences=32)
    spread = np.mean([np.ptp(lengths[whole.step(i)]) for i in range(len(whole))])
    assert spread < 8
    joined = plan_epoch(lengths, seed=1, epoch=0, sequences=32, group_size=4)
    assert np.mean([np.ptp(lengths[joined.step(i)]) for i in range(len(joined))]) > 40
    # Cut into micro-batches, the sequences of a step are near to each other again.
    cuts = micro_batches(lengths[joined.step(0)], sequences=4, tokens=None)
    assert np.mean([np.ptp(lengths[joined.step(0)][cut]) for cut in cuts]) < 20


@settings(deadline=None, max_examples=60)
@given(lengths_of, st.integers(1, 9), st.integers(1, 4), st.sampled_from([None, 80]))
def test_micro_batches_of_all_ranks_are_the_step(lengths, size, world, tokens):
    cuts = [micro_batches(lengths, sequences=size, tokens=tokens, rank=r, world=world) for r in range(world)]
    assert sorted(np.concatenate([c for rank in cuts for c in rank])) == list(range(len(lengths)))
    for cut in (c for rank in cuts for c in rank if len(c)):
        if tokens is None:
            assert len(cut) <= size
        else:
            assert len(cut) * lengths[cut].max() <= max(tokens, lengths[cut].max())


@pytest.mark.parametrize("group", [None, 3])
def test_units_stay_together(group):
    lengths = np.random.default_rng(3).integers(5, 50, 100)
    plan = plan_epoch(lengths, seed=1, epoch=0, sequences=12, group_size=group)
    for size in (12, 6, 4, 3):
        step = lengths[plan.step(2)]
        assert sorted(np.concatenate(micro_batches(step, sequences=size, tokens=None))) == list(range(12))


@settings(deadline=None, max_examples=60)
@given(lengths_of)
def test_groups_of_a_batch_have_less_padding(lengths):
    lengths = np.sort(lengths)
    groups = length_groups(lengths)
    assert np.concatenate(groups).tolist() == list(range(len(lengths)))
    padded, together = sum(len(own) * lengths[own].max() for own in groups), len(lengths) * lengths.max()
    assert padded <= together - (256 if len(groups) > 1 else 0)
    assert len(groups) == 1 or padded <= 0.75 * together


def test_short_texts_are_not_padded_to_long_ones():
    groups = length_groups(np.array([10] * 16 + [150] * 16))
    assert [len(own) for own in groups] == [16, 16]
    assert len(length_groups(np.array([10] * 16 + [11] * 16))) == 1
