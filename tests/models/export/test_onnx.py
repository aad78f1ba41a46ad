import pytest
import torch
from torch.testing import assert_close
from transformers import AutoTokenizer

from potstill.errors import ModelError, PackageError, WriteError
from potstill.models.export import onnx
from potstill.models.export.onnx import export_onnx
from potstill.models.export.runtime import ExportedModel
from potstill.models.heads import labels_from_settings
from potstill.models.specs import read_settings

pytestmark = pytest.mark.slow

# Every architecture and every head; each export takes seconds, so not every pair.
CASES = [
    ("bert", "sequence"),
    ("bert", "tokens"),
    ("bert", "spans"),
    ("bert", "masked"),
    ("roberta", "masked"),
    ("distilbert", "spans"),
    ("electra", "tokens"),
    ("modernbert", "masked"),
    ("deberta-v2", "sequence"),
    ("gpt2", "causal"),
    ("gpt2", "sequence"),
    ("llama", "causal"),
    ("qwen3", "causal"),
    ("gpt_neox", "causal"),
    ("olmo2", "causal"),
    ("gemma3_text", "causal"),
]


@pytest.mark.parametrize(("model_type", "head"), CASES)
def test_agrees_with_torch_at_every_shape(exports, make_batch, model_type, head):
    model, folder = exports(model_type, head)
    exported = ExportedModel(folder)
    assert exported.outputs == (["start_logits", "end_logits"] if head == "spans" else ["logits"])
    model.eval()
    for rows, columns in ((1, 1), (2, 2), (3, 11), (7, 5), (1, exported.max_length)):
        batch = make_batch(rows, columns, types=2 if model_type in ("bert", "electra") else 1)
        with torch.no_grad():
            expected = model(**batch)
        found = exported.run(batch)
        real = slice(None) if head == "sequence" else batch["attention_mask"].bool()
        for name in exported.outputs:
            assert found[name].shape == expected[name].shape
            assert_close(found[name][real], expected[name][real], atol=1e-4, rtol=0)


def test_the_folder_has_the_configuration_of_the_model(exports):
    model, folder = exports("bert", "sequence")
    assert labels_from_settings(read_settings("model", str(folder))) == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert ExportedModel(folder).config.hidden_size == model.config.hidden_size
    assert b"site-packages" not in (folder / "model.onnx").read_bytes()  # a stack trace's
    assert AutoTokenizer.from_pretrained(folder)("the of").input_ids
    assert not [path.name for path in folder.parent.iterdir() if path != folder]


def test_the_model_is_unchanged(make_tiny, tokenizer, tmp_path):
    model = make_tiny("bert", "sequence", num_hidden_layers=1).bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_onnx(model, tokenizer, tmp_path / "onnx")
    assert model.training
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert ExportedModel(tmp_path / "onnx")(torch.tensor([[3, 4]])).dtype == torch.float32


def test_a_difference_keeps_the_earlier_folder(make_tiny, tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "onnx"
    folder.mkdir()
    (folder / "earlier").write_text("kept")
    monkeypatch.setattr(onnx._Positional, "run", _shifted(onnx._Positional.run))
    with pytest.raises(ModelError, match=r"0\.5.* 0\.0001"):
        export_onnx(make_tiny("bert", "sequence", num_hidden_layers=1), tokenizer, folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["onnx", "earlier"]


def _shifted(run):
    return lambda *arguments: {name: logits + 0.5 for name, logits in run(*arguments).items()}


def test_an_export_replaces_the_earlier_folder(make_tiny, tokenizer, tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "earlier").write_text("goes")
    difference = export_onnx(make_tiny("bert", "masked", num_hidden_layers=1), tokenizer, tmp_path / "onnx")
    assert 0 <= difference < 1e-4
    assert not (tmp_path / "onnx" / "earlier").exists()
    assert (tmp_path / "onnx" / "model.onnx").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_models_that_cannot_be_exported_are_rejected(make_tiny, tokenizer, tmp_path, monkeypatch):
    from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

    headless = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ModelError, match=r"^BertModel: .*ForMaskedLM"):
        export_onnx(headless, tokenizer, tmp_path / "onnx")
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(ModelError, match="t5"):
        export_onnx(t5, tokenizer, tmp_path / "onnx")
    with pytest.raises(ModelError, match=r"config\.pad_token_id"):
        export_onnx(make_tiny("gpt2", "sequence", pad_token_id=None), tokenizer, tmp_path / "onnx")
    monkeypatch.setattr(onnx, "LARGEST_BYTES", 1000)
    with pytest.raises(ModelError, match=r"^BertForMaskedLM: .*GB"):
        export_onnx(make_tiny("bert", "masked"), tokenizer, tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named(make_tiny, tokenizer, tmp_path, missing, package):
    missing(package)
    with pytest.raises(PackageError, match=rf"^export: {package} .*potstill\[export\]"):
        export_onnx(make_tiny("bert", "masked"), tokenizer, tmp_path / "onnx")


def test_a_folder_that_cannot_be_written(make_tiny, tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="file"):
        export_onnx(make_tiny("bert", "masked"), tokenizer, tmp_path / "file" / "onnx")
