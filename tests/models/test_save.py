"""Folders of students, which transformers opens."""

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from potstill.errors import TokenizerError
from potstill.models.load import load_task_model
from potstill.models.save import save_student

BERT = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
GPT2 = GPT2Config(vocab_size=30, n_embd=8, n_layer=2, n_head=2, n_positions=16)


@pytest.fixture
def words():
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "a": 2}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
    )


@pytest.mark.parametrize("given", ["object", "folder"])
def test_a_saved_student_opens_without_this_package(tmp_path, words, given, capfd):
    model = GPT2LMHeadModel(GPT2).eval()
    words.save_pretrained(tmp_path / "words")
    folder = save_student(
        model, words if given == "object" else tmp_path / "words", tmp_path / "out" / "student", "# A student\n"
    )
    assert capfd.readouterr().err == ""
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {f.name for f in folder.iterdir()}
    assert (folder / "README.md").read_text() == "# A student\n"
    ids = torch.tensor([[2, 1]])
    opened = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(opened(ids).logits, model(ids).logits)
    assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("a") == 2
    assert [entry.name for entry in folder.parent.iterdir()] == ["student"]
    # With the permissions of any new folder.
    assert folder.stat().st_mode == (tmp_path / "out").stat().st_mode


@pytest.mark.parametrize("kind", ["bert", "distilbert", "llama"])
def test_a_saved_tokenizer_returns_the_inputs_of_its_model(kind, bert_tokenizer, tmp_path):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    if kind == "distilbert":
        small = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
    model = AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=200, **small))
    folder = save_student(model, bert_tokenizer, tmp_path / "student", "card")
    inputs = AutoTokenizer.from_pretrained(folder)("the of and", return_tensors="pt")
    assert ("token_type_ids" in inputs) == (kind == "bert")
    assert AutoModel.from_pretrained(folder)(**inputs).last_hidden_state.shape == (1, 5, 16)
    original = AutoTokenizer.from_pretrained(bert_tokenizer)
    assert "token_type_ids" in original.model_input_names


def test_saving_replaces_in_one_step(tmp_path, words, monkeypatch):
    model = BertForMaskedLM(BERT)
    folder = save_student(model, words, tmp_path / "student", "one")
    (folder / "left_over").touch()
    save_student(model, words, folder, "two")
    assert (folder / "README.md").read_text() == "two"
    assert not (folder / "left_over").exists()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(BertForMaskedLM, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        save_student(model, words, folder, "three")
    assert (folder / "README.md").read_text() == "two"
    assert AutoModelForMaskedLM.from_pretrained(folder) is not None
    assert [entry.name for entry in tmp_path.iterdir()] == ["student"]


def test_a_folder_without_tokenizer_is_rejected(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TokenizerError, match="empty"):
        save_student(BertForMaskedLM(BERT), tmp_path / "empty", tmp_path / "student", "")
    assert not (tmp_path / "student").exists()


def test_a_saved_classifier_opens_without_this_package(tmp_path, words):
    BertForMaskedLM(BERT).save_pretrained(tmp_path / "model")
    labels = ("no", "yes", "maybe")
    model = load_task_model("model", str(tmp_path / "model"), labels=labels, need_head=False)
    opened = AutoModelForSequenceClassification.from_pretrained(save_student(model, words, tmp_path / "student", ""))
    ids = torch.tensor([[2, 5, 7, 3]])
    torch.testing.assert_close(opened(ids).logits, model(ids).logits, atol=1e-6, rtol=0)
    assert opened.config.id2label == dict(enumerate(labels))
