import json
import logging
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from potstill.errors import ModelError
from potstill.models import load
from potstill.models.load import load_language_model, save_student

BERT = BertConfig(
    vocab_size=30,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=16,
)
GPT2 = GPT2Config(vocab_size=30, n_embd=8, n_layer=2, n_head=2, n_positions=16)
LLAMA = LlamaConfig(
    vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
)


@pytest.fixture
def save(tmp_path):
    def write(model):
        torch.manual_seed(0)
        model.save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    return write


def tokenizer():
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "a": 2}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
    )


def fault(folder, **kwargs):
    with pytest.raises(ModelError) as caught:
        load_language_model("teacher.model", folder, **({"need_head": True} | kwargs))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"teacher.model={folder}: ")
    return message


@pytest.mark.parametrize(
    ("model_class", "config"),
    [(BertForMaskedLM, BERT), (GPT2LMHeadModel, GPT2), (LlamaForCausalLM, LLAMA)],
)
def test_a_whole_model_comes_back_quietly(save, model_class, config, caplog, capfd):
    model = model_class(config)
    folder = save(model)
    capfd.readouterr()
    verbosity = transformers_logging.get_verbosity()
    loaded = load_language_model("teacher.model", folder, need_head=True)
    assert isinstance(loaded, model_class)
    assert not loaded.training
    assert loaded.config._attn_implementation == "sdpa"
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert loaded.get_output_embeddings().weight.requires_grad
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    assert transformers_logging.get_verbosity() == verbosity


def test_a_tied_head_is_not_missing(save):
    folder = save(BertForMaskedLM(BERT))
    assert "cls.predictions.decoder.weight" not in load_file(f"{folder}/model.safetensors")
    model = load_language_model("teacher.model", folder, need_head=True)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    # GPT-2's head is its embeddings: the bare model has all of it.
    load_language_model("teacher.model", save(GPT2Model(GPT2)), need_head=True)


def test_dtype_attention_and_kind(save):
    folder = save(BertForMaskedLM(BERT))
    model = load_language_model(
        "teacher.model", folder, kind="masked", need_head=True, dtype=torch.bfloat16, attention="eager"
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    assert "is a masked language model (bert); expected a causal one" in fault(folder, kind="causal")
    assert "cannot be loaded" in fault(folder, attention="no_such_attention")


def test_an_encoder_alone_gets_a_new_head_where_none_is_needed(save, caplog):
    folder = save(BertModel(BERT))
    message = fault(folder)
    assert "has no trained LM head" in message
    assert message.endswith(f"train one with objective=mlm student.model={folder}")

    caplog.set_level(logging.WARNING, logger="potstill")
    heads = []
    for _ in range(2):
        torch.manual_seed(5)
        model = load_language_model("student.model", folder, need_head=False)
        heads.append(model.cls.predictions.transform.dense.weight)
    assert torch.equal(*heads)
    assert heads[0].abs().sum() > 0
    encoder = AutoModel.from_pretrained(folder).state_dict()
    assert torch.equal(
        model.bert.state_dict()["embeddings.LayerNorm.weight"], encoder["embeddings.LayerNorm.weight"]
    )
    assert len(caplog.records) == 2  # one line a load
    assert (
        caplog.messages[0]
        == f"student.model={folder}: no trained LM head in the checkpoint; a new one is initialised"
    )


def test_an_untied_head_can_be_missing(save):
    folder = save(LlamaForCausalLM(LLAMA).model)
    assert "has no trained LM head (lm_head.weight is missing)" in fault(folder)


@pytest.mark.parametrize("need_head", [True, False])
def test_an_incomplete_encoder_is_refused(save, need_head):
    folder = save(BertForMaskedLM(BERT))
    edit(folder, num_hidden_layers=3)
    assert "16 weights are missing from the checkpoint, e.g. bert.encoder.layer.2." in fault(
        folder, need_head=need_head
    )


@pytest.mark.parametrize("need_head", [True, False])
def test_weights_of_another_shape_are_refused(save, need_head):
    folder = save(BertForMaskedLM(BERT))
    edit(folder, intermediate_size=24)
    message = fault(folder, need_head=need_head)
    assert "6 weights are of another shape than config.json says" in message
    assert "(16,), expected (24,)" in message


def test_settings_that_transformers_refuses(save):
    folder = save(BertForMaskedLM(BERT))
    edit(folder, hidden_act="no_such_function")
    assert "KeyError: 'no_such_function'" in fault(folder)
    edit(folder, hidden_act="gelu", intermediate_size="many")
    assert "intermediate_size" in fault(folder)


def test_damaged_or_absent_weights(save, tmp_path):
    folder = save(BertForMaskedLM(BERT))
    weights = tmp_path / "model" / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (b"", b"nonsense", whole[: len(whole) // 2]):
        weights.write_bytes(damaged)
        assert "cannot be loaded" in fault(folder)
    weights.unlink()
    assert "cannot be loaded (OSError: " in fault(folder)
    assert "model.safetensors" in fault(folder)


def test_pytorch_weights_are_read_only_if_they_are_plain_tensors(save, tmp_path):
    model = BertForMaskedLM(BERT)
    folder = save(model)
    (tmp_path / "model" / "model.safetensors").unlink()
    binary = tmp_path / "model" / "pytorch_model.bin"
    torch.save(model.state_dict(), binary)
    loaded = load_language_model("teacher.model", folder, need_head=True)
    assert torch.equal(loaded.bert.embeddings.LayerNorm.bias, model.bert.embeddings.LayerNorm.bias)

    binary.write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), protocol=2))
    assert "cannot be loaded" in fault(folder)
    torch.save({"weight": Bomb(tmp_path / "ran")}, binary)
    assert "cannot be loaded" in fault(folder)
    assert not (tmp_path / "ran").exists()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (type(self.path).touch, (self.path,))


def test_code_of_a_checkpoint_is_not_run(save, tmp_path):
    folder = save(BertForMaskedLM(BERT))
    edit(folder, auto_map={"AutoModelForMaskedLM": "evil.Model", "AutoConfig": "evil.Config"})
    (tmp_path / "model" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert isinstance(load_language_model("teacher.model", folder, need_head=True), BertForMaskedLM)
    assert not (tmp_path / "ran").exists()


def test_a_hub_model_with_a_cached_config_and_no_weights(monkeypatch, tmp_path):
    import huggingface_hub

    (tmp_path / "config").mkdir()
    BERT.save_pretrained(tmp_path / "config")
    spec = load.read_spec("k", str(tmp_path / "config"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(load, "read_spec", lambda key, value: spec)
    monkeypatch.setattr(load, "hub_answers", lambda: False)
    assert "no network for the hub: pass a folder, e.g. teacher.model=/path" in fault("nobody/no-such-model")


@pytest.mark.parametrize("given", ["object", "folder"])
def test_a_saved_student_opens_without_this_package(tmp_path, given, capfd):
    model = GPT2LMHeadModel(GPT2).eval()
    words = tokenizer()
    words.save_pretrained(tmp_path / "words")
    folder = save_student(
        model,
        words if given == "object" else tmp_path / "words",
        tmp_path / "out" / "student",
        "# A student\n",
    )
    assert capfd.readouterr().err == ""
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        f.name for f in folder.iterdir()
    }
    assert (folder / "README.md").read_text() == "# A student\n"
    ids = torch.tensor([[2, 1]])
    opened = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(opened(ids).logits, model(ids).logits)
    assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("a") == 2
    assert [entry.name for entry in folder.parent.iterdir()] == ["student"]
    # As open to others as any new folder is.
    assert folder.stat().st_mode == (tmp_path / "out").stat().st_mode


def test_saving_replaces_in_one_step(tmp_path, monkeypatch):
    model = BertForMaskedLM(BERT)
    folder = save_student(model, tokenizer(), tmp_path / "student", "one")
    (folder / "left_over").touch()
    save_student(model, tokenizer(), folder, "two")
    assert (folder / "README.md").read_text() == "two"
    assert not (folder / "left_over").exists()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(BertForMaskedLM, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        save_student(model, tokenizer(), folder, "three")
    assert (folder / "README.md").read_text() == "two"
    assert AutoModelForMaskedLM.from_pretrained(folder) is not None
    assert [entry.name for entry in tmp_path.iterdir()] == ["student"]


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no tokenizer"):
        save_student(BertForMaskedLM(BERT), tmp_path / "empty", tmp_path / "student", "")
    assert not (tmp_path / "student").exists()


def test_safetensors_written_elsewhere_load(save, tmp_path):
    # Some published files carry no metadata.
    folder = save(BertForMaskedLM(BERT))
    path = tmp_path / "model" / "model.safetensors"
    save_file(load_file(path), path)
    load_language_model("teacher.model", folder, need_head=True)


def edit(folder, **settings):
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
