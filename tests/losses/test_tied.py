"""A tied weight's gradient is that of autograd, whatever reads it."""

import pytest
import torch

from potstill.losses.tied import TiedGradient, embed_tied
from potstill.losses.vocabulary import vocabulary_losses

IDS = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
LABELS = torch.tensor([1, -100, 2, 3, 5, -100, 7, 0])


def gradients(tied, *, embeds=1, passes=1, padding=1, scale=1.0):
    """Of a tied weight, and of a layer between its two uses."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(11, 6))
    layer = torch.nn.Linear(6, 6)
    shared = TiedGradient() if tied else None
    hidden = 0
    for _ in range(embeds):
        rows = (
            embed_tied(weight, IDS, padding, shared)
            if shared is not None
            else torch.nn.functional.embedding(IDS, weight, padding_idx=padding)
        )
        hidden = layer(rows + hidden).tanh()
    hidden = hidden.flatten(0, 1)
    loss = hidden.square().mean()
    for _ in range(passes):
        arguments = {"labels_N": LABELS, "weights": {"nll": 1.0}, "denominators": {"nll": 6.0}}
        loss = loss + vocabulary_losses(hidden, weight, None, tied=shared, **arguments).total
    (scale * loss).backward()
    assert shared is None or shared.take() is None
    return weight.grad, layer.weight.grad


@pytest.mark.parametrize(
    "settings",
    [{}, {"embeds": 2}, {"passes": 2}, {"passes": 0}, {"padding": None}, {"scale": 0.5}, {"embeds": 2, "passes": 2}],
    ids=str,
)
def test_the_gradient_is_that_of_autograd(settings):
    for one, other in zip(gradients(True, **settings), gradients(False, **settings), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_of_several_steps_add_up():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(11, 6))
    sums = []
    for _ in range(2):
        shared = TiedGradient()
        hidden = embed_tied(weight, IDS, None, shared).flatten(0, 1)
        arguments = {"labels_N": LABELS, "weights": {"nll": 1.0}, "denominators": {"nll": 6.0}}
        vocabulary_losses(hidden, weight, None, tied=shared, **arguments).total.backward()
        sums.append(weight.grad.clone())
    torch.testing.assert_close(sums[1], 2 * sums[0])
