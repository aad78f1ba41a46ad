from types import SimpleNamespace

import pytest
import torch

from potstill.training.gradient_shares import gradient_shares


def test_shares_are_those_of_the_norms_of_the_whole_step():
    weight, other = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(1))

    def term(factor):
        return lambda micro: SimpleNamespace(loss=factor * (weight * micro).sum())

    micro = [torch.tensor([1.0, 0.0]), torch.tensor([2.0, 4.0])]  # the gradients add up to (3, 4)
    shares = gradient_shares([weight, other], micro, {"a": term(1.0), "b": term(3.0)}, seed=0)
    assert shares == pytest.approx({"a": 0.25, "b": 0.75})
    assert weight.grad is None
    nothing = {"a": lambda _: SimpleNamespace(loss=torch.zeros(()))}
    assert gradient_shares([weight], micro, nothing, seed=0) == {"a": 0.0}


def test_every_term_meets_the_same_dropout():
    weight = torch.nn.Parameter(torch.ones(50))

    def term(micro):
        return SimpleNamespace(loss=torch.nn.functional.dropout(weight, 0.5).sum())

    assert gradient_shares([weight], [None], {"a": term, "b": term}, seed=3) == {"a": 0.5, "b": 0.5}
