import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

from potstill.evaluation.efficiency import count_parameters
from potstill.models.backbone import backbone_of
from potstill.models.multitask import SharedStudent, with_head
from potstill.models.students import student_from_config
from potstill.training.callbacks import _copied

BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
SMALL = {
    "bert": BERT,
    "roberta": {**BERT, "max_position_embeddings": 40},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 32},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4},
    "bigru": {"hidden_size": 16, "embedding_size": 16},
}
IDS = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def logits(model):
    backbone = backbone_of(model.eval())
    with torch.no_grad():
        hidden, _ = backbone.blocks(backbone.embed(IDS, MASK))
        return backbone.classify(backbone.finish(hidden), MASK)


def student(kind):
    torch.manual_seed(0)
    settings = {"model_type": kind, **SMALL[kind]}
    first = student_from_config(settings, vocab_size=20, pad_token_id=0, labels=["no", "yes"])
    other = with_head(first, labels=["a", "b", "c"], head="sequence")
    return SharedStudent({"one": first, "other": other})


@pytest.mark.parametrize("kind", SMALL)
def test_heads_share_one_encoder(kind):
    shared = student(kind)
    one, other = shared.model("one"), shared.model("other")
    assert one.base_model is other.base_model
    assert logits(one).shape == (2, 2)
    assert logits(other).shape == (2, 3)
    head = [name for name, _ in other.named_parameters() if not name.startswith(other.base_model_prefix)]
    extra = sum(other.get_parameter(name).numel() for name in head)
    assert count_parameters(shared)["total"] == count_parameters(one)["total"] + extra
    assert other.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert one.config.id2label == {0: "no", 1: "yes"}


@pytest.mark.parametrize("kind", SMALL)
def test_a_model_apart_computes_the_same(kind):
    shared = student(kind)
    own = shared.apart("other")
    assert own.base_model is not shared.model("other").base_model
    assert torch.equal(logits(own), logits(shared.model("other")))


def test_a_pooler_is_added_where_another_head_needs_it_and_left_out_apart():
    torch.manual_seed(0)
    tagger = BertForTokenClassification(BertConfig(vocab_size=20, num_labels=3, **BERT))
    assert tagger.bert.pooler is None
    other = with_head(tagger, labels=["no", "yes"], head="sequence")
    assert isinstance(other, BertForSequenceClassification)
    assert logits(other).shape == (2, 2)
    shared = SharedStudent({"tags": tagger, "texts": other})
    assert not any("pooler" in name for name in shared.apart("tags").state_dict())
    assert any("pooler" in name for name in shared.apart("texts").state_dict())


def test_copies_of_the_best_student_hold_the_encoder_once():
    shared = student("bert")
    copied = _copied(shared.state_dict())
    assert copied.keys() == shared.state_dict().keys()
    word = "bert.embeddings.word_embeddings.weight"
    assert copied[f"one.{word}"] is copied[f"other.{word}"]
    assert copied[f"one.{word}"].data_ptr() != shared.state_dict()[f"one.{word}"].data_ptr()
    assert copied["one.classifier.weight"].shape == (2, 16)
    assert all(torch.equal(copied[name], value) for name, value in shared.state_dict().items())
