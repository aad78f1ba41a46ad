"""Losses against sparse targets equal their plain definitions, and the whole divergence where nothing is left out."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import linear

from potstill.losses.soft_targets import cross_entropy, kl_divergence
from potstill.losses.sparse import SampledRows, TopRows, softened
from potstill.losses.tied import TiedGradient
from potstill.losses.vocabulary import vocabulary_losses

WEIGHTS = {"ce": 0.7, "nll": 0.3}
DENOMINATORS = {"ce": 11.0, "nll": 3.0}


def make(n=6, vocab=29, width=5, extra=0, bias=True, dtype=torch.float64, seed=0) -> dict:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype)

    labels = torch.randint(vocab, (n,), generator=g)
    return {
        "student": normal(n, width).requires_grad_(),
        "weight": normal(vocab + extra, width).requires_grad_(),
        "bias": normal(vocab + extra).requires_grad_() if bias else None,
        "teacher": 2 * normal(n, vocab),
        "labels": labels.masked_fill(torch.rand(n, generator=g) < 0.5, -100),
    }


def top_of(logits: Tensor, k: int, temperature: float, tail: bool = True) -> TopRows:
    """By the definition: the softened distribution, of which the tail is the sum of what is not kept."""
    q, ids = (logits / temperature).softmax(-1), logits.topk(k).indices
    kept = q.gather(1, ids)
    if not tail:
        return TopRows(ids, (kept / kept.sum(1, keepdim=True)).log(), None, temperature, logits.shape[1])
    rest = q.scatter(1, ids, 0.0).sum(1)
    return TopRows(ids, kept.log(), rest.log(), temperature, logits.shape[1])


def sampled_of(logits: Tensor, n: int, temperature: float, seed: int = 0) -> SampledRows:
    p = (logits / temperature).softmax(-1)
    g = torch.Generator().manual_seed(seed)
    ids = torch.multinomial(p.sqrt(), n, replacement=True, generator=g)  # a token may come twice
    proposal = p.sqrt() / p.sqrt().sum(1, keepdim=True)
    weights = (p / proposal).gather(1, ids) / n
    return SampledRows(ids, weights, torch.special.entr(p).sum(1), temperature, logits.shape[1])


def plain(logits: Tensor, targets: TopRows | SampledRows) -> Tensor:
    """The sum over rows of `ce`, with autograd and whole distributions."""
    temperature = targets.temperature
    q = (logits[:, : targets.vocabulary_size] / temperature).softmax(-1)
    if isinstance(targets, SampledRows):
        estimate = -(targets.weights * q.log().gather(1, targets.ids)).sum(1) - targets.entropy
        return temperature**2 * estimate.sum()
    kept, p = q.gather(1, targets.ids), targets.log_probs.exp()
    if targets.log_tail is None:
        kept = kept / kept.sum(1, keepdim=True)
        return temperature**2 * (p * (p / kept).log()).sum()
    rest = q.scatter(1, targets.ids, 0.0).sum(1)
    tail = targets.log_tail.exp()
    return temperature**2 * ((p * (p / kept).log()).sum() + (tail * (tail / rest).log()).sum())


def fused(x: dict, targets, weights=WEIGHTS, **options):
    return vocabulary_losses(
        x["student"], x["weight"], x["bias"], targets=targets, labels_N=x["labels"],
        weights=weights, denominators=DENOMINATORS, **options,
    )  # fmt: skip


def gradients(total: Tensor, x: dict) -> list[Tensor]:
    leaves = [t for t in (x["student"], x["weight"], x["bias"]) if t is not None]
    return list(torch.autograd.grad(total, leaves))


TARGETS = {
    "top": top_of,
    "top without tail": lambda logits, k, t: top_of(logits, k, t, tail=False),
    "sampled": sampled_of,
}


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(TARGETS)),
    n=st.integers(1, 9),
    k=st.integers(1, 12),
    extra=st.sampled_from([0, 3]),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 8.0]),
    weights=st.sampled_from([WEIGHTS, {"ce": 1.0}, {"nll": 2.0}]),
    chunk_rows=st.integers(1, 9),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_equals_the_definition(kind, n, k, extra, temperature, weights, chunk_rows, bias, seed):
    x = make(n, vocab=13, extra=extra, bias=bias, seed=seed)
    targets = TARGETS[kind](x["teacher"], k, temperature)
    ours = fused(x, targets, weights, chunk_rows=chunk_rows)
    logits = linear(x["student"], x["weight"], x["bias"])
    terms = {"ce": plain(logits, targets), "nll": cross_entropy(logits, x["labels"], denominator=1)}
    expected = sum(weights[term] / DENOMINATORS[term] * terms[term] for term in weights)
    torch.testing.assert_close(ours.total, expected)
    for term in weights:
        torch.testing.assert_close(ours.sums[term], terms[term].detach())
    for mine, other in zip(gradients(ours.total, x), gradients(expected, x), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("kind", TARGETS)
def test_gradcheck(kind):
    x = make(bias=True)
    targets = TARGETS[kind](x["teacher"], 4, 3.0)

    def total(student: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fused({**x, "student": student, "weight": weight, "bias": bias}, targets, chunk_rows=4).total

    assert torch.autograd.gradcheck(total, (x["student"], x["weight"], x["bias"]))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
@pytest.mark.parametrize("tail", [True, False])
def test_all_tokens_give_the_whole_divergence(temperature, tail):
    x = make(n=50, vocab=300, dtype=torch.float32)
    targets = top_of(x["teacher"], 300, temperature, tail)
    ours = fused(x, targets, {"ce": 1.0})
    logits = linear(x["student"], x["weight"], x["bias"])
    expected = kl_divergence(logits, x["teacher"], temperature, denominator=DENOMINATORS["ce"])
    torch.testing.assert_close(ours.total, expected, rtol=1e-5, atol=1e-5)
    for mine, other in zip(gradients(ours.total, x), gradients(expected, x), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_merging_the_tail_never_adds_to_the_divergence():
    x = make(n=40, vocab=60)
    values = [fused(x, top_of(x["teacher"], k, 2.0), {"ce": 1.0}).total for k in (1, 2, 4, 8, 16, 32, 60)]
    assert all(fewer <= more for fewer, more in pairwise(values))
    assert values[0] < 0.9 * values[-1]


def test_a_student_that_equals_the_teacher_has_no_divergence():
    x = make()
    logits = linear(x["student"], x["weight"], x["bias"]).detach()
    for targets in (top_of(logits, 3, 2.0), top_of(logits, 3, 2.0, tail=False)):
        ours = fused(x, targets, {"ce": 1.0})
        assert abs(ours.total) < 1e-12
        assert all(g.abs().max() < 1e-12 for g in gradients(ours.total, x))


def test_softened_is_exact_where_the_tail_is_known():
    logits = make()["teacher"]
    log_p = logits.log_softmax(-1)
    ids = logits.topk(5).indices
    rest = log_p.scatter(1, ids, -torch.inf)
    for temperature in (1.0, 2.0, 8.0):
        found = softened(
            ids, log_p.gather(1, ids), (rest / temperature).logsumexp(1),
            temperature=temperature, vocabulary_size=logits.shape[1],
        )  # fmt: skip
        expected = top_of(logits, 5, temperature)
        torch.testing.assert_close(found.log_probs, expected.log_probs)
        torch.testing.assert_close(found.log_tail, expected.log_tail)
        without = softened(ids, log_p.gather(1, ids), None, temperature=temperature, vocabulary_size=29)
        torch.testing.assert_close(without.log_probs, top_of(logits, 5, temperature, tail=False).log_probs)


def test_extreme_logits_give_finite_gradients():
    x = make(dtype=torch.float32, width=5)
    x["bias"] = torch.zeros(29).index_fill(0, torch.tensor([3]), 300.0).requires_grad_()
    for logits in (x["teacher"] * 1e4, x["teacher"].index_fill(1, torch.tensor([3]), -torch.inf)):
        for targets in (top_of(logits, 4, 1.0), top_of(logits, 29, 1.0), top_of(logits, 4, 1.0, tail=False)):
            total = fused(x, targets).total
            assert total.isfinite()
            assert all(g.isfinite().all() for g in gradients(total, x))


def test_weights_by_row():
    x = make()
    targets = top_of(x["teacher"], 4, 2.0)
    by_row = torch.linspace(0, 1, 6, dtype=torch.float64)
    ours = fused(x, targets, {"ce": by_row}, chunk_rows=2)
    rows = torch.stack(
        [
            plain(linear(x["student"], x["weight"], x["bias"])[n : n + 1], targets.of_rows(slice(n, n + 1)))
            for n in range(6)
        ]
    )
    torch.testing.assert_close(ours.rows["ce"], rows.detach())
    torch.testing.assert_close(ours.total, (by_row * rows).sum() / DENOMINATORS["ce"])


def test_the_gradient_of_a_tied_weight():
    x = make()
    targets = sampled_of(x["teacher"], 7, 1.0)
    expected = gradients(fused(x, targets).total, x)[1]
    tied = TiedGradient()
    fused(x, targets, tied=tied).total.backward()
    assert x["weight"].grad is None
    torch.testing.assert_close(tied.take(), expected)


@pytest.mark.parametrize("kind", TARGETS)
def test_nothing_is_as_large_as_the_logits(kind, biggest):
    x = make(n=64, vocab=500)
    targets = TARGETS[kind](x["teacher"], 4, 2.0)
    with biggest:
        fused(x, targets, chunk_rows=8).total.backward()
    assert biggest.elements == 8 * 500


def test_bfloat16_products():
    x = make(dtype=torch.float32)
    targets = top_of(x["teacher"], 4, 2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = fused(x, targets)
    assert ours.total.dtype == torch.float32
    torch.testing.assert_close(ours.total, fused(x, targets).total, rtol=0.03, atol=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"ids": torch.zeros(5, 2, dtype=torch.long)}, "5 rows"), ({"vocabulary_size": 30}, "vocabulary of 30")],
)
def test_targets_that_do_not_fit_are_rejected(change, message):
    x = make()
    with pytest.raises(ValueError, match=message):
        fused(x, replace(top_of(x["teacher"], 2, 1.0), **change))


def test_terms_without_inputs_are_rejected():
    x = make()
    with pytest.raises(ValueError, match=r"^mse "):
        fused(x, top_of(x["teacher"], 2, 1.0), {"mse": 1.0})
    with pytest.raises(ValueError, match=r"nll .*labels_N"):
        fused({**x, "labels": None}, top_of(x["teacher"], 2, 1.0))
