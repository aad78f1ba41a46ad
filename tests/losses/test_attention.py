import math

import pytest
import torch

from potstill.losses.attention import attention_ce, attention_ce_mean, attention_mse, attention_mse_sum

LOSSES = {
    "mse": attention_mse,
    "mse_sum": attention_mse_sum,
    "ce": attention_ce,
    "ce_mean": attention_ce_mean,
}
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
PADDED = ~(MASK[:, None, :, None] * MASK[:, None, None, :]).bool()


@pytest.fixture(params=LOSSES)
def loss(request):
    return LOSSES[request.param]


def scores(heads=3, dtype=torch.float32, seed=0):
    return torch.randn(2, 2, heads, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_mse_by_hand():
    student, teacher = torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2)
    teacher[:, 1] = 3
    assert attention_mse(student, teacher).item() == pytest.approx((1 + 9) / 2)
    assert attention_mse_sum(student, teacher).item() == pytest.approx(16)
    assert attention_mse(student, teacher, torch.tensor([[1, 0]]), denominator=10).item() == pytest.approx(
        0.5
    )


def test_ce_by_hand():
    teacher = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])[None, None]  # 1/4 and 3/4; 1/2 and 1/2
    student = torch.zeros(1, 1, 2, 2)
    assert attention_ce(student, teacher).item() == pytest.approx(math.log(2))
    both = torch.cat([teacher, -teacher], dim=1)  # the mean over heads is 0
    assert attention_ce_mean(torch.zeros(1, 2, 2, 2), both).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("filler", [100.0, -1e4, math.nan, math.inf])
def test_padding_has_no_influence(loss, filler):
    student, teacher = scores()
    expected = loss(student, teacher, MASK)
    student, teacher = (s.masked_fill(PADDED, filler).requires_grad_() for s in (student, teacher))
    found = loss(student, teacher.detach(), MASK)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert student.grad.isfinite().all()
    assert not student.grad[PADDED.expand_as(student)].any()
    assert student.grad[~PADDED.expand_as(student)].all()


def test_padding_is_as_if_cut_off(loss):
    student, teacher = scores()
    alone = [loss(student[b : b + 1, :, :n, :n], teacher[b : b + 1, :, :n, :n]) for b, n in ((0, 3), (1, 2))]
    sizes = (9, 4) if loss in (attention_mse, attention_mse_sum) else (3, 2)
    expected = sum(value * size for value, size in zip(alone, sizes, strict=True)) / sum(sizes)
    torch.testing.assert_close(loss(student, teacher, MASK), expected)


def test_micro_batches_under_one_denominator_add_up(loss):
    student, teacher = scores()
    count = 13 if loss in (attention_mse, attention_mse_sum) else 5
    parts = [loss(student[b], teacher[b], MASK[b], denominator=count) for b in (slice(0, 1), slice(1, 2))]
    torch.testing.assert_close(sum(parts), loss(student, teacher, MASK))


@pytest.mark.parametrize("mse", [attention_mse, attention_mse_sum])
def test_equal_scores_give_zero(mse):
    student, _ = scores()
    assert mse(student, student, MASK).item() == 0


@pytest.mark.parametrize("ce", [attention_ce, attention_ce_mean])
def test_ce_is_least_where_student_and_teacher_are_equal(ce):
    student, teacher = scores(dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    ce(student, teacher, MASK).backward()
    torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-12)


def test_published_is_the_default_on_additive_scores(loss):
    """Where scores hold the additive mask and a mask is given, the published arithmetic is no other one."""
    student, teacher = (
        s.masked_fill(~MASK[:, None, None, :].bool(), -1e4).expand(-1, -1, 4, -1) for s in scores()
    )
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
def test_heads_may_differ_where_they_are_joined(joined):
    student, teacher = scores(heads=3)[0], scores(heads=2)[1]
    assert joined(student, teacher, MASK).isfinite()


@pytest.mark.parametrize("by_head", [attention_mse, attention_ce])
def test_heads_that_differ_are_refused(by_head):
    with pytest.raises(ValueError, match=r"student \(2, 3, 4, 4\) and teacher \(2, 1, 4, 4\) differ"):
        by_head(scores(heads=3)[0], scores(heads=1)[1], MASK)


@pytest.mark.parametrize("denominator", [None, 0, torch.tensor(0), 3.0])
def test_no_kept_position_is_zero_with_zero_gradient(loss, denominator):
    student, teacher = scores()
    value = loss(student.requires_grad_(), teacher, torch.zeros_like(MASK), denominator=denominator)
    value.backward()
    assert value.item() == 0
    assert not student.grad.any()


def test_half_precision_is_computed_in_float32(loss):
    student, teacher = scores().bfloat16()
    found = loss(student, teacher, MASK)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(student.float(), teacher.float(), MASK))


def test_gradcheck(loss):
    student, teacher = scores(heads=2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, MASK), (student.requires_grad_(),))
