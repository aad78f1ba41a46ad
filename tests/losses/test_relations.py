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


def test_zero_for_equal_relations_of_other_vectors():
    student, _ = vectors(4, dtype=torch.float64)
    rotation = torch.linalg.qr(vectors(4, dtype=torch.float64, seed=3)[0, 0])[0]
    found = relation_kl(student, student @ rotation, MASK, heads=1)
    assert found.item() == pytest.approx(0, abs=1e-12)
    assert relation_kl(student, 2 * student, MASK, heads=1).item() > 1e-3


@pytest.mark.parametrize("heads", [0, 3, 8])
def test_heads_must_divide_the_width(heads):
    student, teacher = vectors(4)
    with pytest.raises(ValueError, match=f"heads={heads} .*width 4"):
        relation_kl(student, teacher, heads=heads)


def test_keys_of_one_model_are_rejected():
    student, teacher = vectors(4)
    with pytest.raises(ValueError, match="keys"):
        relation_kl(student, teacher, heads=2, student_keys_BLD=student)


def test_different_lengths_are_rejected():
    student, teacher = vectors(4)
    with pytest.raises(ValueError, match=r"\(2, 1, 4\)"):
        relation_kl(student, teacher[:, :1], heads=2)
