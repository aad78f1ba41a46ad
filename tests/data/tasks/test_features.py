"""Features equal those of transformers' tokenizers; a damaged cache is rejected; irregular rows are counted."""

import re

import numpy as np
import pytest

from potstill.data.common.tokenizers import describe
from potstill.data.tasks.features import features_of
from potstill.data.tasks.preflight import oddities, warnings_of
from potstill.data.tasks.readers import Rows
from potstill.errors import CacheError


def rows_of(*columns, labels=None):
    return Rows(columns, labels, [f"line {n}" for n in range(len(columns[0]))], "a.tsv", "benchmark.train_file")


def row(features, number):
    ends = np.cumsum(features.lengths)
    part = slice(ends[number] - features.lengths[number], ends[number])
    return features.ids[part].tolist(), features.types[part].tolist()


@pytest.mark.parametrize("kind", ["bert_tokenizer", "gpt2_tokenizer"])
@pytest.mark.parametrize("pair", [False, True])
def test_rows_are_framed_and_cut_as_transformers_does(kind, pair, request, tmp_path):
    from transformers import AutoTokenizer

    folder = request.getfixturevalue(kind)
    first = ["the man has been there", "one " * 30, "they", "may"]
    second = ["and will not go", "two three", "would not " * 20, "be"]
    columns = [first, second] if pair else [first]
    features = features_of(rows_of(*columns), describe(folder), max_length=16, cache=tmp_path)
    whole = AutoTokenizer.from_pretrained(folder)
    for number, texts in enumerate(zip(*columns, strict=True)):
        expected = whole(*texts, truncation="longest_first", max_length=16, return_token_type_ids=True)
        assert row(features, number) == (expected["input_ids"], expected["token_type_ids"])
        uncut = whole(*texts, verbose=False)["input_ids"]
        assert features.truncated[number] == (len(uncut) > 16)


@pytest.mark.parametrize("name", ["bert-base-uncased", "bert-base-chinese", "roberta-gpt2-bpe"])
def test_pairs_of_real_tokenizers(name, data_dir, tmp_path):
    from transformers import AutoTokenizer

    folder = data_dir / "tokenizers" / name
    columns = [["他说妈妈我回来了。", "It's  naïve; isn't it?"], ["校车把他放下后", 'Well "so" they say...']]
    features = features_of(rows_of(*columns), describe(folder), max_length=12, cache=tmp_path)
    whole = AutoTokenizer.from_pretrained(folder)
    for number, texts in enumerate(zip(*columns, strict=True)):
        expected = whole(*texts, truncation="longest_first", max_length=12)
        assert row(features, number)[0] == expected["input_ids"]


def test_the_second_call_reads_what_the_first_has_written(bert_tokenizer, tmp_path, monkeypatch):
    from potstill.data.tasks import features as module

    vocabulary, rows = describe(bert_tokenizer), rows_of(["the man", "one"])
    first = features_of(rows, vocabulary, max_length=16, cache=tmp_path)
    monkeypatch.setattr(module, "load_backend", lambda _: pytest.fail("tokenised again"))
    again = features_of(rows, vocabulary, max_length=16, cache=tmp_path)
    assert all(np.array_equal(getattr(first, n), getattr(again, n)) for n in ("ids", "types", "lengths", "truncated"))
    for other, length in ((rows_of(["the man", "two"]), 16), (rows, 15), (rows_of(["the", "man one"]), 16)):
        with pytest.raises(pytest.fail.Exception, match="tokenised again"):
            features_of(other, vocabulary, max_length=length, cache=tmp_path)


def test_damaged_features_are_refused(bert_tokenizer, tmp_path):
    vocabulary, rows = describe(bert_tokenizer), rows_of(["the man"] * 50)
    features_of(rows, vocabulary, max_length=16, cache=tmp_path)
    (file,) = tmp_path.rglob("features.npz")
    whole = file.read_bytes()
    middle = len(whole) // 3
    for damaged in (b"", whole[:middle], whole[:300] + b"\xff\xff" + whole[302:]):
        file.write_bytes(damaged)
        with pytest.raises(CacheError, match=re.escape(str(file.parent))):
            features_of(rows, vocabulary, max_length=16, cache=tmp_path)


def test_a_blank_text_has_a_token_to_read(gpt2_tokenizer, tmp_path):
    vocabulary = describe(gpt2_tokenizer)
    features = features_of(rows_of(["", "the man"]), vocabulary, max_length=16, cache=tmp_path)
    assert row(features, 0) == ([vocabulary.pad_id], [0])


def test_irregular_rows_are_counted_and_reported(bert_tokenizer, tmp_path):
    vocabulary = describe(bert_tokenizer)
    train = rows_of(["the man", "the man", " ", "one " * 40, "xylophone quartz"])
    features = features_of(train, vocabulary, max_length=16, cache=tmp_path)
    counts = oddities(list(zip(*train.texts, strict=True)), features.ids, vocabulary, [("the man",), ("other",)])
    counts |= {"truncated": int(features.truncated.sum()), "broken": 2}
    assert {key: counts[key] for key in ("examples", "truncated", "unknown", "empty", "duplicates")} == {
        "examples": 5, "truncated": 1, "unknown": 2, "empty": 1, "duplicates": 1,
    }  # fmt: skip
    lines = warnings_of("train.tsv", counts, 16, "tokenizer", "classification")
    assert "train.tsv: 2 rows with a wrong number of columns are skipped" in lines
    assert "train.tsv: 1 of 5 rows longer than data.max_length=16 tokens, and cut" in lines
    assert "train.tsv: 2 of 5 rows that are also in the training set" in lines
    assert any("of the tokens are unknown to the tokenizer 'tokenizer'" in line for line in lines)
    clean = rows_of(["the man", "one"])
    features = features_of(clean, vocabulary, max_length=16, cache=tmp_path)
    counts = oddities(list(zip(*clean.texts, strict=True)), features.ids, vocabulary)
    assert warnings_of("train.tsv", counts, 16, "tokenizer", "classification") == []
