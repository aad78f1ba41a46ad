"""Generated problems: rationales lead to the labels, and every word has a token."""

import pytest

from potstill.config.data import GeneratedConfig
from potstill.data.common.tokenizers import describe, load_backend
from potstill.data.rationales.arithmetic import arithmetic_rows, arithmetic_tokenizer
from potstill.errors import ConfigError

SMALL = GeneratedConfig(train=300, valid=20, test=50, people=2)
SPLITS = ("train", "valid", "test")


def told(text):
    """Who has how many at the end, by the sentences themselves."""
    counts = {}
    for sentence in text.split(" . ")[:-1]:
        name, verb, number, *_ = sentence.split()
        change = {"has": 1, "gets": 1, "loses": -1}[verb] * int(number)
        counts[name] = counts.get(name, 0) + change
        assert 0 <= counts[name] <= SMALL.largest
    return counts


def test_rationales_lead_to_the_labels():
    rows = arithmetic_rows(SMALL, "train")
    for text, label, rationale in zip(rows.inputs, rows.labels, rows.rationales, strict=True):
        asked = text.split()[-2]
        assert str(told(text)[asked]) == label
        assert rationale.split()[-2] == label
        for line in rationale.removesuffix(" .").split(" . "):
            first, sign, second, _, result = line.split()
            assert int(first) + (1 if sign == "+" else -1) * int(second) == int(result)
    assert len(set(rows.labels)) == SMALL.largest + 1
    assert {rationale.count("=") for rationale in rows.rationales} == {1, 2, 3}


def test_problems_are_distinct_and_test_rows_independent_of_other_sizes():
    parts = {split: arithmetic_rows(SMALL, split).inputs for split in SPLITS}
    assert [len(parts[split]) for split in SPLITS] == [300, 20, 50]
    assert len(set().union(*parts.values())) == 370
    more = GeneratedConfig(train=400, valid=20, test=50, people=2)
    assert arithmetic_rows(more, "test") == arithmetic_rows(SMALL, "test")
    assert arithmetic_rows(more, "train").inputs[:300] == parts["train"]
    assert (
        arithmetic_rows(GeneratedConfig(train=300, valid=20, test=50, people=2, seed=1), "test").inputs != parts["test"]
    )


def test_the_tokenizer_has_every_word_and_gives_it_back(tmp_path):
    prefixes = ("answer: ", "why: ")
    folder = arithmetic_tokenizer(SMALL, prefixes, tmp_path)
    backend, vocabulary = load_backend(folder), describe(folder)
    rows = arithmetic_rows(SMALL, "train")
    for text in (*rows.inputs[:50], *rows.labels[:50], *rows.rationales[:50], "answer: why:"):
        encoded = backend.encode(text)
        assert vocabulary.unk_id not in encoded.ids
        assert encoded.ids[-1] == vocabulary.end_id
        assert backend.decode(encoded.ids, skip_special_tokens=True) == text
    assert (vocabulary.pad_id, vocabulary.end_id) == (0, 1)
    assert arithmetic_tokenizer(SMALL, prefixes, tmp_path) == folder


def test_more_problems_than_there_are():
    with pytest.raises(ConfigError, match=r"data\.generated: .* 20,070"):
        arithmetic_rows(GeneratedConfig(train=20_000, valid=20, test=50, people=1, events=1, largest=4), "train")
