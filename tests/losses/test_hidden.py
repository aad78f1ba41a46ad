import math

import pytest
import torch

from potstill.losses.hidden import cosine_distance, fsp, hidden_cosine, hidden_mse, nst, pkd

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
# Each takes two layers of student and of teacher, and what one denominator counts under the mask.
MASKED = {
    "mse": (lambda s, t, *a, **k: hidden_mse(s[0], t[0], *a, **k), 5),
    "cosine": (lambda s, t, *a, **k: hidden_cosine(s[0], t[0], *a, **k), 5),
    "fsp": (fsp, 2),
    "nst": (nst, 13),
}


def layers(width=5, dtype=torch.float32, seed=0):
    """Two layers of a student and two of a teacher."""
    drawn = torch.randn(4, 2, 4, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return (drawn[0], drawn[1]), (drawn[2], drawn[3])


def part(pair, index):
    return tuple(states[index] for states in pair)


def test_known_angles():
    student = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    teacher = torch.tensor([[5.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    torch.testing.assert_close(cosine_distance(student, teacher), torch.tensor(1.0))
    torch.testing.assert_close(cosine_distance(student, teacher, denominator=1), torch.tensor(3.0))


def test_equals_the_cosine_embedding_loss():
    student, teacher = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.cosine_embedding_loss(student, teacher, torch.ones(6))
    torch.testing.assert_close(cosine_distance(student, teacher), expected)


@pytest.mark.parametrize("denominator", [None, 0, torch.tensor(0), 3.0])
def test_no_rows_is_zero_with_zero_gradient(denominator):
    student = torch.randn(0, 4, requires_grad=True)
    loss = cosine_distance(student, torch.randn(0, 4), denominator=denominator)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.shape == (0, 4)


def test_a_zero_vector_gives_no_nan():
    student = torch.zeros(1, 4, requires_grad=True)
    loss = cosine_distance(student, torch.ones(1, 4))
    loss.backward()
    assert loss.item() == 1
    assert student.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    student, teacher = torch.randn(2, 6, 9).bfloat16()
    assert cosine_distance(student, teacher).dtype == torch.float32


def test_gradcheck():
    student, teacher = torch.randn(2, 4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: cosine_distance(s, teacher), (student.requires_grad_(),))


@pytest.mark.parametrize("filler", [100.0, math.nan, math.inf])
@pytest.mark.parametrize("name", MASKED)
def test_padding_has_no_influence(name, filler):
    loss, _ = MASKED[name]
    student, teacher = layers()
    expected = loss(student, teacher, MASK)
    padded = ~MASK.bool().unsqueeze(-1)
    student, teacher = (tuple(s.masked_fill(padded, filler) for s in pair) for pair in (student, teacher))
    student[0].requires_grad_()
    found = loss(student, teacher, MASK)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert student[0].grad.isfinite().all()
    assert not student[0].grad[~MASK.bool()].any()
    assert student[0].grad[MASK.bool()].all()


@pytest.mark.parametrize("name", MASKED)
def test_masked_is_as_if_cut_off(name):
    loss, _ = MASKED[name]
    student, teacher = layers()
    sizes = {"fsp": (1, 1), "nst": (9, 4)}.get(name, (3, 2))
    alone = [
        loss(part(student, (slice(b, b + 1), slice(n))), part(teacher, (slice(b, b + 1), slice(n))))
        for b, n in ((0, 3), (1, 2))
    ]
    expected = sum(value * size for value, size in zip(alone, sizes, strict=True)) / sum(sizes)
    torch.testing.assert_close(loss(student, teacher, MASK), expected)


@pytest.mark.parametrize("name", MASKED)
def test_micro_batches_under_one_denominator_add_up(name):
    loss, count = MASKED[name]
    student, teacher = layers()
    parts = [loss(part(student, b), part(teacher, b), MASK[b], denominator=count) for b in ([0], [1])]
    torch.testing.assert_close(sum(parts), loss(student, teacher, MASK))


@pytest.mark.parametrize("name", MASKED)
def test_equal_states_give_zero(name):
    student, _ = layers()
    assert MASKED[name][0](student, student, MASK).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("denominator", [None, 0, torch.tensor(0), 3.0])
@pytest.mark.parametrize("name", MASKED)
def test_no_kept_position_is_zero_with_zero_gradient(name, denominator):
    student, teacher = layers()
    student[0].requires_grad_()
    loss = MASKED[name][0](student, teacher, torch.zeros_like(MASK), denominator=denominator)
    loss.backward()
    assert loss.item() == 0
    assert not student[0].grad.any()


@pytest.mark.parametrize("name", MASKED)
def test_masked_losses_are_computed_in_float32(name):
    student, teacher = ([s.bfloat16() for s in pair] for pair in layers())
    loss = MASKED[name][0](student, teacher, MASK)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(
        loss, MASKED[name][0]([s.float() for s in student], [t.float() for t in teacher], MASK)
    )


@pytest.mark.parametrize("name", MASKED)
def test_gradcheck_of_masked_losses(name):
    (first, second), teacher = layers(dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a: MASKED[name][0]((a, second), teacher, MASK), (first.requires_grad_(),)
    )


def test_hidden_cosine_is_that_of_the_kept_rows():
    (student, _), (teacher, _) = layers()
    kept = MASK.bool()
    torch.testing.assert_close(
        hidden_cosine(student, teacher, MASK), cosine_distance(student[kept], teacher[kept])
    )


def test_hidden_mse_is_a_mean_over_the_width():
    student, teacher = torch.zeros(1, 2, 4), torch.tensor([[[2.0] * 4, [100.0] * 4]])
    assert hidden_mse(student, teacher, torch.tensor([[1, 0]])).item() == 4


def test_pkd_reads_the_direction_of_the_first_position():
    student = torch.tensor([[[3.0, 0.0], [9.0, 9.0]], [[0.0, 2.0], [9.0, 9.0]]], requires_grad=True)
    teacher = torch.tensor([[[5.0, 0.0], [1.0, 7.0]], [[4.0, 0.0], [3.0, 7.0]]])
    loss = pkd(student, teacher)
    assert loss.item() == pytest.approx((0 + 2) / 2)
    assert pkd(student, teacher, denominator=4).item() == pytest.approx(0.5)
    loss.backward()
    assert not student.grad[:, 1].any()
    assert pkd(student, 3 * student).item() == pytest.approx(0, abs=1e-12)


def test_pkd_of_no_sequences():
    student = torch.randn(0, 2, 4, requires_grad=True)
    loss = pkd(student, torch.randn(0, 2, 4))
    loss.backward()
    assert loss.item() == 0


def test_pkd_gradcheck():
    (student, _), (teacher, _) = layers(dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: pkd(s, teacher), (student.requires_grad_(),))


def test_fsp_by_hand():
    first, second = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[3.0, 1.0], [5.0, 0.0]]])
    # Flows (1 * 3 + 2 * 5) / 2 and (1 * 1 + 2 * 0) / 2, against a teacher's of zero.
    teacher = (torch.zeros(1, 2, 1), torch.zeros(1, 2, 2))
    assert fsp((first, second), teacher).item() == pytest.approx((6.5**2 + 0.5**2) / 2)


def test_nst_by_hand():
    student = (torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[3.0, 4.0]]]))
    teacher = (torch.tensor([[[1.0]]]), torch.tensor([[[2.0]]]))  # of another width
    assert nst(student, teacher).item() == pytest.approx((2 * 3 / 2 - 2) ** 2)


@pytest.mark.parametrize("name", ["mse", "cosine", "fsp"])
def test_widths_that_differ_are_refused(name):
    student, _ = layers(width=1)
    _, teacher = layers(width=5)
    with pytest.raises(ValueError, match="project the student's first"):
        MASKED[name][0](student, teacher, MASK)
