import sys
from functools import partial

import numpy as np
import pytest
import torch

from potstill.errors import ConfigError
from potstill.losses import transport
from potstill.losses.hidden import hidden_mse
from potstill.losses.transport import earth_movers_distance, layer_costs, transport_plan

pytest.importorskip("ot", reason="POT is not installed")


def drawn(students, teachers, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.rand(students, teachers, generator=generator, dtype=torch.float64),
        torch.rand(students, generator=generator, dtype=torch.float64) + 0.1,
        torch.rand(teachers, generator=generator, dtype=torch.float64) + 0.1,
    )


def linear_program(costs, student, teacher):
    """The least cost by scipy's general solver."""
    from scipy.optimize import linprog

    n_students, n_teachers = costs.shape
    rows = np.kron(np.eye(n_students), np.ones(n_teachers))
    columns = np.kron(np.ones(n_students), np.eye(n_teachers))
    found = linprog(
        costs.ravel(),
        A_eq=np.vstack([rows, columns]),
        b_eq=np.concatenate([student, teacher]),
        bounds=(0, None),
    )
    assert found.success
    return found.fun


@pytest.mark.parametrize(("students", "teachers"), [(1, 1), (1, 4), (2, 3), (3, 3), (4, 12)])
@pytest.mark.parametrize("weighted", [False, True])
def test_least_cost_of_all_plans(students, teachers, weighted):
    costs, student, teacher = drawn(students, teachers)
    if not weighted:
        student, teacher = torch.ones_like(student), torch.ones_like(teacher)
    plan = transport_plan(costs, *((student, teacher) if weighted else ()))
    student, teacher = student / student.sum(), teacher / teacher.sum()
    torch.testing.assert_close(plan.sum(dim=1), student)
    torch.testing.assert_close(plan.sum(dim=0), teacher)
    assert (plan >= 0).all()
    expected = linear_program(costs.numpy(), student.numpy(), teacher.numpy())
    assert earth_movers_distance(costs, plan).item() == pytest.approx(expected, rel=1e-9)


def test_gradient_goes_through_the_costs():
    costs, student, teacher = drawn(2, 3)
    costs.requires_grad_()
    plan = transport_plan(costs, student, teacher)
    assert not plan.requires_grad
    earth_movers_distance(costs, plan).backward()
    torch.testing.assert_close(costs.grad, plan)


def test_the_gradient_is_that_of_the_least_cost():
    costs, student, teacher = drawn(2, 3)

    def distance(changed):
        return earth_movers_distance(changed, transport_plan(changed, student, teacher))

    assert torch.autograd.gradcheck(distance, (costs.requires_grad_(),))


def test_plan_keeps_dtype_and_ignores_scale():
    costs, *weights = drawn(3, 4)
    plan = transport_plan(costs.float(), *weights)
    assert plan.dtype == torch.float32
    torch.testing.assert_close(transport_plan(1e-3 * costs.float(), *weights), plan)


def test_costs_of_layers_with_their_mask():
    generator = torch.Generator().manual_seed(0)
    teachers = list(torch.randn(3, 2, 4, 5, generator=generator))
    students = [teachers[2].clone().requires_grad_(), teachers[0].clone().requires_grad_()]
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    costs = layer_costs(students, teachers, partial(hidden_mse, mask_BL=mask))
    assert costs.shape == (2, 3)
    assert costs[0, 2].item() == costs[1, 0].item() == 0
    torch.testing.assert_close(costs[0, 1], hidden_mse(students[0], teachers[1], mask))
    earth_movers_distance(costs, transport_plan(costs)).backward()
    for student in students:
        assert student.grad.isfinite().all()
        assert not student.grad[~mask.bool()].any()


def test_equal_layers_cost_nothing():
    costs = 1 - torch.eye(3)
    plan = transport_plan(costs)
    assert earth_movers_distance(costs, plan).item() == 0
    torch.testing.assert_close(plan, torch.eye(3) / 3)


@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
def test_a_cost_that_is_no_number_reaches_the_loss(fault):
    costs = torch.ones(2, 3)
    costs[1, 1] = fault
    assert not earth_movers_distance(costs, transport_plan(costs)).isfinite()


def test_absent_library_is_named(monkeypatch):
    monkeypatch.setattr(transport.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ConfigError, match=r"pip install 'potstill\[emd\]'"):
        transport_plan(torch.ones(2, 2))
