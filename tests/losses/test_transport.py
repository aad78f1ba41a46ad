import importlib.util
import sys
from functools import partial

import numpy as np
import pytest
import torch

from potstill.errors import PackageError
from potstill.losses.hidden import hidden_mse
from potstill.losses.transport import earth_movers_distance, layer_costs, transport_plan

pytest.importorskip("ot", reason="POT is not installed")


def drawn(students, teachers):
    return torch.rand(students, teachers, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def linear_program(costs):
    """The least cost by scipy's general solver."""
    from scipy.optimize import linprog

    n_students, n_teachers = costs.shape
    rows = np.kron(np.eye(n_students), np.ones(n_teachers))
    columns = np.kron(np.ones(n_students), np.eye(n_teachers))
    sums = np.repeat([1 / n_students, 1 / n_teachers], [n_students, n_teachers])
    found = linprog(costs.ravel(), A_eq=np.vstack([rows, columns]), b_eq=sums, bounds=(0, None))
    assert found.success
    return found.fun


@pytest.mark.parametrize(("students", "teachers"), [(1, 1), (1, 4), (2, 3), (3, 3), (4, 12)])
def test_least_cost_of_all_plans(students, teachers):
    costs = drawn(students, teachers)
    plan = transport_plan(costs)
    torch.testing.assert_close(plan.sum(dim=1), torch.full_like(costs[:, 0], 1 / students))
    torch.testing.assert_close(plan.sum(dim=0), torch.full_like(costs[0], 1 / teachers))
    assert (plan >= 0).all()
    assert earth_movers_distance(costs, plan).item() == pytest.approx(linear_program(costs.numpy()), rel=1e-9)


def test_the_gradient_is_that_of_the_least_cost():
    costs = drawn(2, 3).requires_grad_()
    plan = transport_plan(costs)
    assert not plan.requires_grad
    earth_movers_distance(costs, plan).backward()
    torch.testing.assert_close(costs.grad, plan)
    assert torch.autograd.gradcheck(lambda changed: earth_movers_distance(changed, transport_plan(changed)), (costs,))


def test_plan_keeps_dtype_and_ignores_scale():
    costs = drawn(3, 4).float()
    plan = transport_plan(costs)
    assert plan.dtype == torch.float32
    torch.testing.assert_close(transport_plan(1e-3 * costs), plan)


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


@pytest.mark.parametrize("error", [torch.nan, torch.inf])
def test_a_cost_that_is_not_finite_reaches_the_loss(error):
    costs = torch.ones(2, 3)
    costs[1, 1] = error
    assert not earth_movers_distance(costs, transport_plan(costs)).isfinite()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(PackageError, match=r"^loss=emd: ot .*potstill\[emd\]"):
        transport_plan(torch.ones(2, 2))
