import json
import logging
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from transformers.utils import logging as transformers_logging

from potstill.errors import ModelError, WeightsError
from potstill.models import load, pretrained
from potstill.models.load import load_language_model, load_task_model, name_labels

BERT = BertConfig(
    vocab_size=30,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=16,
)
GPT2 = GPT2Config(vocab_size=30, n_embd=8, n_layer=2, n_head=2, n_positions=16)
LLAMA = LlamaConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)


@pytest.fixture
def save(tmp_path):
    def write(model):
        torch.manual_seed(0)
        model.save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    return write


def error(folder, *, kind=WeightsError, **kwargs):
    with pytest.raises(kind) as caught:
        load_language_model("teacher.model", folder, **({"need_head": True} | kwargs))
    assert type(caught.value) is kind
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"teacher.model={folder}: ")
    return message


@pytest.mark.parametrize(
    ("model_class", "config"), [(BertForMaskedLM, BERT), (GPT2LMHeadModel, GPT2), (LlamaForCausalLM, LLAMA)]
)
def test_a_model_is_loaded_without_output(save, model_class, config, caplog, capfd):
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


def test_dtype_and_attention(save):
    folder = save(BertForMaskedLM(BERT).bfloat16())
    model = load_language_model("teacher.model", folder, need_head=True, attention="eager")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config._attn_implementation == "eager"
    assert "no_such_attention" in error(folder, attention="no_such_attention")


def test_an_encoder_alone_gets_a_new_head_where_none_is_needed(save, caplog):
    folder = save(BertModel(BERT))
    assert error(folder).endswith(f"objective=mlm student.model={folder}")

    caplog.set_level(logging.WARNING, logger="potstill")
    heads = []
    for _ in range(2):
        torch.manual_seed(5)
        model = load_language_model("student.model", folder, need_head=False)
        heads.append(model.cls.predictions.transform.dense.weight)
    assert torch.equal(*heads)
    assert heads[0].abs().sum() > 0
    encoder = AutoModel.from_pretrained(folder).state_dict()
    assert torch.equal(model.bert.state_dict()["embeddings.LayerNorm.weight"], encoder["embeddings.LayerNorm.weight"])
    assert len(caplog.records) == 2  # one line per load
    assert caplog.messages[0].startswith(f"student.model={folder}: ")


def test_an_untied_head_can_be_missing(save):
    folder = save(LlamaForCausalLM(LLAMA).model)
    assert "lm_head.weight" in error(folder)


@pytest.mark.parametrize("need_head", [True, False])
def test_an_incomplete_encoder_is_rejected(save, need_head):
    folder = save(BertForMaskedLM(BERT))
    edit(folder, num_hidden_layers=3)
    message = error(folder, need_head=need_head)
    assert "16 weights" in message
    assert "bert.encoder.layer.2." in message


@pytest.mark.parametrize("need_head", [True, False])
def test_weights_of_another_shape_are_rejected(save, need_head):
    folder = save(BertForMaskedLM(BERT))
    edit(folder, intermediate_size=24)
    message = error(folder, need_head=need_head)
    assert "6 weights" in message
    assert "(16,), expected (24,)" in message


def test_settings_that_transformers_rejects(save):
    folder = save(BertForMaskedLM(BERT))
    edit(folder, hidden_act="no_such_function")
    assert "KeyError: 'no_such_function'" in error(folder)
    edit(folder, hidden_act="gelu", intermediate_size="many")
    assert "intermediate_size" in error(folder)


def test_damaged_or_absent_weights(save, tmp_path):
    folder = save(BertForMaskedLM(BERT))
    weights = tmp_path / "model" / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (b"", b"nonsense", whole[: len(whole) // 2]):
        weights.write_bytes(damaged)
        error(folder)
    weights.unlink()
    assert "model.safetensors" in error(folder)


def test_pytorch_weights_are_read_only_if_they_are_plain_tensors(save, tmp_path):
    model = BertForMaskedLM(BERT)
    folder = save(model)
    (tmp_path / "model" / "model.safetensors").unlink()
    binary = tmp_path / "model" / "pytorch_model.bin"
    torch.save(model.state_dict(), binary)
    loaded = load_language_model("teacher.model", folder, need_head=True)
    assert torch.equal(loaded.bert.embeddings.LayerNorm.bias, model.bert.embeddings.LayerNorm.bias)

    binary.write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), protocol=2))
    error(folder)
    torch.save({"weight": Bomb(tmp_path / "ran")}, binary)
    error(folder)
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
    monkeypatch.setattr(pretrained, "hub_answers", lambda: False)
    assert "teacher.model=/path" in error("nobody/no-such-model", kind=ModelError)


def test_safetensors_written_elsewhere_load(save, tmp_path):
    # Some published files carry no metadata.
    folder = save(BertForMaskedLM(BERT))
    path = tmp_path / "model" / "model.safetensors"
    save_file(load_file(path), path)
    load_language_model("teacher.model", folder, need_head=True)


def edit(folder, **settings):
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


# Classifiers.

NLI = ("entailment", "neutral", "contradiction")


def classifier(model_class, config, labels):
    torch.manual_seed(3)
    config = type(config)(**{**config.to_dict(), "num_labels": max(len(labels), 1), "pad_token_id": 0})
    name_labels(config, labels)
    return model_class(config).eval()


def logits_of(model):
    with torch.no_grad():
        return model(torch.tensor([[2, 5, 7, 3]])).logits


def classifier_problem(folder, labels, need_head=True, kind=ModelError):
    with pytest.raises(kind) as caught:
        load_task_model("model", folder, labels=labels, need_head=need_head)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"model={folder}: ")
    return message


CLASSIFIERS = [
    (BertForSequenceClassification, BERT),
    (RobertaForSequenceClassification, RobertaConfig(**{**BERT.to_dict(), "model_type": "roberta"})),
    (GPT2ForSequenceClassification, GPT2),
]


@pytest.mark.parametrize(("model_class", "config"), CLASSIFIERS)
def test_a_trained_head_is_put_into_the_order_of_the_labels(save, model_class, config):
    model = classifier(model_class, config, NLI)
    folder = save(model)
    same = load_task_model("model", folder, labels=NLI, need_head=True)
    assert_close(logits_of(same), logits_of(model), atol=1e-6, rtol=0)
    turned = load_task_model("model", folder, labels=("Contradiction", "neutral", "entailment"), need_head=True)
    assert_close(logits_of(turned), logits_of(model).flip(-1), atol=1e-6, rtol=0)
    assert turned.config.id2label == {0: "Contradiction", 1: "neutral", 2: "entailment"}
    assert turned.config.label2id["entailment"] == 2


def test_labels_without_names_keep_their_order_with_a_warning(save, caplog):
    folder = save(classifier(BertForSequenceClassification, BERT, ("LABEL_0", "LABEL_1")))
    caplog.set_level(logging.WARNING, logger="potstill")
    model = load_task_model("model", folder, labels=("no", "yes"), need_head=True)
    assert model.config.id2label == {0: "no", 1: "yes"}
    (message,) = caplog.messages
    assert message.startswith(f"model={folder}: ")
    assert "no, yes" in message


def test_heads_of_other_labels_are_rejected_where_a_trained_one_is_needed(save):
    folder = save(classifier(BertForSequenceClassification, BERT, ("bad", "good")))
    message = classifier_problem(folder, ("no", "yes"))
    assert "bad, good" in message
    assert "no, yes" in message
    assert "benchmark.labels" in message
    assert "benchmark.labels" not in classifier_problem(folder, NLI)
    assert "one score" in classifier_problem(folder, ())
    assert "ForSequenceClassification" in classifier_problem(save(BertForMaskedLM(BERT)), NLI)
    tagging = BertForTokenClassification(BertConfig(**{**BERT.to_dict(), "num_labels": 3}))
    assert "ForSequenceClassification" in classifier_problem(save(tagging), NLI)


@pytest.mark.parametrize(
    "model",
    [
        BertForMaskedLM(BERT),
        BertModel(BERT),
        classifier(BertForSequenceClassification, BERT, ("a", "b")),
        classifier(BertForSequenceClassification, BERT, ("a", "b", "c")),
        BertForTokenClassification(BertConfig(**{**BERT.to_dict(), "num_labels": 3})),
        classifier(RobertaForSequenceClassification, CLASSIFIERS[1][1], ("a", "b", "c")),
        GPT2LMHeadModel(GPT2),
    ],
    ids=lambda model: type(model).__name__,
)
def test_another_head_is_replaced_by_a_new_one_from_the_generator(save, model, caplog):
    folder = save(model)
    caplog.set_level(logging.WARNING, logger="potstill")
    heads = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        loaded = load_task_model("student.model", folder, labels=NLI, need_head=False)
        assert loaded.config.num_labels == 3
        heads.append(loaded.state_dict())
    assert len(caplog.records) == 3
    assert caplog.messages[0].startswith(f"student.model={folder}: ")
    own = model.state_dict()
    if isinstance(model, BertModel):
        own = {f"bert.{name}": tensor for name, tensor in own.items()}
    fresh = [name for name in heads[0] if name.rpartition(".")[0] in ("classifier", "classifier.out_proj", "score")]
    weights = [name for name in fresh if name.endswith("weight")]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    assert any(not torch.equal(heads[0][name], heads[2][name]) for name in weights)
    for name in weights:
        assert name not in own or own[name].shape != heads[0][name].shape or not torch.equal(own[name], heads[0][name])
    kept = [name for name in own if name in heads[0] and name not in fresh and not name.startswith("classifier")]
    assert kept
    assert all(torch.equal(own[name], heads[0][name]) for name in kept)


def test_a_regression_has_one_score(save):
    folder = save(BertForMaskedLM(BERT))
    model = load_task_model("student.model", folder, labels=(), need_head=False)
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    folder = save(classifier(BertForSequenceClassification, BERT, ()))
    assert load_task_model("model", folder, labels=(), need_head=True).classifier.out_features == 1


def test_a_classifier_with_missing_weights_is_rejected(save, tmp_path):
    folder = save(classifier(BertForSequenceClassification, BERT, NLI))
    path = tmp_path / "model" / "model.safetensors"
    whole = load_file(path)
    save_file({name: tensor for name, tensor in whole.items() if name != "classifier.bias"}, path)
    assert "classifier.bias" in classifier_problem(folder, NLI, kind=WeightsError)
    layer = "bert.encoder.layer.0.output.dense.weight"
    save_file({name: tensor for name, tensor in whole.items() if name != layer}, path)
    assert layer in classifier_problem(folder, ("a", "b"), need_head=False, kind=WeightsError)
    edit(folder, intermediate_size=24)
    assert "(24,)" in classifier_problem(folder, ("a", "b"), need_head=False, kind=WeightsError)
