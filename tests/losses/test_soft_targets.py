import math

import pytest
import torch

from potstill.losses.soft_targets import cross_entropy, kl_divergence, logit_mse

PAIR = {"kl": lambda s, t, **k: kl_divergence(s, t, 2.0, **k), "mse": logit_mse}


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
