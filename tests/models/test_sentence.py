import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel

from potstill.errors import ModelError
from potstill.methods.embedding.models import open_encoder
from potstill.methods.embedding.widths import principal_components
from potstill.models.backbone import backbone_of
from potstill.models.load import load_base_model
from potstill.models.save import save_student
from potstill.models.sentence import DENSE, SentenceEncoder, add_dense, pool, sentence_student, write_sentence_model
from potstill.models.sentence_folders import POOLINGS, SentenceSettings, sentence_settings, write_sentence_settings

TEXTS = ["the man was there", "who", "they have made many new years before the other state " * 9]


@pytest.fixture(scope="module")
def write(tmp_path_factory, bert_teacher):
    """Write a sentence encoder of a BERT with these settings, and a Dense of this weight."""

    def make(settings, weight=None, bias=None):
        model = load_base_model("model", str(bert_teacher))
        folder = tmp_path_factory.mktemp("encoder") / "encoder"
        if weight is not None:
            add_dense(model, weight, bias)
        dense = model._modules.pop(DENSE, None)
        save_student(model, bert_teacher, folder, "", lambda fresh: write_sentence_model(model, dense, settings, fresh))
        return folder

    return make


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("mean", [[2.0, 3.0], [1.0, 2.0]]),
        ("cls", [[1.0, 2.0], [1.0, 2.0]]),
        ("last", [[3.0, 4.0], [1.0, 2.0]]),
        ("weighted", [[7 / 3, 10 / 3], [1.0, 2.0]]),
        ("max", [[3.0, 4.0], [1.0, 2.0]]),
        ("mean_sqrt_len", [[4 / 2**0.5, 6 / 2**0.5], [1.0, 2.0]]),
    ],
)
def test_poolings(way, expected):
    states = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [9.0, 9.0]]])
    found = pool(states.bfloat16(), torch.tensor([[1, 1], [1, 0]]), way)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_settings_are_written_and_read(tmp_path):
    for number, way in enumerate(POOLINGS):
        own = SentenceSettings(
            way,
            number % 2 == 0,
            None,
            "Identity",
            77,
            number > 2,
            {"query": "q: "},
            "query",
            "dot" if number else "cosine",
        )
        folder = tmp_path / way
        folder.mkdir()
        write_sentence_settings(own, folder, 8)
        assert sentence_settings("model=x", folder) == own
    assert own.prompt(None) == own.prompt("query") == "q: "
    assert own.prompt("as it is: ") == "as it is: "
    newer = tmp_path / "max" / "1_Pooling" / "config.json"
    newer.write_text(json.dumps({"embedding_dimension": 8, "pooling_mode": "lasttoken"}))
    assert sentence_settings("model=x", tmp_path / "max").pooling == "last"


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("modules.json", None, "model=x: has no modules.json.*objective.pooling="),
        ("modules.json", "[", "modules.json cannot be read"),
        ("modules.json", '[{"type": "a.Transformer", "path": ""}]', "modules Transformer"),
        ("modules.json", '[{"type": "a.Pooling"}, {"type": "a.Transformer"}]', "in this order"),
        ("1_Pooling/config.json", '{"pooling_mode": ["mean", "max"]}', "poolings mean, max"),
        ("1_Pooling/config.json", "{}", "poolings none"),
        ("1_Pooling/config.json", '{"pooling_mode_mean_tokens": true, "include_prompt": false}', "include_prompt"),
        ("config_sentence_transformers.json", "[]", "is not a JSON object"),
    ],
)
def test_folders_that_are_no_encoders(file, content, match, tmp_path):
    write_sentence_settings(SentenceSettings(prompts={"query": "q: "}), tmp_path, 8)
    if content is None:
        (tmp_path / file).unlink()
        assert sentence_settings("model=x", tmp_path, "cls") == SentenceSettings("cls")
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(ModelError, match=match):
        sentence_settings("model=x", tmp_path)


@pytest.mark.parametrize("activation", ["Identity", "Tanh"])
def test_an_encoder_of_a_folder(activation, write):
    torch.manual_seed(0)
    weight, bias = torch.randn(5, 32), torch.randn(5)
    settings = SentenceSettings("mean", True, "2_Dense", activation, 40, prompts={"query": "he "})
    folder = write(settings, weight, bias)
    side, limit = open_encoder("model", str(folder))
    assert (side.settings, limit, side.encoder.width) == (settings, 40, 5)
    model = AutoModel.from_pretrained(folder).eval()  # a plain transformers folder
    ids = torch.tensor([[2, 9, 10, 3]])
    with torch.no_grad():
        found = side.encoder(ids, torch.ones_like(ids))
        raw = model(input_ids=ids).last_hidden_state.mean(1) @ weight.T + bias
    expected = torch.nn.functional.normalize(raw.tanh() if activation == "Tanh" else raw, dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_many_texts_are_encoded_as_each_by_itself(write):
    side, _ = open_encoder("model", str(write(SentenceSettings("weighted"))))
    ids = [np.arange(5, 5 + n) for n in (3, 9, 1, 30, 2)]
    with torch.no_grad():
        found = side.encoder.encode(ids, 0, batch_size=2)
        for vector, own in zip(found, ids, strict=True):
            one = torch.tensor(own)[None]
            torch.testing.assert_close(vector, side.encoder(one, torch.ones_like(one))[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("way", POOLINGS)
def test_vectors_are_those_of_sentence_transformers(way, write):
    import sentence_transformers as library

    settings = SentenceSettings(
        way, way != "max", "2_Dense", "Tanh", 40, prompts={"query": "he was "}, default_prompt="query"
    )
    folder = write(settings, torch.randn(6, 32), torch.randn(6))
    theirs = library.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    side, limit = open_encoder("model", str(folder))
    from potstill.data.common.tokenizers import load_backend

    tokenizer = load_backend(folder)
    tokenizer.enable_truncation(limit)
    with torch.no_grad():
        ids = [np.array(tokenizer.encode(side.settings.prompt(None) + text).ids) for text in TEXTS]
        ours = side.encoder.encode(ids, side.vocabulary.pad_id)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=1e-5, rtol=0)


def test_students_of_layers(bert_teacher):
    teacher = load_base_model("teacher.model", str(bert_teacher))
    assert teacher.pooler is None  # the checkpoint of a language model has none
    add_dense(teacher, torch.randn(7, 32))
    ids = torch.tensor([[2, 9, 10, 3], [2, 7, 3, 0]])
    mask = (ids != 0).long()
    settings = SentenceSettings("mean", True, "2_Dense")
    for architecture in (None, "distilbert"):
        student = sentence_student(teacher, [0, 1, 2, 3], architecture=architecture).eval()
        with torch.no_grad():
            found, expected = (SentenceEncoder(own, settings)(ids, mask) for own in (student, teacher))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert backbone_of(sentence_student(teacher, [0, 3])).depth == 2
    shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    pooled = BertModel(BertConfig(vocab_size=50, **shape))
    shallow = sentence_student(pooled, [0, 2])
    torch.testing.assert_close(shallow.pooler.dense.weight, pooled.pooler.dense.weight)
    assert not shallow.pooler.dense.weight.requires_grad


def test_principal_components():
    torch.manual_seed(0)
    vectors = torch.randn(200, 6) @ torch.diag(torch.tensor([5.0, 3.0, 2.0, 1.0, 0.1, 0.01])) + 1
    rows = principal_components(vectors)
    torch.testing.assert_close(rows @ rows.T, torch.eye(6), atol=1e-5, rtol=0)
    sizes = (vectors @ rows.T).square().mean(0)
    assert sizes.tolist() == sorted(sizes.tolist(), reverse=True)
    reduced = vectors @ rows[:4].T
    lost = torch.linalg.matrix_norm(reduced @ reduced.T - vectors @ vectors.T)
    assert lost <= torch.linalg.eigvalsh(vectors.T @ vectors)[:2].norm() * 1.01  # the least that is possible
    torch.testing.assert_close(principal_components(vectors.flip(0)), rows, atol=1e-4, rtol=0)
