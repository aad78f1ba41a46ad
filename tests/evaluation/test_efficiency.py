import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from potstill.errors import WeightsError
from potstill.evaluation.efficiency import count_parameters, forward_gflop, forward_peak_mb, parameter_tree, size_mb


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


def test_counts_equal_transformers(bert):
    counts = count_parameters(bert)
    assert counts["total"] == bert.num_parameters()
    assert counts["total"] - counts["without_embeddings"] == (50 + 24 + 2) * 16


def test_the_parameter_tree(bert):
    assert parameter_tree(Tied(), 1) == [(0, "Tied", 70), (1, "embedding", 40), (1, "inner", 20), (1, "head", 10)]
    rows = parameter_tree(bert, 3)
    assert rows[0] == (0, "BertForMaskedLM", bert.num_parameters())
    for depth, name, count in rows:
        children = [n for level, other, n in rows if level == depth + 1 and (not depth or other.startswith(f"{name}."))]
        if depth < 2 and children and name != "cls":  # its bias is its own parameter
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


def test_flops_and_memory_of_a_pass():
    assert forward_gflop(Wide(), 2, 5) == pytest.approx(2 * 2 * 5 * 8 * 1000 * 2 / 1e9)
    # embedding, widest state and output exist at a time, in float32
    assert forward_peak_mb(Wide(), 20, 50) == pytest.approx(20 * 50 * (1000 + 8 + 8) * 4 / 1e6, rel=0.02)


def test_size_of_a_saved_model(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    assert size_mb(tmp_path) == (tmp_path / "model.safetensors").stat().st_size / 1e6
    (tmp_path / "pytorch_model.bin").write_bytes(b"0" * 1000)
    assert size_mb(tmp_path) == (tmp_path / "model.safetensors").stat().st_size / 1e6


def test_a_folder_without_weights_has_no_size(tmp_path):
    with pytest.raises(WeightsError, match=str(tmp_path)):
        size_mb(tmp_path)
