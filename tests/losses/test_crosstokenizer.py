import pytest
import torch

from potstill.losses.crosstokenizer import universal_logit_distance


def logits(vocab, rows=4, seed=0, dtype=torch.float32):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_by_hand():
    student = torch.tensor([[0.1, 0.6, 0.3]]).log()
    teacher = torch.tensor([[0.2, 0.8]]).log()
    assert universal_logit_distance(student, teacher).item() == pytest.approx(0.2 + 0.1 + 0.1)


def test_temperature_divides_both():
    student, teacher = logits(5), logits(7, seed=1)
    torch.testing.assert_close(
        universal_logit_distance(student, teacher, temperature=3.0),
        universal_logit_distance(student / 3, teacher / 3),
    )


def test_ids_of_tokens_do_not_matter():
    teacher = logits(6)
    student = teacher[:, torch.randperm(6, generator=torch.Generator().manual_seed(0))]
    assert universal_logit_distance(student, teacher).item() == pytest.approx(0, abs=1e-6)


def test_tokens_without_probability_do_not_matter():
    student, teacher = logits(5), logits(7, seed=1)
    wider = torch.nn.functional.pad(student, (0, 9), value=-1e4)
    torch.testing.assert_close(
        universal_logit_distance(wider, teacher), universal_logit_distance(student, teacher)
    )


def test_micro_batches_under_one_denominator_add_up():
    student, teacher = logits(5), logits(7, seed=1)
    parts = [universal_logit_distance(student[r], teacher[r], denominator=4) for r in ([0], [1, 2, 3])]
    torch.testing.assert_close(sum(parts), universal_logit_distance(student, teacher))


@pytest.mark.parametrize("denominator", [None, 0, torch.tensor(0)])
def test_no_rows_is_zero_with_zero_gradient(denominator):
    student = logits(5, rows=0).requires_grad_()
    loss = universal_logit_distance(student, logits(7, rows=0), denominator=denominator)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.shape == (0, 5)


def test_rows_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 5\) and teacher \(1, 7\) differ"):
        universal_logit_distance(logits(5), logits(7, rows=1))


def test_half_precision_is_computed_in_float32():
    student, teacher = logits(5).bfloat16(), logits(7, seed=1).bfloat16()
    loss = universal_logit_distance(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, universal_logit_distance(student.float(), teacher.float()))


def test_gradcheck():
    student, teacher = logits(5, dtype=torch.float64), logits(7, seed=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: universal_logit_distance(s, teacher), (student.requires_grad_(),)
    )
