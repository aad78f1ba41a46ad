import pytest
import torch

from potstill.losses.hidden import cosine_distance


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
