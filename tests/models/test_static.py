import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from potstill.data.common.tokenizers import bare_tokenizer, describe, load_backend
from potstill.errors import ModelError
from potstill.methods.embedding.models import open_encoder
from potstill.models.save import save_student
from potstill.models.sentence import SentenceEncoder, write_sentence_model
from potstill.models.sentence_folders import SentenceSettings, sentence_settings
from potstill.models.static import StaticConfig, StaticModel, static_vectors

TEXTS = ["the man was there", "who", "", "[SEP] they have made many new years [MASK] before the other state " * 40]
SETTINGS = SentenceSettings(normalize=True, static=True, prompts={"query": "he was "})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bert_tokenizer):
    torch.manual_seed(0)
    vocabulary = describe(bert_tokenizer)
    model = StaticModel(StaticConfig(vocab_size=vocabulary.size, hidden_size=6, pad_token_id=vocabulary.pad_id))
    place = tmp_path_factory.mktemp("static")
    bare = bare_tokenizer(vocabulary, place / "cache")
    save_student(model, bare, place / "m", "", lambda fresh: write_sentence_model(model, None, SETTINGS, fresh))
    return place / "m"


def test_first_vectors():
    """By hand: p = 3/4, 1/4, 0; weights 1/4, 1/2, 1; the common component is (3/16 * 4 + 1/8 * 8) / (5/16) = 5.6."""
    tokens = torch.tensor([[4.0, 0.0], [8.0, 0.0], [0.0, 2.0]])
    counts = torch.tensor([3, 1, 0])
    found = static_vectors(tokens, counts, 0.25)
    expected = torch.tensor([[4 - 5.6, 0.0], [8 - 5.6, 0.0], [0 - 5.6, 2.0]]) * torch.tensor([[0.25], [0.5], [1.0]])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(counts.float() @ found, torch.zeros(2), atol=1e-6, rtol=0)  # the mean of all texts
    plain = static_vectors(tokens, counts, None, torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(plain, torch.tensor([[0.0], [0.0], [2.0]]))
    assert static_vectors(tokens, torch.zeros(3), 0.25).equal(tokens)


def test_bags_are_the_means_of_padded_batches(folder):
    encoder = SentenceEncoder(StaticModel.from_pretrained(folder), SETTINGS)
    ids, mask = torch.tensor([[5, 6, 7, 8], [9, 5, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    found = encoder(ids, mask)
    torch.testing.assert_close(found, encoder.vectors(encoder.states(ids, mask), mask))
    many = encoder.encode([np.array([5, 6, 7, 8]), np.array([], np.int32), np.array([9, 5])], 0)
    torch.testing.assert_close(many[[0, 2]], found)
    assert many[1].tolist() == [0.0] * 6


def test_a_folder_gives_the_same_vectors(folder):
    side, limit = open_encoder("model", str(folder))
    assert (side.settings.static, side.settings.normalize, side.encoder.width) == (True, True, 6)
    assert side.settings.prompt("query") == "he was "
    tokenizer = load_backend(folder)
    ids = [np.array(tokenizer.encode(text).ids or [side.vocabulary.pad_id]) for text in TEXTS]
    assert max(map(len, ids)) < limit
    assert ids[1][0] not in side.vocabulary.special_ids
    with torch.no_grad():
        found = side.encoder.encode(ids, side.vocabulary.pad_id)
    (weight,) = load_file(folder / "model.safetensors").values()
    expected = torch.stack([weight[own].mean(0) for own in ids])
    torch.testing.assert_close(found, normalize(expected, dim=-1), atol=1e-6, rtol=0)


def test_vectors_are_those_of_sentence_transformers(folder):
    import sentence_transformers as library

    theirs = library.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    side, _ = open_encoder("model", str(folder))
    tokenizer = load_backend(folder)
    ids = [np.array(tokenizer.encode(text).ids or [side.vocabulary.pad_id]) for text in TEXTS]
    with torch.no_grad():
        ours = side.encoder.encode(ids, side.vocabulary.pad_id)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=1e-5, rtol=0)


def test_other_modules_are_rejected(folder, tmp_path):
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(1, {"type": "a.Dense", "path": "1_Dense"})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match=r"model=x: has the modules StaticEmbedding, Dense, Normalize"):
        sentence_settings("model=x", tmp_path)
