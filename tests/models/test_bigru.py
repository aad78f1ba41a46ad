import pytest
import torch
from transformers import AutoModelForSequenceClassification

from potstill.models.backbone import backbone_of
from potstill.models.bigru import BiGruConfig, BiGruForSequenceClassification, BiGruForTokenClassification, pooled
from potstill.models.load import load_task_model
from potstill.models.students import student_from_config

SIZES = {"vocab_size": 40, "embedding_size": 6, "hidden_size": 10, "num_hidden_layers": 2, "num_labels": 3}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BiGruForSequenceClassification(BiGruConfig(**SIZES)).eval()


def batch():
    ids = torch.randint(4, 40, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7) < torch.tensor([7, 3, 5])[:, None]).long()
    return ids * mask, mask


@torch.no_grad()
def test_a_backbone_computes_what_the_model_computes(model):
    ids, mask = batch()
    backbone = backbone_of(model)
    last, kept = backbone.blocks(backbone.embed(ids, mask), keep=[0])
    assert (backbone.depth, backbone.width, backbone.kind, kept[0].shape) == (2, 10, "masked", (3, 7, 10))
    expected = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(backbone.classify(backbone.finish(last), mask), expected)
    tokens = BiGruForTokenClassification(model.config).eval()
    own = backbone_of(tokens)
    found = own.classify(own.blocks(own.embed(ids, mask))[0], mask)
    torch.testing.assert_close(found, tokens(ids, mask).logits)
    assert found.shape == (3, 7, 3)


@torch.no_grad()
def test_padding_changes_nothing(model):
    ids, mask = batch()
    whole = model(input_ids=ids, attention_mask=mask).logits
    for row, length in enumerate((7, 3, 5)):
        alone = model(input_ids=ids[row : row + 1, :length]).logits
        torch.testing.assert_close(alone[0], whole[row])
    other = ids.masked_fill(mask == 0, 9)
    torch.testing.assert_close(model(input_ids=other, attention_mask=mask).logits, whole)


def test_each_direction_has_read_the_whole_sequence(model):
    ids, _ = batch()
    states = model.bigru.embed(ids).detach().requires_grad_()
    hidden = states
    for layer in model.bigru.layers[:1]:
        hidden = layer(hidden)
    pooled(hidden, None)[:, :5].sum().backward(retain_graph=True)
    assert (states.grad.abs().sum(-1) > 0).all()
    states.grad = None
    pooled(hidden, None)[:, 5:].sum().backward()
    assert (states.grad.abs().sum(-1) > 0).all()


def test_a_folder_gives_the_model_back(model, tmp_path):
    model.config.id2label = {0: "a", 1: "b", 2: "c"}
    model.config.label2id = {"a": 0, "b": 1, "c": 2}
    model.save_pretrained(tmp_path)
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids, mask = batch()
    torch.testing.assert_close(opened(ids, mask).logits, model(ids, mask).logits)
    turned = load_task_model("model", str(tmp_path), labels=["c", "a", "b"], need_head=True).eval()
    torch.testing.assert_close(turned(ids, mask).logits, model(ids, mask).logits[:, [2, 0, 1]])


def test_a_student_from_its_configuration():
    settings = {"model_type": "bigru", "embedding_size": 6, "hidden_size": 10}
    student = student_from_config(settings, vocab_size=40, pad_token_id=0, labels=["no", "yes"])
    assert type(student) is BiGruForSequenceClassification
    assert student.config.id2label == {0: "no", 1: "yes"}
    assert (student.bigru.embeddings.weight[0] == 0).all()
    assert student.bigru.embeddings.weight.std().item() == pytest.approx(0.02, rel=0.3)


def test_there_is_no_attention_to_choose():
    settings = {"model_type": "bigru", "embedding_size": 8, "hidden_size": 8}
    for attention in ("eager", "flex_attention"):
        student_from_config(settings, vocab_size=40, pad_token_id=0, labels=["no", "yes"], attention=attention)
