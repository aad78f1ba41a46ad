"""Logits through a store: training from what comes back gives the losses that the teacher itself gives."""

import numpy as np
import pytest
import torch

from potstill.losses.soft_targets import kl_divergence
from potstill.losses.vocabulary import vocabulary_losses
from potstill.teacher_cache.formats import FullFormat, SampledFormat, TopFormat
from potstill.teacher_cache.sparse_rows import draw
from potstill.teacher_cache.store import OutputStore, build_outputs, store_identity

UNITS, VOCABULARY, WIDTH = 40, 300, 6


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TEACHER = 3 * normal(UNITS, VOCABULARY)


def stored(folder, form, logits=TEACHER, at_once=7):
    """What comes back is decoded by the form of the reading run, from a store opened anew."""
    identity = store_identity(teacher={"weights": "t"}, tokenizer="k", data="d", form=form.identity)

    def write(writer):
        for start in range(0, UNITS, at_once):
            units = np.arange(start, min(start + at_once, UNITS))
            writer.append(form.encode(logits[units], units))

    build_outputs(folder, identity, form.fields, UNITS, write)
    return OutputStore.open(folder)


def from_store(targets, student, weight):
    options = {"weights": {"ce": 1.0}, "denominators": {"ce": len(student)}}
    return vocabulary_losses(student, weight, None, targets=targets, **options).total


def test_full_logits_of_rows(tmp_path):
    form = FullFormat(VOCABULARY)
    identity = store_identity(teacher={}, tokenizer="k", data="d", form=form.identity)
    outputs = form.encode(TEACHER)
    store = build_outputs(tmp_path / "s", identity, form.fields, UNITS, lambda writer: writer.append(outputs))
    order = np.random.default_rng(0).permutation(UNITS)
    torch.testing.assert_close(form.decode(store.gather(order)), TEACHER[order], rtol=0, atol=0)


def test_full_logits_of_ragged_items(tmp_path):
    form = FullFormat(2, ragged=True)
    identity = store_identity(teacher={}, tokenizer="k", data="d", form=form.identity)
    counts = np.array([3, 1, 0, 4])
    logits = normal(8, 2)
    store = build_outputs(
        tmp_path / "s", identity, form.fields, 4, lambda writer: writer.append(form.encode(logits, counts))
    )
    gathered = store.gather([3, 2, 0])
    assert gathered.counts.tolist() == [4, 0, 3]
    torch.testing.assert_close(form.decode(gathered), torch.cat([logits[4:], logits[:3]]), rtol=0, atol=0)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("float16", 2e-3)])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_all_tokens_give_the_loss_of_the_teacher(tmp_path, temperature, precision, tolerance):
    form = TopFormat(VOCABULARY, VOCABULARY, (1.0, 2.0), precision)
    order = np.random.default_rng(0).permutation(UNITS)
    targets = form.decode(stored(tmp_path / "s", form).gather(order), temperature)
    student, weight = normal(UNITS, WIDTH, seed=1).requires_grad_(), normal(VOCABULARY, WIDTH, seed=2)
    ours = from_store(targets, student, weight)
    # A teacher whose head is the identity has these logits as its hidden states.
    theirs = vocabulary_losses(
        student, weight, None, teacher_NE=TEACHER[order], teacher_weight_VE=torch.eye(VOCABULARY),
        temperature=temperature, weights={"ce": 1.0}, denominators={"ce": UNITS},
    ).total  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    for mine, other in zip(torch.autograd.grad(ours, student), torch.autograd.grad(theirs, student), strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


def test_tails_at_stored_and_other_temperatures(tmp_path):
    form = TopFormat(5, VOCABULARY, (1.0, 2.0), "float32")
    gathered = stored(tmp_path / "s", form).gather(np.arange(UNITS))
    for temperature in (1.0, 2.0):
        rows = form.decode(gathered, temperature)
        p = (TEACHER / temperature).softmax(1)
        torch.testing.assert_close(rows.log_probs.exp(), p.topk(5).values, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(rows.log_tail.exp(), 1 - p.topk(5).values.sum(1), rtol=1e-4, atol=1e-5)
    assert form.decode(gathered, 4.0).log_tail is None


@pytest.mark.parametrize("power", [1.0, 0.8])
def test_samples_are_read_as_drawn(tmp_path, power):
    form = SampledFormat(12, VOCABULARY, seed=5, temperature=2.0, power=power)
    units = np.array([31, 2, 2, 17])
    rows = form.decode(stored(tmp_path / "s", form).gather(units))
    options = {"samples": 12, "power": power, "temperature": 2.0, "seed": 5, "systematic": False}
    for row, unit in enumerate(units):
        drawn = draw(TEACHER[[unit]], np.array([unit]), **options)
        n = int(drawn.counts[0])
        assert rows.ids[row, :n].tolist() == drawn.ids.tolist()
        np.testing.assert_allclose(rows.weights[row, :n], drawn.weights / 12, rtol=1e-3 if power != 1 else 1e-6)
        assert not rows.weights[row, n:].any()
        np.testing.assert_allclose(rows.entropy[row], drawn.entropy[0], rtol=1e-6)
    assert rows.temperature == 2.0


def test_samples_estimate_the_loss_of_the_teacher(tmp_path):
    form = SampledFormat(2000, VOCABULARY, seed=5)
    targets = form.decode(stored(tmp_path / "s", form).gather(np.arange(UNITS)))
    student, weight = normal(UNITS, WIDTH, seed=1), normal(VOCABULARY, WIDTH, seed=2)
    expected = kl_divergence(student @ weight.t(), TEACHER, 1.0)
    torch.testing.assert_close(from_store(targets, student, weight), expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("vocabulary", [VOCABULARY, 70_000])
def test_bytes_per_item(vocabulary):
    wide = 4 if vocabulary > 2**16 else 2
    for form, fixed in (
        (TopFormat(8, vocabulary, (1.0, 2.0)), 8 * (wide + 2) + 8),
        (TopFormat(8, vocabulary, (1.0,), "float32"), 8 * (wide + 4) + 4),
        (FullFormat(3), 12),
    ):
        assert sum(np.dtype(field.dtype).itemsize * field.width for field in form.fields) == fixed
    sizes = [np.dtype(field.dtype).itemsize for field in SampledFormat(8, vocabulary, 0).fields]
    assert sizes == [wide, 2, 4]
