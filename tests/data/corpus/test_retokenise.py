import numpy as np
import pytest
from transformers import AutoTokenizer

from potstill.data.common.tokenizers import describe
from potstill.data.corpus.retokenise import Retokeniser

TEXTS = ["the of and to", "before which one you were her", "through"]


@pytest.fixture(scope="module")
def vocabularies(bert_tokenizer, gpt2_tokenizer):
    return describe(bert_tokenizer), describe(gpt2_tokenizer)


def framed(vocabulary, text):
    tokenizer = AutoTokenizer.from_pretrained(vocabulary.path)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return np.array([vocabulary.start_id, *ids, vocabulary.end_id], np.uint16)


@pytest.mark.parametrize("turned", [False, True])
def test_both_have_read_the_same_text_at_aligned_positions(vocabularies, turned):
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


def test_positions_count_as_far_as_decoding_gives_the_tokens_back(vocabularies):
    student, teacher = vocabularies
    sequence = framed(student, "the of and to in")
    sequence[3] = student.unk_id  # a word that the student does not know
    found = Retokeniser(student, teacher, 64)([sequence])
    assert found.student.tolist() == [1, 2]


def test_what_the_teacher_cannot_read_is_cut_off(vocabularies):
    student, teacher = vocabularies
    sequence = framed(student, " ".join(["the of and to"] * 8))
    whole, short = (Retokeniser(student, teacher, length)([sequence]) for length in (64, 9))
    assert short.lengths.tolist() == [9]
    assert short.ids[-1] == teacher.end_id
    assert 0 < len(short.row) < len(whole.row)
    assert short.teacher.max() <= 7
    assert short.student.tolist() == whole.student[: len(short.row)].tolist()


def test_a_letter_that_is_cut_in_two_is_not_read(gpt2_tokenizer, vocabularies):
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
