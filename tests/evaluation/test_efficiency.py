import time

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from potstill.errors import ModelError
from potstill.evaluation import efficiency
from potstill.evaluation.efficiency import (
    count_parameters,
    forward_gflop,
    forward_peak_mb,
    latency_ms,
    parameter_tree,
    size_mb,
)


@pytest.fixture(scope="module")
def bert() -> BertForMaskedLM:
    return BertForMaskedLM(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=24,
        )
    )


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        return self.head(self.inner(self.embedding(ids)))


def test_tied_parameters_count_once():
    assert count_parameters(Tied()) == {"total": 40 + 20 + 10, "without_embeddings": 20 + 10}


def test_counts_agree_with_transformers(bert):
    counts = count_parameters(bert)
    assert counts["total"] == bert.num_parameters()
    assert counts["total"] - counts["without_embeddings"] == (50 + 24 + 2) * 16


def test_the_tree_adds_up_and_ties_count_once(bert):
    assert parameter_tree(Tied(), 1) == [
        (0, "Tied", 70),
        (1, "embedding", 40),
        (1, "inner", 20),
        (1, "head", 10),
    ]
    rows = parameter_tree(bert, 3)
    assert rows[0] == (0, "BertForMaskedLM", bert.num_parameters())
    for depth, name, count in rows:
        children = [
            n
            for level, other, n in rows
            if level == depth + 1 and (not depth or other.startswith(f"{name}."))
        ]
        if depth < 2 and children and name != "cls":  # whose bias is its own
            assert sum(children) == count, name
    assert max(depth for depth, _, _ in rows) == 3
    assert [depth for depth, _, _ in parameter_tree(bert, 0)] == [0]


class Wide(nn.Module):
    """Embeds in 8, multiplies by 1,000 and back."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.up, self.down = nn.Embedding(10, 8), nn.Linear(8, 1000), nn.Linear(1000, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(self.embedding(ids)))


def test_arithmetic_and_memory_of_a_pass():
    assert forward_gflop(Wide(), 2, 5) == pytest.approx(2 * 2 * 5 * 8 * 1000 * 2 / 1e9)
    # embedding, widest state and output exist at a time, in float32
    assert forward_peak_mb(Wide(), 20, 50) == pytest.approx(20 * 50 * (1000 + 8 + 8) * 4 / 1e6, rel=0.02)


def test_size_of_a_saved_model(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    assert size_mb(tmp_path) == (tmp_path / "model.safetensors").stat().st_size / 1e6
    (tmp_path / "pytorch_model.bin").write_bytes(b"0" * 1000)
    assert size_mb(tmp_path) == (tmp_path / "model.safetensors").stat().st_size / 1e6


def test_size_of_nothing(tmp_path):
    with pytest.raises(ModelError, match="holds no weights"):
        size_mb(tmp_path)


def test_latency(bert):
    bert.train()
    figures = latency_ms(bert, batch=2, length=8, repeats=5, warmup=1)
    assert 0 < figures["p50"] <= figures["p95"]
    assert bert.training


def test_latency_of_an_encoder_decoder():
    config = T5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    assert latency_ms(T5ForConditionalGeneration(config), batch=2, length=5, repeats=2, warmup=0)["p50"] > 0


def test_latency_of_a_plain_module_in_inference_mode():
    assert latency_ms(Tied(), batch=2, length=5, repeats=2, warmup=1)["p95"] > 0


def test_a_slow_model_gets_fewer_repeats(monkeypatch):
    monkeypatch.setattr(efficiency, "LATENCY_BUDGET_SECONDS", 0.1)
    model = Tied()
    model.register_forward_pre_hook(lambda *_: time.sleep(0.05))
    started = time.perf_counter()
    assert latency_ms(model, batch=1, length=2, repeats=1000, warmup=1000)["p50"] >= 50
    assert time.perf_counter() - started < 2


def test_latency_refuses(bert):
    with pytest.raises(ModelError, match="length 25 exceeds the model's 24 positions"):
        latency_ms(bert, batch=1, length=25)
    with pytest.raises(ModelError, match="Linear embeds no ids"):
        latency_ms(nn.Linear(2, 2), batch=1, length=2)
