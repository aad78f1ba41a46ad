"""Token features: ids of transformers, labels at the first tokens of words, windows without lost words."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.data.common.tokenizers import describe, load_backend
from potstill.data.tasks.columns import ColumnSource
from potstill.data.tasks.entities import inside, tag_labels, tag_numbers
from potstill.data.tasks.sources import DataFile
from potstill.data.tasks.token_features import CUT, _bounds, token_features, token_labels
from potstill.errors import ConfigError
from potstill.evaluation.entities import entity_scores, micro

LABELS = ("O", "B-X", "I-X")
SENTENCES = [["the", "man", "has", "xyzzy", "there"], ["they"], ["u.n.", "may", ",", "go"]]


@pytest.fixture(scope="session")
def unigram_tokenizer(tmp_path_factory):
    """A folder with a SentencePiece-like tokenizer that puts a space before the first word of a text alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [(letter, -5.0) for letter in "▁abcdefghijklmnopqrstuvwxyz.,"]
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *letters, ("▁the", -2.0), ("▁they", -2.0), ("▁man", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace()
    folder = tmp_path_factory.mktemp("unigram")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    return folder


def predicted_tags(features, predicted, labels):
    """The tags of all words by sentence; `O` for a word that no window has."""
    tags = np.full(len(features.firsts), "O", dtype=object)
    first = features.words >= 0
    tags[features.words[first]] = np.array(labels, dtype=object)[predicted[first]]
    ends = np.cumsum(features.counts)
    return [tags[end - count : end].tolist() for end, count in zip(ends, features.counts, strict=True)]


def windows(features):
    ends = np.cumsum(features.lengths)
    return [features.ids[end - n : end].tolist() for end, n in zip(ends, features.lengths, strict=True)]


def numbered(sentences):
    """A number of its own for each word, so that a label that moved shows."""
    return np.arange(sum(map(len, sentences)), dtype=np.int64)


@pytest.mark.parametrize("kind", ["bert_tokenizer", "gpt2_tokenizer"])
def test_ids_and_first_tokens_are_those_of_transformers(kind, request):
    from transformers import AutoTokenizer

    folder = request.getfixturevalue(kind)
    options = {"add_prefix_space": True} if kind == "gpt2_tokenizer" else {}
    whole = AutoTokenizer.from_pretrained(folder, **options)
    features = token_features(SENTENCES, describe(folder), max_length=64)
    labels = token_labels(features, numbered(SENTENCES))
    expected, number = [], 0
    for words, window in zip(SENTENCES, windows(features), strict=True):
        encoding = whole(words, is_split_into_words=True)
        assert window == encoding["input_ids"]
        owners = encoding.word_ids()
        for at, owner in enumerate(owners):
            first = owner is not None and owner not in owners[:at]
            expected.append(number + owner if first else -100)
        number += len(words)
    assert labels.tolist() == expected
    assert (features.words >= 0).tolist() == [label != -100 for label in expected]
    assert (features.cut, features.shortened, features.blank) == (0, 0, 0)


@pytest.mark.parametrize("max_length", [7, 64])
def test_every_token_of_a_word_can_have_its_label_as_in_run_ner(max_length, bert_tokenizer):
    """transformers' `label_all_tokens`, in each window: a word begins an entity once."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bert_tokenizer)
    tags = [["O", "B-X", "I-X", "B-X", "O"], ["I-X"], ["S-X", "O", "E-X", "X"]]
    names = ["O", "B-X", "I-X", "S-X", "E-X", "X"]
    later = {"B-X": "I-X", "S-X": "I-X"}
    assert [inside(own) for own in tags] == [[later.get(tag, tag) for tag in own] for own in tags]
    features = token_features(SENTENCES, describe(bert_tokenizer), max_length=max_length)
    labels = token_labels(features, tag_numbers(tags, names), tag_numbers(map(inside, tags), names))
    expected = []
    for words, own in zip(SENTENCES, tags, strict=True):
        for word, tag in zip(words, own, strict=True):
            pieces = tokenizer.tokenize(word)
            expected += [tag, *[later.get(tag, tag)] * (len(pieces) - 1)]
    assert any(len(tokenizer.tokenize(word)) > 2 for words in SENTENCES for word in words)
    assert [names[label] for label in labels if label != -100] == expected
    assert ((features.words_of_all >= 0) == (labels != -100)).all()
    first = features.words >= 0
    assert (features.words_of_all[first] == features.words[first]).all()


@pytest.mark.parametrize("kind", ["gpt2_tokenizer", "unigram_tokenizer"])
def test_words_are_tokenised_as_in_running_text(kind, request):
    folder = request.getfixturevalue(kind)
    text = load_backend(folder).encode(" the man was there", add_special_tokens=False).ids
    features = token_features([["the", "man", "was", "there"]], describe(folder), max_length=64)
    assert windows(features) == [text]


@pytest.mark.parametrize("too_long", ["split", "cut"])
@pytest.mark.parametrize("kind", ["bert_tokenizer", "gpt2_tokenizer", "unigram_tokenizer"])
@pytest.mark.parametrize("max_length", [3, 7, 16, 64])
def test_predictions_come_back_to_their_words(kind, too_long, max_length, request, words):
    folder = request.getfixturevalue(kind)
    sentences = [words[start : start + n] for start, n in ((0, 40), (3, 1), (50, 13), (9, 5))]
    features = token_features(sentences, describe(folder), max_length=max_length, too_long=too_long)
    assert features.lengths.max() <= max_length
    assert len(features.firsts) == 59
    assert features.counts.tolist() == [40, 1, 13, 5]
    names = [f"B-{n}" for n in range(59)]
    labels = token_labels(features, numbered(sentences))
    assert (np.diff(labels[labels != -100]) > 0).all()
    expected = np.array(names, dtype=object)
    if too_long == CUT:
        expected[features.firsts == -1] = "O"
        assert features.cut == (features.firsts == -1).sum()
        assert features.sentences.tolist() == [0, 1, 2, 3]
    else:
        assert features.cut == 0
    for predicted in (np.where(labels == -100, 0, labels), labels):
        tags = predicted_tags(features, predicted, names)
        assert list(map(len, tags)) == [40, 1, 13, 5]
        assert [tag for sentence in tags for tag in sentence] == expected.tolist()


def test_windows_split_between_words_in_even_parts(bert_tokenizer):
    vocabulary = describe(bert_tokenizer)
    features = token_features([["the"] * 15, ["of"]], vocabulary, max_length=16)
    assert features.lengths.tolist() == [10, 9, 3]  # not 14 words and one alone
    assert features.sentences.tolist() == [0, 0, 1]
    for window in windows(features):
        assert (window[0], window[-1]) == (vocabulary.start_id, vocabulary.end_id)
        assert vocabulary.start_id not in window[1:]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=14), st.integers(6, 10))
def test_windows_are_few_and_hold_every_word(lengths, room):
    bounds = _bounds(lengths, room)
    sums = [sum(lengths[a:b]) for a, b in pairwise(bounds)]
    assert (bounds[0], bounds[-1]) == (0, len(lengths))
    assert max(sums) <= room

    def least(start):  # every way to cut the rest
        if start == len(lengths):
            return 0, 0
        ways = []
        for end in range(start + 1, len(lengths) + 1):
            if sum(lengths[start:end]) <= room:
                count, longest = least(end)
                ways.append((count + 1, max(longest, sum(lengths[start:end]))))
        return min(ways)

    assert (len(sums), max(sums)) == least(0)


def test_a_cut_sentence_does_not_flatter_the_scores(bert_tokenizer):
    sentence = [["the", "man", "of", "the", "time"]]
    gold = [["B-X", "I-X", "O", "B-X", "I-X"]]
    features = token_features(sentence, describe(bert_tokenizer), max_length=5, too_long=CUT)
    labels = token_labels(features, tag_numbers(gold, LABELS))
    assert labels.tolist() == [-100, 1, 2, 0, -100]
    perfect = predicted_tags(features, np.maximum(labels, 0), LABELS)
    assert perfect == [["B-X", "I-X", "O", "O", "O"]]
    score = micro(entity_scores(gold, perfect).values())
    assert (features.cut, score.precision, score.recall) == (2, 1.0, 0.5)


@pytest.mark.parametrize("nothing", ["\x01", "\u200b", "\ufeff", " ", ""])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_word_without_tokens_moves_no_label(nothing, at, bert_tokenizer):
    vocabulary = describe(bert_tokenizer)
    words = ["the", "man", "has"]
    words.insert(at, nothing)
    features = token_features([words, ["they"]], vocabulary, max_length=16)
    assert features.blank == 1
    window = windows(features)[0]
    assert len(window) == 6
    assert window[at + 1] == vocabulary.unk_id
    assert token_labels(features, numbered([words, ["they"]])).tolist() == [-100, 0, 1, 2, 3, -100, -100, 4, -100]


def test_a_word_without_tokens_is_outside_where_there_is_no_unknown_token(bert_tokenizer):
    vocabulary = replace(describe(bert_tokenizer), unk_id=None)
    features = token_features([["the", "\x01", "man"], ["they"]], vocabulary, max_length=16)
    labels = token_labels(features, np.array([1, 2, 2, 1]))
    assert labels.tolist() == [-100, 1, 2, -100, -100, 1, -100]
    assert predicted_tags(features, np.ones(len(labels), int), LABELS) == [["B-X", "O", "B-X"], ["B-X"]]
    assert (features.blank, features.cut) == (1, 0)


def test_a_word_longer_than_a_window_keeps_its_first_tokens(gpt2_tokenizer):
    features = token_features([["the", "zq" * 40, "man"]], describe(gpt2_tokenizer), max_length=8)
    assert features.shortened == 1
    assert features.lengths.max() <= 8
    assert (features.firsts >= 0).all()
    assert (np.diff(features.firsts) > 0).all()


def test_a_length_without_words_is_rejected(bert_tokenizer):
    with pytest.raises(ConfigError, match=r"data\.max_length=2: .* use 3 or more"):
        token_features([["the"]], describe(bert_tokenizer), max_length=2)


def test_a_wrong_number_of_labels_is_rejected(bert_tokenizer):
    features = token_features([["the", "man"]], describe(bert_tokenizer), max_length=8)
    with pytest.raises(ValueError, match="3 labels of 2 words"):
        token_labels(features, np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="too_long=half"):
        token_features([["the"]], describe(bert_tokenizer), max_length=8, too_long="half")


def test_progress_is_reported(bert_tokenizer):
    told = []
    token_features([["the"]] * 1500, describe(bert_tokenizer), max_length=8, progress=told.append)
    assert told == [1000, 1500]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("bert-base-uncased", "ner/conll2003/dev.txt"),
        ("roberta-gpt2-bpe", "ner/conll2003/dev.txt"),
        ("t5", "ner/conll2003/dev.txt"),
        ("bert-base-chinese", "chinese/msra_ner/test.ner.gz"),
    ],
)
def test_real_sentences_of_real_tokenizers(name, file, data_dir):
    from transformers import AutoTokenizer

    folder = data_dir / "tokenizers" / name
    sentences = ColumnSource(DataFile(data_dir / file), max_examples=1500).read()
    features = token_features(sentences.words, describe(folder), max_length=64)
    options = {"add_prefix_space": True} if name.startswith("roberta") else {}
    whole = AutoTokenizer.from_pretrained(folder, **options)
    expected = whole(sentences.words, is_split_into_words=True)["input_ids"]
    once = np.flatnonzero(np.bincount(features.sentences) == 1)
    made = windows(features)
    agree = 0
    for sentence in once:
        window = made[int(np.searchsorted(features.sentences, sentence))]
        agree += window == expected[sentence]
    assert agree >= len(once) - features.blank
    assert len(once) < len(sentences)
    labels = tag_labels(sentences.tags)
    numbers = tag_numbers([[tag.replace("M-", "I-") for tag in tags] for tags in sentences.tags], labels)
    perfect = predicted_tags(features, np.maximum(token_labels(features, numbers), 0), labels)
    assert micro(entity_scores(sentences.tags, perfect).values()).f1 == 1.0
