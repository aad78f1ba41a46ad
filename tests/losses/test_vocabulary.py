from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill.losses.soft_targets import (
    cross_entropy,
    generalized_js_divergence,
    kl_divergence,
    logit_mse,
    reverse_kl_divergence,
)
from potstill.losses.sparse import TopRows
from potstill.losses.vocabulary import VocabularyLosses, vocabulary_losses

TERMS = ("ce", "mse", "nll")


def make(
    n: int,
    vocab: int = 29,
    teacher_vocab: int | None = None,
    width: int = 5,
    teacher_width: int = 7,
    bias: bool = True,
    labelled: float = 0.5,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict:
    g = torch.Generator().manual_seed(seed)
    teacher_vocab = teacher_vocab or vocab

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=dtype)

    labels = torch.randint(vocab, (n,), generator=g)
    return {
        "student": normal(n, width).requires_grad_(),
        "weight": normal(vocab, width).requires_grad_(),
        "bias": normal(vocab).requires_grad_() if bias else None,
        "labels": labels.masked_fill(torch.rand(n, generator=g) >= labelled, -100),
        "teacher": normal(n, teacher_width),
        "teacher_weight": normal(teacher_vocab, teacher_width),
        "teacher_bias": normal(teacher_vocab) if bias else None,
    }


def fused(
    x: dict,
    weights: dict,
    denominators: dict,
    temperature: float = 1.0,
    chunk_rows: int | None = None,
    divergence: str = "forward_kl",
    beta: float = 0.5,
) -> VocabularyLosses:
    return vocabulary_losses(
        x["student"],
        x["weight"],
        x["bias"],
        labels_N=x["labels"],
        teacher_NE=x["teacher"],
        teacher_weight_VE=x["teacher_weight"],
        teacher_bias_V=x["teacher_bias"],
        temperature=temperature,
        divergence=divergence,
        beta=beta,
        weights=weights,
        denominators=denominators,
        chunk_rows=chunk_rows,
    )


def reference(
    x: dict,
    weights: dict,
    denominators: dict,
    temperature: float = 1.0,
    divergence: str = "forward_kl",
    beta: float = 0.5,
) -> VocabularyLosses:
    student = torch.nn.functional.linear(x["student"], x["weight"], x["bias"])
    teacher = torch.nn.functional.linear(x["teacher"], x["teacher_weight"], x["teacher_bias"])
    width = min(student.shape[1], teacher.shape[1])
    pair = student[:, :width], teacher[:, :width]
    compare = {
        "forward_kl": kl_divergence,
        "reverse_kl": reverse_kl_divergence,
        "jsd": partial(generalized_js_divergence, beta=beta),
    }[divergence]
    losses = {
        "ce": compare(*pair, temperature, denominator=1),
        "mse": logit_mse(*pair, denominator=1),
        "nll": cross_entropy(student, x["labels"], denominator=1),
    }
    active = {k: losses[k] for k in TERMS if weights.get(k)}
    total = sum((weights[k] / denominators[k] * loss for k, loss in active.items()), torch.zeros(()))
    return VocabularyLosses(total, active)


def leaves(x: dict) -> list[Tensor]:
    return [t for t in (x["student"], x["weight"], x["bias"]) if t is not None]


def gradients(total: Tensor, x: dict) -> list[Tensor]:
    return list(torch.autograd.grad(total, leaves(x)))


DENOMINATORS = {"ce": 11.0, "mse": 7.0, "nll": 3.0}


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 12),
    vocab=st.integers(2, 40),
    teacher_vocab=st.integers(2, 40),
    chunk_rows=st.integers(1, 12),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 8.0]),
    weights=st.fixed_dictionaries({k: st.sampled_from([0.0, 0.5, 2.0]) for k in TERMS}).filter(
        lambda w: any(w.values())
    ),
    bias=st.booleans(),
    divergence=st.sampled_from([("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.5), ("jsd", 0.1), ("jsd", 0.99)]),
    seed=st.integers(0, 2**16),
)
def test_equals_the_reference(n, vocab, teacher_vocab, chunk_rows, temperature, weights, bias, divergence, seed):
    x = make(n, vocab, teacher_vocab, bias=bias, seed=seed)
    ours = fused(x, weights, DENOMINATORS, temperature, chunk_rows, *divergence)
    # The reference in float64 separates our rounding from its own.
    x64 = {k: v if v is None or k == "labels" else v.detach().double() for k, v in x.items()}
    for leaf in leaves(x64):
        leaf.requires_grad_()
    theirs = reference(x64, weights, DENOMINATORS, temperature, *divergence)
    assert ours.sums.keys() == theirs.sums.keys()
    # A divergence is a difference of log-sum-exps, so its absolute error has the size of theirs.
    floor = n * temperature**2 * 3e-6
    torch.testing.assert_close(ours.total.double(), theirs.total, rtol=1e-6, atol=floor)
    for term, value in ours.sums.items():
        assert not value.requires_grad
        torch.testing.assert_close(value.double(), theirs.sums[term], rtol=1e-6, atol=floor)
    for mine, other in zip(gradients(ours.total, x), gradients(theirs.total, x64), strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("teacher_vocab", [29, 23, 31])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_gradcheck(temperature, teacher_vocab, divergence):
    x = make(6, teacher_vocab=teacher_vocab, dtype=torch.float64)

    def total(student: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = {**x, "student": student, "weight": weight, "bias": bias}
        return fused(y, {"ce": 0.3, "mse": 0.2, "nll": 0.5}, DENOMINATORS, temperature, 4, divergence, 0.3).total

    assert torch.autograd.gradcheck(total, (x["student"], x["weight"], x["bias"]))


@pytest.mark.parametrize("teacher", [True, False])
@pytest.mark.parametrize("denominator", [0, 5.0, torch.tensor(0)])
def test_all_labels_ignored_gives_zero(teacher, denominator):
    x = make(6, labelled=0.0)
    weights = {"nll": 1.0} | ({"ce": 1e-30} if teacher else {})
    losses = fused(x, weights, {"nll": denominator, "ce": 6})
    assert losses.sums["nll"].item() == 0
    torch.testing.assert_close(losses.total, torch.zeros(()))
    for gradient in gradients(losses.total, x):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_no_rows():
    x = make(0)
    losses = fused(x, {"ce": 1.0, "mse": 1.0, "nll": 1.0}, {"ce": 0, "mse": 0, "nll": 0})
    assert losses.total.item() == 0
    assert all(not gradient.any() for gradient in gradients(losses.total, x))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_identical_models_have_no_divergence(temperature):
    x = make(9, vocab=501)
    x |= {"teacher": x["student"], "teacher_weight": x["weight"], "teacher_bias": x["bias"]}
    losses = fused(x, {"ce": 1.0, "mse": 1.0}, {"ce": 9, "mse": 9}, temperature, chunk_rows=4)
    assert losses.total.item() == 0
    assert all(not gradient.any() for gradient in gradients(losses.total, x))


def test_scaled_repeated_and_tied_use_accumulates():
    x = make(8, width=29, dtype=torch.float64)

    def once(losses) -> Tensor:
        # The weight takes part twice, as that of a tied embedding does.
        tied = {**x, "student": x["student"] @ x["weight"]}
        return losses(tied, {"ce": 1.0, "nll": 2.0}, DENOMINATORS, 2.0).total

    def twice(losses) -> Tensor:
        return 0.25 * once(losses) + 3 * once(losses) ** 2

    torch.testing.assert_close(gradients(twice(fused), x), gradients(twice(reference), x))


def test_retained_graph_gives_the_same_gradient_again():
    x = make(8)
    total = fused(x, {"ce": 1.0}, {"ce": 8}).total
    total.backward(retain_graph=True)
    first = x["weight"].grad.clone()
    (2 * total).backward()
    torch.testing.assert_close(x["weight"].grad, 3 * first)


def test_frozen_head_still_passes_gradients_on():
    x = make(8)
    frozen = {**x, "weight": x["weight"].detach(), "bias": x["bias"].detach()}
    mine = fused(frozen, {"ce": 1.0}, {"ce": 8}).total
    other = reference(x, {"ce": 1.0}, {"ce": 8}).total
    torch.testing.assert_close(torch.autograd.grad(mine, x["student"]), torch.autograd.grad(other, x["student"]))


def test_the_teacher_gets_no_gradient():
    x = make(8)
    x["teacher"].requires_grad_()
    fused(x, {"ce": 1.0, "mse": 1.0}, DENOMINATORS).total.backward()
    assert x["teacher"].grad is None


def test_without_gradient():
    x = make(8)
    weights = {"ce": 1.0, "mse": 1.0, "nll": 1.0}
    expected = fused(x, weights, DENOMINATORS, 2.0)
    with torch.no_grad():
        losses = fused(x, weights, DENOMINATORS, 2.0)
    assert not losses.total.requires_grad
    torch.testing.assert_close(losses.total, expected.total.detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    x = make(16, vocab=301, width=16)
    weights = {"ce": 1.0, "mse": 0.01, "nll": 0.5}
    # Denominators of a large global batch: float16 gradients must not vanish.
    denominators = {"ce": 1e9, "mse": torch.tensor(1e9), "nll": 1e9}
    with torch.autocast("cpu", dtype=dtype):
        mine = fused(x, weights, denominators, 2.0, chunk_rows=5)
    other = reference(x, weights, denominators, 2.0)
    assert mine.total.dtype == torch.float32
    torch.testing.assert_close(mine.total, other.total, rtol=2e-2, atol=0)
    for a, b in zip(gradients(mine.total, x), gradients(other.total, x), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.03 * b.norm()


@pytest.mark.parametrize("scale", [2.0**16, 2.0**24])
def test_float16_states_with_a_scaled_loss(scale):
    """The scale does not fit float16, nor do gradients divided by the rows of a large batch; their product does."""
    x = make(16, vocab=301, width=16)
    weights, denominators = {"ce": 1.0, "nll": 0.5}, {"ce": 1e6, "nll": 1e6}
    half = {**x, "student": x["student"].detach().half().requires_grad_()}
    with torch.autocast("cpu", dtype=torch.float16):
        mine = fused(half, weights, denominators, 2.0, chunk_rows=5).total * scale
    other = reference(x, weights, denominators, 2.0).total * scale
    (a,), (b,) = (torch.autograd.grad(total, y["student"]) for total, y in ((mine, half), (other, x)))
    assert a.dtype == torch.float16
    assert (a - b).norm() < 0.03 * b.norm()


def test_half_precision_weights():
    x = make(16, dtype=torch.bfloat16)
    losses = fused(x, {"ce": 1.0, "nll": 1.0}, DENOMINATORS, 2.0)
    assert losses.total.dtype == torch.float32
    assert [g.dtype for g in gradients(losses.total, x)] == [torch.bfloat16] * 3


@pytest.mark.parametrize(("divergence", "beta"), [("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.2), ("jsd", 0.9)])
def test_distributions_without_a_common_token(divergence, beta):
    """Probabilities far below float32's smallest number: values and gradients stay finite and right."""
    x = make(6, vocab=30, width=30)
    x["weight"], x["teacher_weight"] = torch.eye(30).requires_grad_(), torch.eye(30)
    x["bias"] = x["teacher_bias"] = None
    x["student"] = (300 * torch.eye(30)[:6]).requires_grad_()
    x["teacher"] = 300 * torch.eye(30)[6:12]
    mine = fused(x, {"ce": 1.0}, {"ce": 6}, 1.0, None, divergence, beta).total
    x64 = {k: v.detach().double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in x.items()}
    x64["student"].requires_grad_()
    other = reference(x64, {"ce": 1.0}, {"ce": 6}, 1.0, divergence, beta).total
    assert mine.item() == pytest.approx(other.item(), rel=1e-5)
    (a,), (b,) = (torch.autograd.grad(total, y["student"]) for total, y in ((mine, x), (other, x64)))
    torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-6)


def test_stored_rows_have_the_forward_divergence_alone():
    x = make(4)
    targets = TopRows(torch.zeros(4, 1, dtype=torch.long), torch.zeros(4, 1), None, 1.0, 5)
    inputs = {"weights": {"ce": 1.0}, "denominators": {"ce": 4}, "targets": targets}
    for divergence in ("reverse_kl", "jsd"):
        with pytest.raises(ValueError, match=divergence):
            vocabulary_losses(x["student"], x["weight"], x["bias"], divergence=divergence, **inputs)
    for beta in (0.0, 1.0):
        with pytest.raises(ValueError, match="beta"):
            fused(x, {"ce": 1.0}, DENOMINATORS, divergence="jsd", beta=beta)


@pytest.mark.parametrize("grad", [True, False])
def test_no_tensor_of_all_logits(grad, biggest):
    n, vocab = 64, 301
    x = make(n, vocab=vocab)
    with biggest, torch.set_grad_enabled(grad):
        losses = fused(x, {"ce": 1.0, "mse": 1.0, "nll": 1.0}, DENOMINATORS, 2.0, chunk_rows=8)
        if grad:
            losses.total.backward()
    assert biggest.elements <= 8 * vocab


def test_hard_labels_alone_need_no_teacher_and_only_labelled_rows(biggest):
    x = make(40, vocab=301, labelled=0.2)
    weights, denominators = {"nll": 1.0, "ce": 0.0}, {"nll": 8}
    with biggest:
        mine = vocabulary_losses(
            x["student"], x["weight"], x["bias"], labels_N=x["labels"], weights=weights, denominators=denominators
        )
    assert biggest.elements <= 301 * max(5, int((x["labels"] != -100).sum()))
    other = reference(x, weights, denominators)
    torch.testing.assert_close(mine.total, other.total)
    for a, b in zip(gradients(mine.total, x), gradients(other.total, x), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_hard_labels_with_one_weight_per_row(chunk_rows):
    x, weight_N = make(9), torch.linspace(0.1, 2.0, 9)
    losses = vocabulary_losses(
        x["student"], x["weight"], x["bias"], labels_N=x["labels"], weights={"nll": weight_N},
        denominators={"nll": 3.0}, chunk_rows=chunk_rows,
    )  # fmt: skip
    parts = [x[name] for name in ("student", "weight", "bias")]
    nll_N = torch.nn.functional.cross_entropy(x["student"] @ x["weight"].T + x["bias"], x["labels"], reduction="none")
    expected = (nll_N * weight_N).sum() / 3
    torch.testing.assert_close(losses.total, expected)
    ours, theirs = (torch.autograd.grad(total, parts) for total in (losses.total, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(losses.rows["nll"], nll_N[x["labels"] >= 0].detach())


@pytest.mark.parametrize(
    ("weights", "denominators", "message"),
    [
        ({"cosine": 1.0}, {"cosine": 1}, "cosine"),
        ({"ce": 0.0}, {"ce": 1}, "'ce': 0.0"),
        ({"ce": 1.0}, {"ce": 1}, "ce .*teacher_weight_VE"),
        ({"nll": 1.0}, {"nll": 1}, "nll .*labels_N"),
    ],
)
def test_terms_without_inputs_are_rejected(weights, denominators, message):
    x = make(4)
    with pytest.raises(ValueError, match=message):
        vocabulary_losses(x["student"], x["weight"], x["bias"], weights=weights, denominators=denominators)


def test_a_term_without_denominator_is_rejected():
    with pytest.raises(ValueError, match=r"ce .*denominator"):
        fused(make(4), {"ce": 1.0}, {})
