import pytest
import torch

from potstill.losses.hidden import cka, cosine_distance, fsp, hidden_cosine, hidden_mse, nst, pkd

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])


def drawn(width=5, dtype=torch.float32):
    """States of a student and of a teacher."""
    return torch.randn(2, 2, 4, width, generator=torch.Generator().manual_seed(0), dtype=dtype)


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


def test_hidden_cosine_equals_cosine_distance_of_kept_rows():
    student, teacher = drawn()
    kept = MASK.bool()
    torch.testing.assert_close(hidden_cosine(student, teacher, MASK), cosine_distance(student[kept], teacher[kept]))


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
    student, teacher = drawn(dtype=torch.float64)
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


def debiased_cka(student_ND, teacher_ND):
    """CKA from the estimate of HSIC by Song et al. 2012, equation 5, as it is printed."""

    def hsic(first, second):
        n = len(first)
        first, second = (x - x.diag().diag() for x in (first, second))
        ones = torch.ones(n, dtype=first.dtype)
        total = (first @ second).trace() + (ones @ first @ ones) * (ones @ second @ ones) / ((n - 1) * (n - 2))
        return (total - 2 / (n - 2) * (ones @ first @ second @ ones)) / (n * (n - 3))

    ours, theirs = student_ND @ student_ND.T, teacher_ND @ teacher_ND.T
    return hsic(ours, theirs) / (hsic(ours, ours) * hsic(theirs, theirs)).sqrt()


def test_cka_is_debiased():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 7, width, generator=generator, dtype=torch.float64) for width in (5, 9))
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 3 + [0] * 4])  # the last is too short
    expected = [1 - debiased_cka(student[row, :n], teacher[row, :n]) for row, n in ((0, 7), (1, 5))]
    assert cka(student, teacher, mask).item() == pytest.approx(sum(expected).item() / 3)


def test_cka_of_unrelated_states_is_near_0_however_wide_they_are():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(200, 12, width, generator=generator) for width in (64, 128))
    assert cka(student, teacher).item() == pytest.approx(1, abs=0.05)


def test_cka_ignores_rotation_scale_and_shift():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(4, 6, 8, generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=generator))
    for scale in (1e-3, 1.0, 1e3):
        assert cka(scale * (states @ rotation + 2), states).item() == pytest.approx(0, abs=1e-4)


def test_cka_gradcheck():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 6, width, generator=generator, dtype=torch.float64) for width in (3, 5))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    assert torch.autograd.gradcheck(lambda s: cka(s, teacher, mask), (student.requires_grad_(),))


@pytest.mark.parametrize("loss", [hidden_mse, hidden_cosine, lambda s, t, mask: fsp((s, s), (t, t), mask)])
def test_different_widths_are_rejected(loss):
    with pytest.raises(ValueError, match=r"student \(2, 4, 1\) and teacher \(2, 4, 5\)"):
        loss(drawn(width=1)[0], drawn(width=5)[1], MASK)
