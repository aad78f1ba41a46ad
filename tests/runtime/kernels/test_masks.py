"""Masks of dropout: as likely as they should be, a function of the seed, and for all who ask for one."""

import os
import subprocess
import sys

import pytest
import torch

CHECK = """
import torch
from torch import nn
from torch.nn.functional import dropout, scaled_dot_product_attention
from potstill.runtime.kernels import masks
own = torch.empty(10).bernoulli_(0.5)
assert masks.use_fast_masks() and masks.use_fast_masks()
masks.BLOCK = 1000
drawn = []
draw = masks.np.random.SFC64
masks.np.random.SFC64 = lambda seed: drawn.append(seed) or draw(seed)

def mask(size, p, dtype=torch.float32, seed=1):
    torch.manual_seed(seed)
    return torch.empty(size, dtype=dtype).bernoulli_(p)

for p in (0.0, 1e-4, 0.1, 0.5, 0.9, 1.0):
    found = mask((200, 5001), p, torch.float64)
    assert set(found.unique().tolist()) <= {0.0, 1.0}
    assert abs(found.mean() - p) <= 5 * (p * (1 - p) / found.numel()) ** 0.5, (p, found.mean())
big = mask((1000, 1000), 0.5)
ones = [big.mean(0), big.mean(1), (big[1:] * big[:-1]).mean(), (big[:, 1:] * big[:, :-1]).mean()]
assert all((one - 0.5).abs().max() < 0.1 for one in ones[:2]) and all(abs(one - 0.25) < 0.003 for one in ones[2:])

assert torch.equal(mask(999, 0.5), mask(999, 0.5)) and not torch.equal(mask(999, 0.5), mask(999, 0.5, seed=2))
generator = torch.Generator().manual_seed(3)
state = torch.get_rng_state()
one = torch.empty(99).bernoulli_(0.5, generator=generator)
assert torch.equal(torch.get_rng_state(), state)
assert torch.equal(one, torch.empty(99).bernoulli_(0.5, generator=torch.Generator().manual_seed(3)))
torch.manual_seed(0)
pair = [torch.empty(99).bernoulli_(0.5) for _ in range(2)]
assert not torch.equal(*pair)

for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool, torch.int64):
    assert torch.equal(mask(5000, 0.3, dtype).double(), mask(5000, 0.3).double()), dtype
strided = torch.full((60, 70), 7.0)
torch.manual_seed(1)
strided.t()[::2].bernoulli_(0.5)
assert torch.equal(strided[:, ::2].t(), mask((35, 60), 0.5)) and (strided[:, 1::2] == 7).all()
assert mask((0, 3), 0.5).shape == (0, 3)
for wrong in (-0.1, 1.1, float("nan")):
    try:
        mask(3, wrong)
    except RuntimeError as error:
        assert "expects p to be in [0, 1]" in str(error)
    else:
        raise AssertionError(wrong)

drawn.clear()
rows = torch.ones(40, 50, requires_grad=True)
kept = dropout(rows, 0.2)
kept.sum().backward()
assert len(drawn) == 1 and torch.equal(rows.grad, kept.detach()) and set(kept.unique().tolist()) == {0.0, 1.25}
heads = torch.randn(2, 3, 8, 4)
scaled_dot_product_attention(heads, heads, heads, dropout_p=0.5)
nn.GRU(4, 4, num_layers=2, dropout=0.5)(heads[0])
assert len(drawn) == 3, len(drawn)
print("same")
"""


@pytest.mark.skipif(not hasattr(torch.library, "get_kernel"), reason="a torch whose kernels stay its own")
def test_masks_are_as_likely_as_asked_and_a_function_of_the_seed():
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", CHECK], capture_output=True, text=True, env=os.environ
    )
    assert done.stdout == "same\n", done.stderr
