import math

import pytest
import torch

from potstill.losses.soft_targets import (
    generalized_js_divergence,
    kl_divergence,
    reverse_kl_divergence,
    shift_probabilities,
    soft_cross_entropy,
    softened_logit_mse,
)
from potstill.objectives.soft_targets import SoftTargets, TeacherMean, cwsm_difficulty, row_temperatures


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return [2 * torch.randn(5, 3, generator=generator) for _ in range(3)]


def test_the_loss_is_the_one_that_is_named(logits):
    student, teacher, _ = logits
    plain = {
        "kl": kl_divergence, "cross_entropy": soft_cross_entropy, "mse": softened_logit_mse,
        "reverse_kl": reverse_kl_divergence,
    }  # fmt: skip
    found = {name: SoftTargets(name)(student, teacher, 8.0, denominator=5.0) for name in plain}
    for name, loss in plain.items():
        torch.testing.assert_close(found[name], loss(student, teacher, 8.0))
    assert len({round(value.item(), 6) for value in found.values()}) == 4
    mixed = SoftTargets("jsd", beta=0.3)(student, teacher, 8.0, denominator=5.0)
    torch.testing.assert_close(mixed, generalized_js_divergence(student, teacher, 8.0, beta=0.3))


def test_temperatures_of_rows_and_the_shift(logits):
    student, teacher, _ = logits
    rows = row_temperatures(cwsm_difficulty(student), 4.0, beta=2.0)
    assert rows.std() > 0.1
    by_row = SoftTargets(temperature_schedule="cwsm", strength=2.0)
    torch.testing.assert_close(by_row(student, teacher, 4.0, denominator=5.0), kl_divergence(student, teacher, rows))
    flsw = SoftTargets(temperature_schedule="flsw", gamma=2.0)(student, teacher, 4.0, denominator=5.0)
    assert abs(flsw - kl_divergence(student, teacher, 4.0)) > 1e-4
    labels = (teacher.argmax(-1) + 1) % 3
    shifted = SoftTargets(shift=True)(student, teacher, 4.0, labels_N=labels, denominator=5.0)
    torch.testing.assert_close(shifted, kl_divergence(student, shift_probabilities(teacher, labels), 4.0))
    none = student[:0]
    assert by_row(none, none, 4.0, denominator=1.0) == 0


def test_the_mean_of_teachers(logits):
    one, two, three = logits
    assert TeacherMean()([one], 2.0) is one
    torch.testing.assert_close(TeacherMean()([one, two, three], 2.0), (one + two + three) / 3)
    torch.testing.assert_close(TeacherMean((3.0, 1.0))([one, two], 2.0), 0.75 * one + 0.25 * two)
    spread = TeacherMean((3.0, 1.0), "probabilities")([one, two], 2.0)
    expected = 0.75 * (one / 2).softmax(-1) + 0.25 * (two / 2).softmax(-1)
    torch.testing.assert_close((spread / 2).softmax(-1), expected)
    assert math.isclose(kl_divergence(spread, spread, 2.0).item(), 0, abs_tol=1e-6)
