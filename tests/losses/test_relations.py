import math

import pytest
import torch

from potstill.losses.relations import relation_kl

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])


def vectors(width, count=2, dtype=torch.float32, seed=0):
    return torch.randn(count, 2, 4, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plain(student, teacher, student_keys, teacher_keys, heads):
    """One sequence without padding, head by head."""
    total = 0.0
    for head in range(heads):
        logs = []
        for queries, keys in ((student, student_keys), (teacher, teacher_keys)):
            size = queries.shape[-1] // heads
            part = slice(head * size, (head + 1) * size)
            logs.append((queries[:, part] @ keys[:, part].T / math.sqrt(size)).log_softmax(-1))
        total += torch.nn.functional.kl_div(*logs, reduction="batchmean", log_target=True)
    return total / heads


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("with_keys", [False, True])
def test_equals_the_plain_definition(heads, with_keys):
    (student, student_keys), (teacher, teacher_keys) = vectors(8), vectors(12, seed=1)
    keys = {"student_keys_BLD": student_keys, "teacher_keys_BLE": teacher_keys} if with_keys else {}
    lengths = (3, 2)
    expected = sum(
        length
        * plain(
            student[b, :length],
            teacher[b, :length],
            (student_keys if with_keys else student)[b, :length],
            (teacher_keys if with_keys else teacher)[b, :length],
            heads,
        )
        for b, length in enumerate(lengths)
    ) / sum(lengths)
    torch.testing.assert_close(relation_kl(student, teacher, MASK, heads=heads, **keys), expected)


@pytest.mark.parametrize("filler", [50.0, math.nan])
def test_padding_has_no_influence(filler):
    (student, student_keys), (teacher, teacher_keys) = vectors(4), vectors(6, seed=1)

    def loss(*four):
        return relation_kl(
            four[0], four[1], MASK, heads=2, student_keys_BLD=four[2], teacher_keys_BLE=four[3]
        )

    expected = loss(student, teacher, student_keys, teacher_keys)
    padded = ~MASK.bool().unsqueeze(-1)
    filled = [t.masked_fill(padded, filler) for t in (student, teacher, student_keys, teacher_keys)]
    leaf = filled[0].requires_grad_()
    found = loss(leaf, *filled[1:])
    torch.testing.assert_close(found, expected)
    found.backward()
    assert leaf.grad.isfinite().all()
    assert not leaf.grad[~MASK.bool()].any()
    assert leaf.grad[MASK.bool()].any()


def test_zero_for_equal_relations_of_other_vectors():
    student, _ = vectors(4, dtype=torch.float64)
    rotation = torch.linalg.qr(vectors(4, dtype=torch.float64, seed=3)[0, 0])[0]
    found = relation_kl(student, student @ rotation, MASK, heads=1)
    assert found.item() == pytest.approx(0, abs=1e-12)
    assert relation_kl(student, 2 * student, MASK, heads=1).item() > 1e-3


def test_micro_batches_under_one_denominator_add_up():
    student, teacher = vectors(4)
    parts = [relation_kl(student[b], teacher[b], MASK[b], heads=2, denominator=5) for b in ([0], [1])]
    torch.testing.assert_close(sum(parts), relation_kl(student, teacher, MASK, heads=2))


@pytest.mark.parametrize("denominator", [None, 0, torch.tensor(0)])
def test_no_kept_position_is_zero_with_zero_gradient(denominator):
    student, teacher = vectors(4)
    loss = relation_kl(
        student.requires_grad_(), teacher, torch.zeros_like(MASK), heads=2, denominator=denominator
    )
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.any()


def test_half_precision_is_computed_in_float32():
    student, teacher = vectors(4).bfloat16()
    assert relation_kl(student, teacher, MASK, heads=2).dtype == torch.float32


@pytest.mark.parametrize("heads", [0, 3, 8])
def test_heads_that_do_not_divide_are_refused(heads):
    student, teacher = vectors(4)
    with pytest.raises(ValueError, match=f"heads={heads} does not divide the width 4"):
        relation_kl(student, teacher, heads=heads)


def test_keys_of_one_model_are_refused():
    student, teacher = vectors(4)
    with pytest.raises(ValueError, match="keys of one model only"):
        relation_kl(student, teacher, heads=2, student_keys_BLD=student)


def test_lengths_that_differ_are_refused():
    student, teacher = vectors(4)
    with pytest.raises(ValueError, match="differ"):
        relation_kl(student, teacher[:, :1], heads=2)


def test_gradcheck():
    (student, keys), (teacher, teacher_keys) = (vectors(4, dtype=torch.float64, seed=s) for s in (0, 1))
    assert torch.autograd.gradcheck(
        lambda s, k: relation_kl(
            s, teacher, MASK, heads=2, student_keys_BLD=k, teacher_keys_BLE=teacher_keys
        ),
        (student.requires_grad_(), keys.requires_grad_()),
    )
