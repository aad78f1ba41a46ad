import math
from functools import partial

import pytest
import torch

from potstill.losses.soft_targets import (
    cross_entropy,
    generalized_js_divergence,
    kl_divergence,
    logit_mse,
    reverse_kl_divergence,
    shift_probabilities,
    soft_cross_entropy,
    softened_logit_mse,
    universal_logit_distance,
)

SOFTENED = {
    "kl": kl_divergence,
    "reverse_kl": reverse_kl_divergence,
    "jsd": partial(generalized_js_divergence, beta=0.3),
    "soft_ce": soft_cross_entropy,
    "softened_mse": softened_logit_mse,
}
PAIR = {name: partial(loss, temperature=2.0) for name, loss in (SOFTENED | {"uld": universal_logit_distance}).items()}
PAIR["mse"] = logit_mse
SCALED = ("kl", "reverse_kl", "jsd")  # by T^2


def drawn(*shape, dtype=torch.float32):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_kl_divergence_by_hand():
    teacher = torch.tensor([[0.0, 2 * math.log(3)]])  # softened by 2: 1/4, 3/4
    student = torch.zeros(1, 2)
    expected = 4 * (0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert kl_divergence(student, teacher, 2.0).item() == pytest.approx(expected)


def test_kl_divergence_is_that_of_the_teacher_from_the_student():
    student, teacher = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=teacher), torch.distributions.Categorical(logits=student)
    ).mean()
    torch.testing.assert_close(kl_divergence(student, teacher, 1.0), expected)


def test_logit_mse_sums_over_the_vocabulary():
    student, teacher = torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    assert logit_mse(student, teacher).item() == 7
    assert logit_mse(student, teacher, denominator=1).item() == 14


def test_cross_entropy_counts_labelled_rows_only():
    logits = torch.zeros(3, 4)
    labels = torch.tensor([1, -100, 2])
    assert cross_entropy(logits, labels).item() == pytest.approx(math.log(4))
    assert cross_entropy(logits, labels, denominator=torch.tensor(8)).item() == pytest.approx(math.log(4) / 4)


@pytest.mark.parametrize("denominator", [None, 0, torch.tensor(0), 4.0])
def test_all_ignored_is_zero_with_zero_gradient(denominator):
    logits = torch.randn(3, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((3,), -100), denominator=denominator)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("denominator", [None, 0, torch.tensor(0)])
@pytest.mark.parametrize("name", PAIR)
def test_no_rows_is_zero_with_zero_gradient(name, denominator):
    logits = torch.randn(0, 4, requires_grad=True)
    loss = PAIR[name](logits, torch.randn(0, 4), denominator=denominator)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.shape == (0, 4)


@pytest.mark.parametrize("name", PAIR)
def test_half_precision_is_computed_in_float32(name):
    student, teacher = torch.randn(2, 3, 7).bfloat16()
    loss = PAIR[name](student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, PAIR[name](student.float(), teacher.float()))


@pytest.mark.parametrize("name", PAIR)
def test_micro_batches_under_one_denominator_add_up(name):
    student, teacher = torch.randn(2, 5, 7)
    parts = [PAIR[name](student[r], teacher[r], denominator=5) for r in (slice(0, 1), slice(1, 5))]
    torch.testing.assert_close(sum(parts), PAIR[name](student, teacher))


@pytest.mark.parametrize("name", sorted(set(PAIR) - {"soft_ce"}))
def test_equal_logits_give_zero(name):
    student, _ = drawn(3, 7)
    assert PAIR[name](student, student).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", SOFTENED)
def test_one_temperature_per_row(name):
    student, teacher = drawn(3, 7)
    temperatures = torch.tensor([1.0, 2.5, 4.0])
    rows = [SOFTENED[name](student[[n]], teacher[[n]], t.item()) for n, t in enumerate(temperatures)]
    torch.testing.assert_close(SOFTENED[name](student, teacher, temperatures), sum(rows) / 3)


@pytest.mark.parametrize("name", SOFTENED)
def test_token_logits_are_rows(name):
    student, teacher = drawn(2, 4, 5)
    temperatures = torch.linspace(1, 4, 8).view(2, 4)
    expected = SOFTENED[name](student.flatten(0, 1), teacher.flatten(0, 1), temperatures.flatten())
    torch.testing.assert_close(SOFTENED[name](student, teacher, temperatures), expected)


@pytest.mark.parametrize("name", SOFTENED)
def test_temperature_divides_the_logits(name):
    student, teacher = drawn(3, 7)
    factor = 9 if name in SCALED else 1
    expected = factor * SOFTENED[name](student / 3, teacher / 3, 1.0)
    torch.testing.assert_close(SOFTENED[name](student, teacher, 3.0), expected)


@pytest.mark.parametrize("name", SOFTENED)
def test_gradcheck(name):
    student, teacher = drawn(3, 4, dtype=torch.float64)
    temperatures = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: SOFTENED[name](s, teacher, temperatures), (student.requires_grad_(),))


@pytest.mark.parametrize("name", SOFTENED)
def test_extreme_logits_give_finite_gradients(name):
    student = torch.tensor([[500.0, 0.0, -500.0]], requires_grad=True)
    loss = SOFTENED[name](student, torch.tensor([[-500.0, 0.0, 500.0]]), 1.0)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_reverse_kl_is_kl_with_sides_changed():
    student, teacher = drawn(3, 7)
    torch.testing.assert_close(reverse_kl_divergence(student, teacher, 2.0), kl_divergence(teacher, student, 2.0))


def test_js_divergence_by_hand():
    student, teacher = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    mixture = 0.3 * teacher + 0.7 * student
    expected = 0.3 * (teacher * (teacher / mixture).log()).sum() + 0.7 * (student * (student / mixture).log()).sum()
    found = generalized_js_divergence(student.log(), teacher.log(), 1.0, beta=0.3)
    torch.testing.assert_close(found, expected)


def test_js_divergence_tends_to_both_kl():
    student, teacher = drawn(3, 7, dtype=torch.float64)
    forward, reverse = (generalized_js_divergence(student, teacher, 2.0, beta=b) / 1e-6 for b in (1e-6, 1 - 1e-6))
    torch.testing.assert_close(forward, kl_divergence(student, teacher, 2.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(reverse, reverse_kl_divergence(student, teacher, 2.0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, math.nan])
def test_beta_of_the_js_divergence_is_between_0_and_1(beta):
    with pytest.raises(ValueError, match=f"beta={beta}"):
        generalized_js_divergence(*drawn(3, 7), 1.0, beta=beta)


def test_soft_cross_entropy_is_kl_and_the_teachers_entropy():
    student, teacher = drawn(3, 7)
    entropy = torch.distributions.Categorical(logits=teacher / 2).entropy().mean()
    expected = kl_divergence(student, teacher, 2.0) / 4 + entropy
    torch.testing.assert_close(soft_cross_entropy(student, teacher, 2.0), expected)


def test_softened_mse_is_a_mean_over_the_vocabulary():
    student, teacher = drawn(3, 7)
    torch.testing.assert_close(softened_logit_mse(student, teacher, 1.0), logit_mse(student, teacher) / 7)


def test_probability_shift():
    teacher = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [5.0, 5.0, 0.0]])
    shifted = shift_probabilities(teacher, torch.tensor([1, 0, -100, 1]))
    expected = [[1.0, 3.0, 2.0], [3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [5.0, 5.0, 0.0]]
    assert shifted.tolist() == expected
    assert teacher[0].tolist() == [3.0, 1.0, 2.0]
    tokens = shift_probabilities(teacher.view(2, 2, 3), torch.tensor([[1, 0], [-100, 1]]))
    assert tokens.flatten(0, 1).tolist() == expected


def test_universal_logit_distance_by_hand():
    student = torch.tensor([[0.1, 0.6, 0.3]]).log()
    teacher = torch.tensor([[0.2, 0.8]]).log()
    assert universal_logit_distance(student, teacher).item() == pytest.approx(0.2 + 0.1 + 0.1)


def test_universal_logit_distance_ignores_token_ids_and_tokens_without_probability():
    student, teacher = drawn(4, 7)
    expected = universal_logit_distance(student, teacher, temperature=3.0)
    torch.testing.assert_close(universal_logit_distance(student / 3, teacher / 3), expected)
    changed = torch.nn.functional.pad(student[:, torch.randperm(7)], (0, 9), value=-1e4)
    torch.testing.assert_close(universal_logit_distance(changed, teacher, temperature=3.0), expected)


def test_universal_logit_distance_gradcheck():
    student, teacher = drawn(4, 7, dtype=torch.float64)
    loss = partial(universal_logit_distance, teacher_logits_NW=teacher[:, :5])
    assert torch.autograd.gradcheck(loss, (student.requires_grad_(),))


def test_universal_logit_distance_needs_equal_rows():
    with pytest.raises(ValueError, match=r"\(4, 5\).*\(1, 7\)"):
        universal_logit_distance(torch.zeros(4, 5), torch.zeros(1, 7))
