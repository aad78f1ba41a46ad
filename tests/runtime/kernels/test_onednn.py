"""float32 products sent to oneDNN: the same figures, in a process of its own since they stay sent there."""

import os
import subprocess
import sys

import pytest
import torch

COMPARE = """
import torch
from potstill.runtime.kernels import onednn
onednn._is_faster = lambda: True
onednn.SMALLEST = 1
calls = []
product = onednn._product
onednn._product = lambda *operands: calls.append(1) or product(*operands)

def results(dtype):
    torch.manual_seed(0)
    layer = torch.nn.Linear(48, 80).to(dtype)
    rows = torch.randn(3, 7, 48, dtype=dtype, requires_grad=True)
    out = layer(rows)
    (out.square().sum() + (rows.flatten(0, 1).t() @ rows.flatten(0, 1)).sum()).backward()
    strided = torch.randn(80, 48, dtype=dtype)[::2, 1::3] @ torch.randn(9, 16, dtype=dtype).t()
    odd = torch.addmm(torch.ones(21, 80, dtype=dtype), rows[:, :, :48].flatten(0, 1), layer.weight.t(), alpha=2)
    return [t.detach().double() for t in (out, rows.grad, layer.weight.grad, layer.bias.grad, strided, odd)]

before = results(torch.float32)
assert onednn.use_onednn() and onednn.use_onednn()
after = results(torch.float32)
for one, other in zip(before, after):
    assert (one - other).abs().max() <= 1e-5 * one.abs().max(), (one - other).abs().max()
made = len(calls)
assert made >= 6, made
results(torch.float64), results(torch.bfloat16)
assert (torch.ones(3, 0) @ torch.ones(0, 2)).abs().sum() == 0
assert len(calls) == made
onednn.SMALLEST = 10**9
results(torch.float32)
assert len(calls) == made
try:
    torch.ones(4, 5) @ torch.ones(4, 5)
except RuntimeError as error:
    assert "cannot be multiplied" in str(error)
else:
    raise AssertionError
print("same")
"""


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not hasattr(torch.library, "get_kernel"),
    reason="a torch without oneDNN",
)
def test_products_are_the_same_and_other_types_stay_where_they_were():
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", COMPARE], capture_output=True, text=True, env=os.environ
    )
    assert done.stdout == "same\n", done.stderr
