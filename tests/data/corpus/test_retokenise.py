import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from potstill.data.common.tokenizers import describe
from potstill.data.corpus.retokenise import Retokeniser, aligned_ends

TEXTS = ["the of and to", "before which one you were her", "through"]


@pytest.fixture(scope="module")
def vocabularies(bert_tokenizer, gpt2_tokenizer):
    return describe(bert_tokenizer), describe(gpt2_tokenizer)


def framed(vocabulary, text):
    tokenizer = AutoTokenizer.from_pretrained(vocabulary.path)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return np.array([vocabulary.start_id, *ids, vocabulary.end_id], np.uint16)


@pytest.mark.parametrize("turned", [False, True])
def test_aligned_positions_end_the_same_text(vocabularies, turned):
    student, teacher = vocabularies[::-1] if turned else vocabularies
    mine, theirs = (AutoTokenizer.from_pretrained(own.path) for own in (student, teacher))
    sequences = [framed(student, text) for text in TEXTS]
    found = Retokeniser(student, teacher, 64)(sequences)
    assert found.lengths.sum() == len(found.ids)
    others = np.split(found.ids, np.cumsum(found.lengths)[:-1])
    for text, own in zip(TEXTS, others, strict=True):
        assert own.tolist() == framed(teacher, text).tolist()
    # Every word of these texts ends a token of both.
    assert np.bincount(found.row, minlength=3).tolist() == [len(text.split()) for text in TEXTS]
    for row, first, second in zip(found.row, found.student, found.teacher, strict=True):
        read = mine.decode(sequences[row][1 : first + 1]), theirs.decode(others[row][1 : second + 1])
        assert read[0].strip() == read[1].strip()


def test_positions_after_an_unknown_token_do_not_align(vocabularies):
    student, teacher = vocabularies
    sequence = framed(student, "the of and to in")
    sequence[3] = student.unk_id  # a word that the student does not know
    found = Retokeniser(student, teacher, 64)([sequence])
    assert found.student.tolist() == [1, 2]


def test_tokens_beyond_the_length_of_the_teacher_are_cut_off(vocabularies):
    student, teacher = vocabularies
    sequence = framed(student, " ".join(["the of and to"] * 8))
    whole, short = (Retokeniser(student, teacher, length)([sequence]) for length in (64, 9))
    assert short.lengths.tolist() == [9]
    assert short.ids[-1] == teacher.end_id
    assert 0 < len(short.row) < len(whole.row)
    assert short.teacher.max() <= 7
    assert short.student.tolist() == whole.student[: len(short.row)].tolist()


def test_an_incomplete_character_does_not_align(gpt2_tokenizer, vocabularies):
    teacher, student = vocabularies  # bytes are the student's
    ids = framed(student, "the é of")
    assert len(framed(student, "é")) == 4
    bytes_of = [n for n, token in enumerate(ids) if int(token) in framed(student, "é")[1:-1]]
    cut = np.append(ids[: bytes_of[-1]], student.end_id).astype(np.uint16)
    found = Retokeniser(student, teacher, 64)([cut])
    assert found.student.max() < bytes_of[-1] - 1


def test_empty_and_no_sequences(vocabularies):
    student, teacher = vocabularies
    found = Retokeniser(student, teacher, 64)([np.array([student.start_id, student.end_id], np.uint16)])
    assert found.lengths.tolist() == [2]
    assert len(found.row) == len(found.student) == 0


def spans(*ends):
    """Tokens that follow each other, by their ends."""
    return list(zip((0, *ends), ends, strict=False))


def listed(first, second):
    return [array.tolist() for array in aligned_ends(first, second)]


def test_aligned_ends_of_one_text():
    # dis|till|ation  and  distill|at|ion
    assert listed(spans(3, 7, 12), spans(7, 9, 12)) == [[1, 2], [0, 2]]


def test_special_tokens_and_padding_do_not_align():
    first = [(0, 0), *spans(2, 5), (0, 0), (0, 0)]
    second = [(0, 0), *spans(5), (0, 0)]
    assert listed(first, second) == [[2], [1]]


def test_the_last_token_of_a_letter_counts():
    # One letter as three bytes against one token.
    first = [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]
    assert listed(first, spans(1, 2, 3)) == [[0, 3, 4], [0, 1, 2]]


def test_spaces_may_belong_to_a_token():
    words = [(0, 3), (4, 7)]  # the space belongs to no token
    joined = [(0, 3), (3, 7)]  # or to the following one
    assert listed(words, joined) == [[0, 1], [0, 1]]


@pytest.mark.parametrize("empty", [[], np.zeros((0, 2), dtype=np.int32), [(0, 0)]])
def test_nothing_aligns_with_an_empty_text(empty):
    assert listed(empty, spans(2, 4)) == [[], []]
    assert listed(spans(2, 4), empty) == [[], []]


def test_joined_texts_are_rejected():
    with pytest.raises(ValueError, match="ends"):
        aligned_ends([*spans(2, 5), *spans(3)], spans(5))


ends = st.sets(st.integers(1, 30), min_size=1).map(sorted)


@given(ends, ends)
def test_aligned_tokens_end_at_all_shared_ends(first, second):
    in_first, in_second = aligned_ends(spans(*first), spans(*second))
    assert [first[i] for i in in_first] == [second[i] for i in in_second] == sorted({*first} & {*second})


def test_tokenizers_of_letters_and_words():
    text = "Ein Brennkessel für Whisky"
    letters = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1}, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    words.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    by_letter, by_word = letters.encode(text), words.encode(text)
    in_letters, in_words = aligned_ends(by_letter.offsets, by_word.offsets)
    assert in_words.tolist() == [1, 2, 3, 4]
    # The two bytes of the letter ü move what follows by one.
    assert in_letters.tolist() == [2, 14, 19, 26]
    assert [by_letter.offsets[i][1] for i in in_letters] == [3, 15, 19, 26]
