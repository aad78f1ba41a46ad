"""Features equal those of transformers' tokenizer, are truncated, and are read from the cache."""

import re
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from potstill.data.common.tokenizers import describe
from potstill.data.rationales import forms
from potstill.data.rationales.features import rationale_features
from potstill.data.rationales.rows import RationaleRows
from potstill.data.tasks import features as task_features
from potstill.errors import CacheError, TokenizerError

WORDS = ["predict:", "explain:", "the", "sea", "is", "wet", "a", "label"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Words with T5's special tokens, the end token behind every text."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.NFC(), pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder = tmp_path_factory.mktemp("t5")
    made.save(str(folder / "tokenizer.json"))
    return describe(folder)


def rows_of(inputs, labels, rationales):
    count = len(inputs)
    none = [None] * count
    return RationaleRows(inputs, labels, none, rationales, none, [False] * count, [""] * count, "a.json", "data.folder")


def texts(tokens, row):
    end = int(tokens.lengths[: row + 1].sum())
    ids = tokens.ids[end - tokens.lengths[row] : end]
    return " ".join(["<pad>", "</s>", "<unk>", *WORDS][number] for number in ids)


ROWS = rows_of(["the sea", "is the sea wet"], ["label", "a label"], ["the sea is wet", None])


def test_inputs_and_targets(tokenizer, tmp_path):
    made = rationale_features(ROWS, tokenizer, cache=tmp_path)
    assert [texts(made.predict, row) for row in (0, 1)] == ["predict: the sea </s>", "predict: is the sea wet </s>"]
    assert [texts(made.explain, row) for row in (0, 1)] == ["explain: the sea </s>", ""]
    assert [texts(made.labels, row) for row in (0, 1)] == ["label </s>", "a label </s>"]
    assert [texts(made.rationales, row) for row in (0, 1)] == ["the sea is wet </s>", ""]
    assert made.cut() == {"predict": 0, "explain": 0, "labels": 0, "rationales": 0}
    assert len(made) == 2


def test_long_texts_are_cut_and_counted(tokenizer, tmp_path):
    made = rationale_features(ROWS, tokenizer, cache=tmp_path, max_input_length=4, max_target_length=3)
    assert texts(made.predict, 1) == "predict: is the </s>"
    assert texts(made.rationales, 0) == "the sea </s>"
    assert made.cut() == {"predict": 1, "explain": 0, "labels": 0, "rationales": 1}


def test_prefixes_are_configurable(tokenizer, tmp_path):
    made = rationale_features(ROWS, tokenizer, cache=tmp_path, predict_prefix="label ", explain_prefix="")
    assert texts(made.predict, 0) == "label the sea </s>"
    assert texts(made.explain, 0) == "the sea </s>"


def test_the_second_call_reads_what_the_first_has_written(tokenizer, tmp_path, monkeypatch):
    first = rationale_features(ROWS, tokenizer, cache=tmp_path)
    monkeypatch.setattr(forms, "encode_texts", None)
    second = rationale_features(ROWS, tokenizer, cache=tmp_path)
    for name in ("predict", "explain", "labels", "rationales"):
        for array in ("ids", "lengths", "truncated"):
            assert np.array_equal(getattr(getattr(first, name), array), getattr(getattr(second, name), array))


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (replace(ROWS, labels=["label", "label"]), {}),
        (replace(ROWS, rationales=[None, "the sea is wet"]), {}),
        (ROWS, {"max_target_length": 8}),
        (ROWS, {"explain_prefix": "the "}),
    ],
)
def test_other_features_are_kept_apart(tokenizer, tmp_path, rows, options):
    rationale_features(ROWS, tokenizer, cache=tmp_path)
    rationale_features(rows, tokenizer, cache=tmp_path, **options)
    assert len([path for path in (tmp_path / "features").iterdir() if path.is_dir()]) == 2


def test_damaged_features_are_refused(tokenizer, tmp_path):
    rationale_features(ROWS, tokenizer, cache=tmp_path)
    (file,) = (tmp_path / "features").glob("*/features.npz")
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CacheError, match=re.escape(str(file.parent))):
        rationale_features(ROWS, tokenizer, cache=tmp_path)


def test_a_tokenizer_without_end_token_is_rejected(gpt2_tokenizer, tmp_path):
    with pytest.raises(TokenizerError, match=r"^data\.tokenizer: "):
        rationale_features(ROWS, describe(gpt2_tokenizer), cache=tmp_path)
    assert not list((tmp_path / "features").glob("*/features.npz"))


def test_batches_are_put_together(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(task_features, "BATCH", 2)
    done = []
    rows = rows_of(["the", "sea", "is", "wet", "a"], WORDS[2:7], ["the", None, "is", None, "a"])
    made = rationale_features(rows, tokenizer, cache=tmp_path, progress=done.append)
    assert [texts(made.rationales, row) for row in range(5)] == ["the </s>", "", "is </s>", "", "a </s>"]
    assert done == [2, 4, 5]


def test_t5s_own_tokenizer(data_dir, tmp_path):
    from transformers import AutoTokenizer

    folder = data_dir / "tokenizers/t5"
    rows = rows_of(
        ["Where is café?\nAnswer Choices:\n(a) x  y", "A dog barks.</s>It is loud. " + "more " * 40],
        ["( 8.0 - 3.0 )", "entailment"],
        ["The answer must be wet. " * 9, "Dogs bark."],
    )
    made = rationale_features(rows, describe(folder), cache=tmp_path, max_input_length=24, max_target_length=16)
    whole = AutoTokenizer.from_pretrained(folder)
    for name, prefix, column, most in (
        ("predict", "predict: ", rows.inputs, 24),
        ("explain", "explain: ", rows.inputs, 24),
        ("labels", "", rows.labels, 16),
        ("rationales", "", rows.rationales, 16),
    ):
        expected = whole([prefix + text for text in column], truncation=True, max_length=most)["input_ids"]
        tokens = getattr(made, name)
        assert np.split(tokens.ids, np.cumsum(tokens.lengths)[:-1])[0].tolist() == expected[0]
        assert tokens.ids[tokens.lengths[0] :].tolist() == expected[1]
    assert made.cut() == {"predict": 1, "explain": 1, "labels": 0, "rationales": 1}
