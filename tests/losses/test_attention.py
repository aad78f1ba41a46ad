import math

import pytest
import torch

from potstill.losses.attention import attention_ce, attention_ce_mean, attention_mse, attention_mse_sum

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])


def scores(heads=3, dtype=torch.float32, seed=0):
    return torch.randn(2, 2, heads, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_mse_by_hand():
    student, teacher = torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2)
    teacher[:, 1] = 3
    assert attention_mse(student, teacher).item() == pytest.approx((1 + 9) / 2)
    assert attention_mse_sum(student, teacher).item() == pytest.approx(16)
    assert attention_mse(student, teacher, torch.tensor([[1, 0]]), denominator=10).item() == pytest.approx(0.5)


def test_ce_by_hand():
    teacher = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])[None, None]  # 1/4 and 3/4; 1/2 and 1/2
    student = torch.zeros(1, 1, 2, 2)
    assert attention_ce(student, teacher).item() == pytest.approx(math.log(2))
    both = torch.cat([teacher, -teacher], dim=1)  # the mean over heads is 0
    assert attention_ce_mean(torch.zeros(1, 2, 2, 2), both).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("ce", [attention_ce, attention_ce_mean])
def test_ce_is_least_where_student_and_teacher_are_equal(ce):
    student, teacher = scores(dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    ce(student, teacher, MASK).backward()
    torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", [attention_mse, attention_mse_sum, attention_ce, attention_ce_mean])
def test_published_is_the_default_on_additive_scores(loss):
    """With scores that hold the additive mask, and a mask, both arithmetics agree."""
    student, teacher = (s.masked_fill(~MASK[:, None, None, :].bool(), -1e4).expand(-1, -1, 4, -1) for s in scores())
    torch.testing.assert_close(
        loss(student, teacher, MASK, published=True), loss(student, teacher, MASK), rtol=1e-6, atol=0
    )


def test_published_without_a_mask_drops_negative_scores():
    student, teacher = torch.tensor([[-5.0, 1.0], [2.0, -1e-3]]), torch.tensor([[0.0, 1.0], [-7.0, 0.0]])
    student, teacher = student[None, None], teacher[None, None]
    assert attention_mse(student, teacher, published=True).item() == pytest.approx(1.0)  # 0 0 4 0
    assert attention_mse(student, teacher).item() == pytest.approx((25 + 0 + 81 + 1e-6) / 4)
    kept = teacher.softmax(-1) * student.log_softmax(-1) * torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    torch.testing.assert_close(attention_ce(student, teacher, published=True), -kept.sum() / 2)


@pytest.mark.parametrize("joined", [attention_mse_sum, attention_ce_mean])
def test_joined_heads_may_differ_in_number(joined):
    student, teacher = scores(heads=3)[0], scores(heads=2)[1]
    assert joined(student, teacher, MASK).isfinite()


@pytest.mark.parametrize("by_head", [attention_mse, attention_ce])
def test_different_numbers_of_heads_are_rejected(by_head):
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 4\).*\(2, 1, 4, 4\)"):
        by_head(scores(heads=3)[0], scores(heads=1)[1], MASK)
