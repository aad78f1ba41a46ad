import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from potstill.data.common.alignment import aligned_ends


def spans(*ends):
    """Tokens that follow each other, by their ends."""
    return list(zip((0, *ends), ends, strict=False))


def listed(first, second):
    return [array.tolist() for array in aligned_ends(first, second)]


def test_by_hand():
    # dis|till|ation  and  distill|at|ion
    assert listed(spans(3, 7, 12), spans(7, 9, 12)) == [[1, 2], [0, 2]]


def test_special_tokens_and_padding_never_align():
    first = [(0, 0), *spans(2, 5), (0, 0), (0, 0)]
    second = [(0, 0), *spans(5), (0, 0)]
    assert listed(first, second) == [[2], [1]]


def test_the_last_token_of_a_letter_counts():
    # One letter as three bytes against one token.
    first = [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)]
    assert listed(first, spans(1, 2, 3)) == [[0, 3, 4], [0, 1, 2]]


def test_gaps_between_words_may_belong_to_either():
    words = [(0, 3), (4, 7)]  # the space belongs to no token
    joined = [(0, 3), (3, 7)]  # or to the following one
    assert listed(words, joined) == [[0, 1], [0, 1]]


@pytest.mark.parametrize("empty", [[], np.zeros((0, 2), dtype=np.int32), [(0, 0)]])
def test_nothing_aligns_with_an_empty_text(empty):
    assert listed(empty, spans(2, 4)) == [[], []]
    assert listed(spans(2, 4), empty) == [[], []]


def test_joined_texts_are_refused():
    with pytest.raises(ValueError, match="ends"):
        aligned_ends([*spans(2, 5), *spans(3)], spans(5))


@pytest.mark.parametrize("wrong", [[1, 2, 3], [[1, 2, 3]]])
def test_other_shapes_are_refused(wrong):
    with pytest.raises(ValueError, match=r"not \(tokens, 2\)"):
        aligned_ends(wrong, spans(2))


ends = st.sets(st.integers(1, 30), min_size=1).map(sorted)


@given(ends, ends)
def test_aligned_tokens_end_at_all_shared_ends(first, second):
    in_first, in_second = aligned_ends(spans(*first), spans(*second))
    assert [first[i] for i in in_first] == [second[i] for i in in_second] == sorted({*first} & {*second})


def test_real_tokenizers():
    text = "Ein Brennkessel für Whisky"
    letters = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[])
    )
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
