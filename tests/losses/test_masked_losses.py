"""What all losses under an input mask have in common: padding, denominators, precision and gradients."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch

from potstill.losses.attention import attention_ce, attention_ce_mean, attention_mse, attention_mse_sum
from potstill.losses.hidden import cka, fsp, hidden_cosine, hidden_mse, nst
from potstill.losses.relations import relation_kl

MASK = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]])
LENGTHS = (5, 4)
COUNTS = {"positions": LENGTHS, "pairs": (25, 16), "sequences": (1, 1)}


@dataclass
class Case:
    """A loss of the tensors of a student and of a teacher, which are states (batch, length, width) or scores."""

    loss: Any
    counted: str
    scores: bool = False

    def draw(self, dtype=torch.float32):
        shape = (2, 3, 6, 6) if self.scores else (2, 6, 8)
        drawn = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
        return list(drawn[:2]), list(drawn[2:])

    def padded(self, tensor):
        kept = MASK.bool()
        kept = (kept[:, None, :, None] & kept[:, None, None, :]) if self.scores else kept[:, :, None]
        return (~kept).expand_as(tensor)

    def cut(self, tensors, row, length):
        rows = slice(row, row + 1)
        return [t[rows, :, :length, :length] if self.scores else t[rows, :length] for t in tensors]


def first(loss):
    return lambda student, teacher, *rest, **options: loss(student[0], teacher[0], *rest, **options)


def relation(student, teacher, *rest, **options):
    keys = {"student_keys_BLD": student[1], "teacher_keys_BLE": teacher[1]}
    return relation_kl(student[0], teacher[0], *rest, heads=2, **keys, **options)


CASES = {
    "hidden_mse": Case(first(hidden_mse), "positions"),
    "hidden_cosine": Case(first(hidden_cosine), "positions"),
    "fsp": Case(fsp, "sequences"),
    "nst": Case(nst, "pairs"),
    "cka": Case(first(cka), "sequences"),
    "attention_mse": Case(first(attention_mse), "pairs", scores=True),
    "attention_mse_sum": Case(first(attention_mse_sum), "pairs", scores=True),
    "attention_ce": Case(first(attention_ce), "positions", scores=True),
    "attention_ce_mean": Case(first(attention_ce_mean), "positions", scores=True),
    "relation_kl": Case(relation, "positions"),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.mark.parametrize("filler", [100.0, -1e4, math.nan, math.inf])
def test_padding_has_no_influence(case, filler):
    student, teacher = case.draw()
    expected = case.loss(student, teacher, MASK)
    padded = case.padded(student[0])
    student, teacher = ([t.masked_fill(padded, filler) for t in tensors] for tensors in (student, teacher))
    student[0].requires_grad_()
    found = case.loss(student, teacher, MASK)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert student[0].grad.isfinite().all()
    assert not student[0].grad[padded].any()
    assert student[0].grad[~padded].all()


def test_autocast_changes_nothing(case):
    student, teacher = case.draw()
    expected = case.loss(student, teacher, MASK)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(case.loss(student, teacher, MASK), expected)


def test_a_mask_equals_cutting_the_padding(case):
    student, teacher = case.draw()
    alone = [case.loss(case.cut(student, row, n), case.cut(teacher, row, n)) for row, n in enumerate(LENGTHS)]
    sizes = COUNTS[case.counted]
    expected = sum(value * size for value, size in zip(alone, sizes, strict=True)) / sum(sizes)
    torch.testing.assert_close(case.loss(student, teacher, MASK), expected)


def test_micro_batches_under_one_denominator_add_up(case):
    student, teacher = case.draw()
    part = partial(case.loss, denominator=sum(COUNTS[case.counted]))
    parts = [part([s[row] for s in student], [t[row] for t in teacher], MASK[row]) for row in ([0], [1])]
    torch.testing.assert_close(sum(parts), case.loss(student, teacher, MASK))


@pytest.mark.parametrize("name", [name for name in CASES if "_ce" not in name])
def test_equal_tensors_give_zero(name):
    student, _ = CASES[name].draw()
    assert CASES[name].loss(student, student, MASK).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("denominator", [None, 0, torch.tensor(0), 3.0])
def test_no_kept_position_is_zero_with_zero_gradient(case, denominator):
    student, teacher = case.draw()
    student[0].requires_grad_()
    loss = case.loss(student, teacher, torch.zeros_like(MASK), denominator=denominator)
    loss.backward()
    assert loss.item() == 0
    assert not student[0].grad.any()


def test_half_precision_is_computed_in_float32(case):
    student, teacher = ([t.bfloat16() for t in tensors] for tensors in case.draw())
    loss = case.loss(student, teacher, MASK)
    assert loss.dtype == torch.float32
    student, teacher = ([t.float() for t in tensors] for tensors in (student, teacher))
    torch.testing.assert_close(loss, case.loss(student, teacher, MASK))


def test_gradcheck(case):
    student, teacher = case.draw(torch.float64)
    assert torch.autograd.gradcheck(
        lambda one, two: case.loss((one, two), teacher, MASK) + 0 * two.sum(), [s.requires_grad_() for s in student]
    )
