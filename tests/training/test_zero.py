"""One process; two are in tests/integration/test_data_parallel.py."""

import contextlib
import importlib.util
import math
import os
import shutil

import pytest
import torch
from torch import nn

from potstill.training.zero import Zero, unlock_compiler

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None or shutil.which("g++") is None,
    reason="deepspeed or a C++ compiler is not installed",
)


def test_the_lock_of_a_killed_compiler_is_removed_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    old, young, foreign = (tmp_path / name / "lock" for name in ("py/deepspeed_a", "py/deepspeed_b", "py/other"))
    for lock in (old, young, foreign):
        lock.parent.mkdir(parents=True)
        lock.touch()
    for lock in (old, foreign):
        os.utime(lock, (0, 0))
    unlock_compiler()
    assert [lock.exists() for lock in (old, young, foreign)] == [False, True, True]


class Pair(nn.Module):
    """Blocks, and a head outside of them; sizes do not divide by anything."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(5, 5)]), "head": nn.Linear(5, 3)})

    def share_alone(self, inputs):
        return torch.nn.functional.linear(self.student["blocks"][0](inputs), self.student["head"].weight).sum()


@pytest.fixture(autouse=True, scope="module")  # DeepSpeed keeps what it has found of it
def group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def optimizer_of(pair):
    flat, other = ([p for p in pair.parameters() if (p.dim() == 1) is wanted] for wanted in (True, False))
    return torch.optim.AdamW([{"params": flat, "weight_decay": 0.0}, {"params": other}], lr=0.1)


def given(pair, stage):
    return Zero(pair, optimizer_of(pair), stage=stage, clip=1.0, local_rank=0, precision=contextlib.nullcontext)


def inputs(number):
    return torch.arange(10.0).view(2, 5) / 10 - number


def step(pair, zero, number):
    zero.exchange(True)
    zero.backward(pair.share_alone(inputs(number)))
    return float(zero.step())


@pytest.mark.parametrize("stage", [2, 3])
def test_steps_are_plain_ones_and_go_on_from_what_was_saved(stage):
    """Two parameter groups, clipping, a weight that is read by no module's own forward pass."""
    plain = Pair()
    optimizer, norms = optimizer_of(plain), []
    for number in range(3):
        plain.share_alone(inputs(number)).backward()
        norms.append(float(nn.utils.clip_grad_norm_(plain.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad()

    first, second = Pair(), Pair()
    zero = given(first, stage)
    found = [step(first, zero, number) for number in range(2)]
    saved = zero.optimizer_state()
    zero.close()
    second.load_state_dict(first.state_dict())
    zero = given(second, stage)
    zero.load_optimizer_state(saved)
    found.append(step(second, zero, 2))
    assert found == pytest.approx(norms, rel=1e-5)

    wanted, got = optimizer.state_dict(), zero.optimizer_state()
    zero.close()
    torch.testing.assert_close(second.state_dict(), plain.state_dict())
    assert [group["params"] for group in got["param_groups"]] == [group["params"] for group in wanted["param_groups"]]
    used = [number for number, state in wanted["state"].items() if state["exp_avg"].any()]
    assert used
    for number in used:
        torch.testing.assert_close(got["state"][number], wanted["state"][number])


def test_a_step_whose_gradient_is_no_number_is_left_out():
    pair, before = Pair(), Pair().state_dict()
    zero = given(pair, stage=2)
    zero.exchange(True)
    zero.backward(pair.share_alone(inputs(0)) * math.nan)
    assert math.isnan(float(zero.step()))
    assert math.isfinite(step(pair, zero, 1))
    zero.close()
    after = pair.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any((after[name] != value).any() for name, value in before.items())
