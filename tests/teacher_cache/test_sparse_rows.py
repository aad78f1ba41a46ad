"""What is drawn from a teacher is right on average, and depends on nothing but the seed and the unit."""

import numpy as np
import pytest
import torch

from potstill.losses.soft_targets import kl_divergence
from potstill.losses.sparse import SampledRows
from potstill.losses.vocabulary import vocabulary_losses
from potstill.teacher_cache.sparse_rows import draw, top_of, uniforms

VOCABULARY = 20
OPTIONS = {"samples": 8, "power": 1.0, "temperature": 1.0, "seed": 3, "systematic": False}


def logits_of(rows, seed=0):
    """Of one peaked distribution, in another order of the tokens a row."""
    g = torch.Generator().manual_seed(seed)
    ranked = -2 * torch.arange(1, VOCABULARY + 1).log()
    return torch.stack([ranked[torch.randperm(VOCABULARY, generator=g)] for _ in range(rows)])


def dense(drawn, rows, samples):
    """(rows, vocab) estimates."""
    out = np.zeros((rows, VOCABULARY))
    out[np.repeat(np.arange(rows), drawn.counts), drawn.ids] = drawn.weights / samples
    return out


@pytest.mark.parametrize("systematic", [False, True])
@pytest.mark.parametrize(("power", "temperature"), [(1.0, 1.0), (1.0, 2.0), (0.7, 1.0), (1.2, 2.0)])
def test_the_estimate_is_unbiased(power, temperature, systematic):
    many = 20_000
    logits = logits_of(1)
    drawn = draw(
        logits.expand(many, -1), np.arange(many),
        **OPTIONS | {"power": power, "temperature": temperature, "systematic": systematic},
    )  # fmt: skip
    found = dense(drawn, many, 8)
    p = (logits[0].double() / temperature).softmax(0).numpy()
    error = found.std(axis=0) / np.sqrt(many)
    assert (np.abs(found.mean(axis=0) - p) < 4.5 * error).all()
    assert (found.std(axis=0) > 0).any()
    np.testing.assert_allclose(drawn.entropy, -(p * np.log(p)).sum())


def test_loss_and_gradient_are_unbiased():
    many, temperature = 20_000, 2.0
    teacher = logits_of(1)
    student = logits_of(1, seed=1) * 0.5
    drawn = draw(teacher.expand(many, -1), np.arange(many), **OPTIONS | {"power": 0.8, "temperature": 2.0})
    weights = torch.from_numpy(dense(drawn, many, 8))
    targets = SampledRows(
        torch.arange(VOCABULARY).expand(many, -1), weights, torch.from_numpy(drawn.entropy), 2.0, VOCABULARY
    )
    # The projection is the identity, so that the gradient of its input is that of the logits.
    rows = student.double().repeat(many, 1).requires_grad_()
    ours = vocabulary_losses(
        rows, torch.eye(VOCABULARY, dtype=torch.float64), None, targets=targets,
        weights={"ce": 1.0}, denominators={"ce": 1},
    )  # fmt: skip
    (gradients,) = torch.autograd.grad(ours.total, rows)
    one = student.double().requires_grad_()
    loss = kl_divergence(one, teacher.double(), temperature)
    (expected,) = torch.autograd.grad(loss, one)
    for found, wanted in ((ours.rows["ce"].unsqueeze(1), loss.detach().reshape(1, 1)), (gradients, expected)):
        error = found.std(dim=0) / many**0.5
        assert ((found.mean(dim=0) - wanted[0]).abs() < 4.5 * error).all()


def test_systematic_counts_deviate_by_less_than_one():
    logits = logits_of(200)
    drawn = draw(logits, np.arange(200), **OPTIONS | {"samples": 50, "systematic": True})
    gaps = 50 * (dense(drawn, 200, 50) - logits.softmax(1).numpy())
    assert np.abs(gaps).max() < 1 + 1e-4
    independent = draw(logits, np.arange(200), **OPTIONS | {"samples": 50})
    assert (50 * (dense(independent, 200, 50) - logits.softmax(1).numpy())).std() > 2 * gaps.std()


def test_draws_depend_only_on_the_item(monkeypatch):
    logits, units = logits_of(9), np.array([5, 1, 8, 0, 2, 7, 3, 6, 4])
    whole = dense(draw(logits, units, **OPTIONS), 9, 8)
    monkeypatch.setattr("potstill.teacher_cache.sparse_rows.BLOCK_BYTES", 8 * VOCABULARY * 2)
    np.testing.assert_array_equal(dense(draw(logits, units, **OPTIONS), 9, 8), whole)
    back = np.argsort(units)
    np.testing.assert_array_equal(dense(draw(logits[back], units[back], **OPTIONS), 9, 8), whole[back])
    other = dense(draw(logits, units, **OPTIONS | {"seed": 4}), 9, 8)
    assert (other != whole).any(axis=1).sum() > 5


def test_tokens_are_distinct_and_counts_add_up():
    drawn = draw(logits_of(30), np.arange(30), **OPTIONS)
    assert drawn.counts.sum() == len(drawn.ids) == len(drawn.weights)
    for ids, weights in zip(
        np.split(drawn.ids, np.cumsum(drawn.counts)[:-1]),
        np.split(drawn.weights, np.cumsum(drawn.counts)[:-1]),
        strict=True,
    ):
        assert (np.diff(ids) > 0).all()
        assert weights.sum() == 8
        assert (weights == weights.round()).all()


def test_impossible_tokens_are_never_drawn():
    logits = logits_of(50).index_fill(1, torch.tensor([0, 7, VOCABULARY - 1]), -torch.inf)
    drawn = draw(logits, np.arange(50), **OPTIONS | {"samples": 200, "power": 0.5})
    assert not set(drawn.ids) & {0, 7, VOCABULARY - 1}
    assert np.isfinite(drawn.weights).all()
    assert np.isfinite(drawn.entropy).all()


def test_no_rows():
    drawn = draw(logits_of(2)[:0], np.arange(0), **OPTIONS)
    assert [len(part) for part in drawn] == [0, 0, 0, 0]


def test_uniforms_are_uniform_and_uncorrelated():
    found = uniforms(7, np.arange(20_000), 5)
    assert found.min() >= 0
    assert found.max() < 1
    shares = np.histogram(found, bins=20, range=(0, 1))[0] / found.size
    assert np.abs(shares - 0.05).max() < 0.004
    assert np.abs(np.corrcoef(found, rowvar=False) - np.eye(5)).max() < 0.03
    assert abs(np.corrcoef(found[:-1, 0], found[1:, 0])[0, 1]) < 0.03
    assert abs(np.corrcoef(found[:, 0], uniforms(8, np.arange(20_000), 1)[:, 0])[0, 1]) < 0.03


def test_top():
    logits = logits_of(6)
    top = top_of(logits, 4, (1.0, 2.0))
    p = logits.double().softmax(1)
    torch.testing.assert_close(top.ids, p.topk(4).indices)
    torch.testing.assert_close(top.log_probs.double(), p.topk(4).values.log(), rtol=1e-6, atol=1e-6)
    for column, temperature in enumerate((1.0, 2.0)):
        rest = (p ** (1 / temperature)).scatter(1, top.ids, 0.0).sum(1)
        torch.testing.assert_close(top.log_tails[:, column].double(), rest.log(), rtol=1e-5, atol=1e-5)
    everything = top_of(logits, 100, (1.0,))
    assert everything.ids.shape == (6, VOCABULARY)
    assert everything.log_tails.isneginf().all()
