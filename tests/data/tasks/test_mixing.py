from itertools import chain

import numpy as np
import pytest

from potstill.data.common.steps import BatchSettings, TrainSteps
from potstill.data.tasks.mixing import MixedSteps, task_shares


class Rows:
    def __init__(self, count):
        self.lengths = np.full(count, 5)

    def item(self, bases, sources, seed, training):
        return {"bases": bases.tolist(), "seed": seed, "training": training}


def mixed(exponent=1.0, seed=0, sizes=(("large", 64), ("small", 16))):
    tasks = {
        name: TrainSteps(Rows(count), BatchSettings(seed=number, batch_size=4))
        for number, (name, count) in enumerate(sizes)
    }
    return MixedSteps(tasks, dict(sizes), exponent, seed)


@pytest.mark.parametrize(
    ("exponent", "shares"), [(1, [0.8, 0.2]), (0, [0.5, 0.5]), (0.5, [2 / 3, 1 / 3]), (300, [1, 0])]
)
def test_shares_are_sizes_to_a_power(exponent, shares):
    assert task_shares({"large": 400, "small": 100}, exponent) == pytest.approx(np.array(shares), abs=1e-12)


def test_an_epoch_has_the_steps_of_all_tasks_and_each_comes_by_its_share():
    steps = mixed(exponent=0.5)
    plans = [steps.plan(epoch) for epoch in range(60)]
    assert {len(plan) for plan in plans} == {16 + 4}
    drawn = np.concatenate(plans)[:, 0]
    assert (drawn == 0).mean() == pytest.approx(2 / 3, abs=0.04)


def test_a_task_goes_through_all_its_rows_before_it_begins_again():
    steps = mixed(exponent=0.0)
    seen = {"large": [], "small": []}
    for epoch in range(4):
        for step in range(len(steps.plan(epoch))):
            item = steps[epoch, step]
            seen[item["task"]].append(item["bases"])
    for name, count in (("large", 64), ("small", 16)):
        an_epoch = count // 4
        whole = seen[name][: len(seen[name]) // an_epoch * an_epoch]
        assert len(whole) >= an_epoch
        for start in range(0, len(whole), an_epoch):
            assert sorted(chain(*whole[start : start + an_epoch])) == list(range(count))


def test_a_step_is_a_function_of_seed_and_number():
    steps = mixed()
    whole = [steps[epoch, step] for epoch in range(3) for step in range(20)]
    assert mixed()[2, 7] == whole[47]  # without what came before
    assert [mixed(seed=1)[0, step]["task"] for step in range(20)] != [own["task"] for own in whole[:20]]


def test_more_processes_make_fewer_steps():
    steps = mixed()
    steps.world = 2
    assert len(steps.plan(0)) == 8 + 2
