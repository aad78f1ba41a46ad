"""The tokenizer of a model's folder: there, with a vocabulary that fits the model and knows the texts."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from potstill.data.common.tokenizers import describe
from potstill.data.tasks.preflight import refuse_unknown
from potstill.errors import DataError
from potstill.methods.common.data import build_vocabulary, local_tokenizer, refuse_dropped
from potstill.methods.common.models import check_vocabulary


@pytest.fixture
def bare(bert_teacher, tmp_path):
    """A model folder less its tokenizer."""
    folder = tmp_path / "bare"
    shutil.copytree(bert_teacher, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize("key", ["model", "teacher.model", "student.model"])
@pytest.mark.parametrize("left", [None, "tokenizer_config.json"])
def test_a_model_without_a_tokenizer(key, left, bare, bert_teacher):
    if left:
        (bare / left).write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    with pytest.raises(DataError) as error:
        local_tokenizer(key, str(bare))
    assert str(error.value).startswith(f"{key}={bare}: ")
    assert "data.tokenizer" in str(error.value)
    data = SimpleNamespace(tokenizer=str(bert_teacher))
    assert build_vocabulary(data, None, {key: str(bare)}).size == describe(bert_teacher).size


def test_a_tokenizer_of_special_tokens_alone(bare):
    from tokenizers import Tokenizer, models

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    empty = Tokenizer(models.WordPiece({name: n for n, name in enumerate(specials)}, unk_token="[UNK]"))
    empty.add_special_tokens(specials)
    empty.save(str(bare / "tokenizer.json"))
    with pytest.raises(DataError, match=r"^data\.tokenizer: ") as error:
        describe(bare)
    assert str(bare) in str(error.value)


def test_a_tokenizer_of_a_larger_vocabulary(bert_tokenizer):
    vocabulary = describe(bert_tokenizer)
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=vocabulary.size - 1))
    with pytest.raises(DataError, match=rf"{vocabulary.size}.*model.*{vocabulary.size - 1}"):
        check_vocabulary(vocabulary, "model", model)


@pytest.mark.parametrize(("unknown", "most", "refused"), [(6, 0.5, True), (5, 0.5, False), (9, 0.9, False)])
def test_rows_that_are_mostly_unknown(unknown, most, refused, bert_tokenizer):
    vocabulary = describe(bert_tokenizer)
    ids = np.array([vocabulary.unk_id] * unknown + [9] * (10 - unknown))
    if not refused:
        refuse_unknown("a.tsv", ids, vocabulary, most)
        return
    with pytest.raises(DataError, match=r"^data\.max_unknown=0\.5: 60%.*'a\.tsv'.*data\.tokenizer"):
        refuse_unknown("a.tsv", ids, vocabulary, most)


def test_a_corpus_that_is_mostly_unknown(bert_tokenizer):
    vocabulary = describe(bert_tokenizer)
    store = SimpleNamespace(index={"report": {"sequences": 2, "dropped_unknown": 3}})
    with pytest.raises(DataError, match=r"^data\.max_unknown=0\.5: 3 of 5.*'a\.txt'.*data\.tokenizer"):
        refuse_dropped("a.txt", store, 0.5, vocabulary)
    store.index["report"]["dropped_unknown"] = 2
    refuse_dropped("a.txt", store, 0.5, vocabulary)
