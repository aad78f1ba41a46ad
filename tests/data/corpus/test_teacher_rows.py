"""Item numbers of teacher caches: each token has one, in the order of computation."""

import numpy as np
import pytest

from potstill.data.common.ragged import flat_indices
from potstill.data.common.steps import BatchSettings, TrainSteps
from potstill.data.corpus.teacher_rows import SequenceUnits, StepUnits, by_length, run_steps

LENGTHS = np.array([5, 2, 7, 2, 9, 3, 5], dtype=np.int32)


class Lengths:
    def __init__(self, lengths):
        self.lengths = lengths

    def item(self, bases, sources, seed, training):
        return {"sequences": bases}


def steps_of(world=1, **settings):
    steps = TrainSteps(Lengths(LENGTHS), BatchSettings(seed=3, batch_size=2, **settings))
    steps.world = world
    return steps


def test_sequences_start_in_order_of_length():
    order, starts = by_length(LENGTHS)
    assert order.tolist() == [1, 3, 5, 0, 6, 2, 4]
    assert starts.tolist() == [7, 0, 17, 2, 24, 4, 12]


def test_items_of_a_corpus():
    units = SequenceUnits(LENGTHS)
    wanted = np.array([4, 0, 1])
    found = [flat_indices(units.starts(wanted, LENGTHS[wanted], at), LENGTHS[wanted]) for at in ((0, 0), (5, 2))]
    assert found[0].tolist() == [*range(24, 33), *range(7, 12), 0, 1] == found[1].tolist()
    everything = flat_indices(units.starts(np.arange(7), LENGTHS, (0, 0)), LENGTHS)
    assert sorted(everything) == list(range(units.count))


@pytest.mark.parametrize("settings", [{}, {"max_tokens": 12}, {"world": 2}, {"length_bin": 0, "group_size": 1}])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_items_of_steps(settings, count):
    steps = steps_of(**settings)
    units, an_epoch = StepUnits(steps, count), len(steps.plan(0))
    found = []
    for number in range(count):
        at = divmod(number, an_epoch)
        bases = steps.plan(at[0]).step(at[1])
        found.append(flat_indices(units.starts(bases, LENGTHS[bases], at), LENGTHS[bases]))
        # The items of a step are contiguous.
        assert found[-1].max() - found[-1].min() + 1 == len(found[-1])
    assert sorted(np.concatenate(found)) == list(range(units.count))
    assert [(item["epoch"], item["step"]) for item in units.items()] == [
        divmod(number, an_epoch) for number in range(count)
    ]
    with pytest.raises(IndexError, match=f" {count} steps"):
        units.starts(np.arange(2), LENGTHS[:2], divmod(count, an_epoch))


def test_steps_of_a_run():
    assert run_steps(5, max_steps=7, max_epochs=3) == 7
    assert run_steps(5, max_steps=70, max_epochs=3) == 15
    assert run_steps(5, max_steps=-1, max_epochs=2) == 10
    assert run_steps(5, max_steps=70, max_epochs=None) == 70
    assert run_steps(5, max_steps=0, max_epochs=None) == 5
