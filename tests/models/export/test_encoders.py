"""Exports of sentence encoders: the output is the vector."""

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModel, BertConfig

from potstill.errors import ModelError
from potstill.models.bigru import BiGruConfig
from potstill.models.export.onnx import export_int8, export_onnx
from potstill.models.export.runtime import ExportedModel
from potstill.models.sentence import EncoderModule, SentenceEncoder, add_dense
from potstill.models.sentence_folders import SentenceSettings
from potstill.models.static import StaticConfig

SHAPE = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
         "pad_token_id": 1}  # fmt: skip
CASES = {
    "dense": (BertConfig(**SHAPE), SentenceSettings("mean", True, "2_Dense", "Tanh")),
    "static": (StaticConfig(vocab_size=60, hidden_size=32), SentenceSettings(normalize=True, static=True)),
}


def encoder_of(config, settings):
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    if settings.dense is not None:
        add_dense(model, torch.randn(12, 32) / 5, torch.randn(12))
    return SentenceEncoder(model, settings)


@pytest.mark.parametrize("case", CASES)
def test_vectors_are_those_of_the_encoder(case, tokenizer, tmp_path):
    encoder = encoder_of(*CASES[case])
    difference = export_onnx(EncoderModule(encoder), tokenizer, tmp_path / "onnx")
    assert difference < 1e-5
    exported = ExportedModel(tmp_path / "onnx")
    assert exported.outputs == ["sentence_embedding"]
    ids = torch.randint(3, 60, (3, 11))
    mask = (torch.arange(11) < torch.tensor([[11], [4], [1]])).long()
    with torch.no_grad():
        expected = encoder(ids, mask)
    assert expected.shape == (3, encoder.width)
    torch.testing.assert_close(exported(ids, mask), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(exported(ids[1:2, :4]), expected[1:2], atol=1e-5, rtol=0)
    export_int8(tmp_path / "onnx", tmp_path / "int8")
    assert cosine_similarity(ExportedModel(tmp_path / "int8")(ids, mask), expected).min() > 0.99


def test_a_recurrent_encoder_is_rejected(tokenizer, tmp_path):
    encoder = encoder_of(BiGruConfig(vocab_size=60, hidden_size=8, embedding_size=4), SentenceSettings())
    with pytest.raises(ModelError, match="BiGruModel: cannot be exported"):
        export_onnx(EncoderModule(encoder), tokenizer, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
