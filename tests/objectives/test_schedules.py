import math

import pytest
import torch

from potstill.errors import ConfigError
from potstill.objectives.schedules import WeightSchedule
from potstill.objectives.soft_targets import cwsm_difficulty, flsw_difficulty, row_temperatures


def logits(seed=0):
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))


def test_flsw_by_hand():
    student = torch.tensor([[300.0, 0.0], [300.0, 0.0], [300.0, 0.0]])
    teacher = torch.tensor([[500.0, 0.0], [0.0, 200.0], [-100.0, 0.0]])
    found = flsw_difficulty(student, teacher, gamma=2.0)
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0, 4.0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0])
def test_flsw_of_equal_or_zero_logits_is_a_number(gamma):
    same = torch.cat([logits(), torch.zeros(1, 4)])
    found = flsw_difficulty(same, same, gamma=gamma)
    assert found.isfinite().all()
    assert (found >= 0).all()
    assert found[-1].item() == 1


def test_cwsm_by_hand():
    found = cwsm_difficulty(torch.tensor([[0.0, math.log(3)], [0.0, 0.0], [-100.0, 100.0]]))
    torch.testing.assert_close(found, torch.tensor([4 / 3, 2.0, 1.0]), rtol=3e-3, atol=0)


def test_hard_rows_get_lower_temperatures():
    difficulty = torch.tensor([1.0, 2.0, 6.0])
    torch.testing.assert_close(row_temperatures(difficulty, 4.0, beta=0.5), torch.tensor([5.0, 4.5, 2.5]))
    torch.testing.assert_close(row_temperatures(difficulty, 4.0, mean=1.0), torch.tensor([4.0, 3.0, 0.1]))


def test_no_temperature_is_below_the_lowest():
    found = row_temperatures(cwsm_difficulty(torch.zeros(2, 1000)), 4.0, mean=1.0, lowest=0.5)
    torch.testing.assert_close(found, torch.full((2,), 0.5))


def test_a_given_mean_makes_micro_batches_agree():
    student, teacher = logits(), logits(seed=1)
    difficulty = flsw_difficulty(student, teacher)
    parts = [
        row_temperatures(flsw_difficulty(student[r], teacher[r]), 4.0, mean=difficulty.mean())
        for r in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close(torch.cat(parts), row_temperatures(difficulty, 4.0))


def test_difficulties_have_no_gradient():
    student = logits().requires_grad_()
    assert not flsw_difficulty(student, logits(seed=1)).requires_grad
    assert not cwsm_difficulty(student).requires_grad


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (WeightSchedule("linear", 1.0, 3.0, 4), {0: 1.0, 1: 1.5, 4: 3.0, 9: 3.0}),
        (WeightSchedule("linear", 2.0, 1.0, 4), {0: 2.0, 1: 1.75, 4: 1.0, 5: 1.0}),
        (WeightSchedule("cosine", 0.0, 2.0, 4), {0: 0.0, 1: 1 - 0.5**0.5, 2: 1.0, 4: 2.0, 5: 2.0}),
        (WeightSchedule("ExponentialLR", 2.0, arguments={"gamma": 0.5}), {3: 0.25, 0: 2.0, 1: 1.0}),
        (WeightSchedule("StepLR", 1.0, arguments={"step_size": 2, "gamma": 0.1}), {0: 1.0, 1: 1.0, 2: 0.1, 4: 0.01}),
        (
            WeightSchedule("LinearLR", 4.0, arguments={"start_factor": 0.25, "total_iters": 3}),
            {0: 1.0, 3: 4.0, 50: 4.0},
        ),
    ],
)
def test_weights(schedule, expected):
    assert {step: schedule(step) for step in expected} == pytest.approx(expected)


def test_restarts_are_torch_s_own():
    schedule = WeightSchedule("CosineAnnealingWarmRestarts", 3.0, arguments={"T_0": 4})
    own = [3 * (1 + math.cos(math.pi * (step % 4) / 4)) / 2 for step in range(12)]
    assert [schedule(step) for step in range(12)] == pytest.approx(own)
    assert schedule.last == 3.0


def test_arguments_that_a_torch_schedule_does_not_accept():
    with pytest.raises(ConfigError, match=r"^schedule_args=\{'gamma': 0.5\}: .* schedule=StepLR"):
        WeightSchedule("StepLR", 1.0, arguments={"gamma": 0.5})(0)
