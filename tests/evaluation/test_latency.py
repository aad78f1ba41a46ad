"""Latencies with a simulated clock, independent of the machine."""

import random

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from potstill.errors import ModelError
from potstill.evaluation import latency
from potstill.evaluation.latency import MIN_ROUNDS, Timed, measure_latencies
from potstill.methods.common.costs import UNSTEADY, latency_cell, timed_figures


class Clock:
    """A clock that advances only while a model works; `load` is the factor of its time."""

    def __init__(self):
        self.now, self.load = 0.0, lambda now: 1.0

    def perf_counter(self):
        return self.now

    def work(self, seconds):
        self.now += seconds * self.load(self.now)


class Working(nn.Module):
    def __init__(self, clock, seconds):
        super().__init__()
        self.embedding = nn.Embedding(5, 1)
        self.clock, self.seconds, self.calls = clock, seconds, 0

    def forward(self, ids):
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.calls += 1
        self.clock.work(self.seconds)
        return self.embedding(ids)


@pytest.fixture
def clock(monkeypatch):
    own = Clock()
    monkeypatch.setattr(latency.time, "perf_counter", own.perf_counter)
    return own


@pytest.fixture
def models(clock):
    """The reference, an equally fast model, and one that takes half the time."""
    return {name: Timed(Working(clock, s)) for name, s in (("one", 0.01), ("same", 0.01), ("half", 0.005))}


def test_an_idle_machine(models, clock):
    found = measure_latencies(list(models.values()), batch=2, length=8)
    assert [own.p50 for own in found] == pytest.approx([10, 10, 5])
    assert [own.p95 for own in found] == pytest.approx([10, 10, 5])
    assert [own.ratio for own in found] == pytest.approx([1, 1, 0.5])
    assert all(own.is_steady for own in found)
    assert all(own.model.training for own in models.values())  # restored


def test_alternating_load(models, clock):
    """The time of one model after the other would differ by a factor of up to 10."""
    clock.load = lambda now: 10.0 if int(now / 0.4) % 2 else 1.0
    found = measure_latencies(list(models.values()), batch=1, length=8)
    assert [own.ratio for own in found] == pytest.approx([1, 1, 0.5], rel=0.05)
    assert found[1].p50 == pytest.approx(found[0].p50, rel=0.05)


def test_random_load(models, clock):
    draw = random.Random(0)
    clock.load = lambda _: 10.0 if draw.random() < 0.5 else 1.0
    found = measure_latencies(list(models.values()), batch=1, length=8)
    assert [own.ratio for own in found] == pytest.approx([1, 1, 0.5], rel=0.1)


def test_unsteady_latencies_are_marked(models, clock, caplog):
    draw = random.Random(0)
    models["one"].model.seconds = 1.0  # few rounds
    models["same"].model.seconds = 1.0
    clock.load = lambda _: 10.0 ** draw.uniform(0, 2)
    figures = timed_figures(models, batch=1, length=8)
    assert latency_cell(figures["same"]).startswith(UNSTEADY)
    assert any("same" in record.message and record.levelname == "WARNING" for record in caplog.records)


def test_a_slow_model_has_the_minimum_of_rounds(clock):
    slow = Working(clock, 100.0)
    measure_latencies([Timed(slow)], batch=1, length=8)
    assert slow.calls == 2 + MIN_ROUNDS * latency.PASSES


def test_a_single_model_has_no_ratio(models):
    (figures,) = timed_figures({"one": models["one"]}, batch=1, length=8).values()
    assert figures.keys() == {"latency_ms", "latency_p95_ms", "latency_error"}
    assert latency_cell(figures) == "10.00"


def test_an_encoder_decoder(monkeypatch):
    monkeypatch.setattr(latency, "BUDGET_SECONDS", 1e-9)
    config = T5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    (found,) = measure_latencies([Timed(T5ForConditionalGeneration(config))], batch=2, length=5)
    assert 0 < found.p50 <= found.p95


def test_models_without_positions_or_embeddings_are_rejected():
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24,
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"benchmark.lengths=25: .*24"):
        measure_latencies([Timed(BertForMaskedLM(config))], batch=1, length=25)
    with pytest.raises(ModelError, match="Linear"):
        measure_latencies([Timed(nn.Linear(2, 2))], batch=1, length=2)
