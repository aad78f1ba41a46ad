"""Entities: seqeval's rules, valid and invalid sequences, conversion between schemes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.data.tasks.entities import (
    BIO,
    BIOES,
    IOB1,
    Entity,
    converted,
    entities_of,
    is_tag,
    scheme_of,
    split_tag,
    tag_labels,
    tag_numbers,
    tags_of,
    unknown_tags,
)


def tags_with(prefixes, kinds="XY"):
    return st.lists(st.sampled_from(["O", *(f"{p}-{k}" for p in prefixes for k in kinds)]), max_size=9)


# The two tables of conlleval: by prefix of a word and of the next, where both are of one type.
ENDS = {"BB", "BS", "BO", "IB", "IS", "IO", "EB", "EI", "EE", "ES", "EO", "SB", "SI", "SE", "SS", "SO"}
BEGINS = {a + b for a in "OBIES" for b in "BS"} | {"OI", "OE", "EI", "EE", "SI", "SE"}


def is_entity(tags, start, end):
    """Whether conlleval closes an entity of exactly these words."""
    whole = ["O", *tags, "O"]

    def pair(at):  # the words before and at a boundary, and whether their types differ
        before, after = whole[at], whole[at + 1]
        return before[0] + after[0], before[1:] != after[1:]

    def ends(at):
        letters, differ = pair(at)
        return letters in ENDS or (differ and letters[0] != "O")

    def begins(at):
        letters, differ = pair(at)
        return letters in BEGINS or (differ and letters[1] != "O")

    return begins(start) and ends(end) and not any(ends(at) or begins(at) for at in range(start + 1, end))


def slowly(tags, rule):
    spans = [(start, end) for start in range(len(tags)) for end in range(start + 1, len(tags) + 1)]
    return [Entity(tags[start][2:], start, end) for start, end in spans if rule(tags, start, end)]


@given(tags_with("BIES"))
def test_entities_are_those_of_the_tables_of_conlleval(tags):
    assert entities_of(tags) == slowly(tags, is_entity)


# Worked out by hand from the tables above; the first two are seqeval's own examples (its ends are inclusive).
@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("O O O B-MISC I-MISC I-MISC O B-PER I-PER", [("MISC", 3, 6), ("PER", 7, 9)]),
        ("", []),
        ("O O", []),
        ("I-X I-X O", [("X", 0, 2)]),
        ("O I-X I-Y", [("X", 1, 2), ("Y", 2, 3)]),
        ("B-X I-Y", [("X", 0, 1), ("Y", 1, 2)]),
        ("B-X B-X I-X", [("X", 0, 1), ("X", 1, 3)]),
        ("I-X B-X", [("X", 0, 1), ("X", 1, 2)]),
        ("B-X E-X I-X E-X", [("X", 0, 2), ("X", 2, 4)]),
        ("S-X I-X E-X E-X", [("X", 0, 1), ("X", 1, 3), ("X", 3, 4)]),
        ("E-X O B-X I-X O", [("X", 0, 1), ("X", 2, 4)]),
        ("B-NR M-NR E-NR S-NR", [("NR", 0, 3), ("NR", 3, 4)]),
        ("B-NR E-NR M-NR", [("NR", 0, 2), ("NR", 2, 3)]),
        ("B-X I-X L-X U-X", [("X", 0, 3), ("X", 3, 4)]),
        ("B-a-b I-a-b I-a", [("a-b", 0, 2), ("a", 2, 3)]),
    ],
)
def test_valid_and_invalid_sequences(tags, expected):
    assert entities_of(tags.split()) == expected


@given(st.text(max_size=5))
def test_invalid_tags_are_rejected(text):
    if is_tag(text):
        split_tag(text)
    else:
        with pytest.raises(ValueError, match="invalid tag"):
            entities_of([text])


@given(tags_with("BIESMLU"), st.sampled_from([IOB1, BIO, BIOES]), st.sampled_from([IOB1, BIO, BIOES]))
def test_every_scheme_holds_the_same_entities(tags, first, second):
    one = converted(tags, first)
    assert entities_of(one) == entities_of(tags)
    assert converted(converted(one, second), first) == one


@given(tags_with("BIES"), st.sampled_from([IOB1, BIO, BIOES]))
def test_a_scheme_is_recognised_where_it_shows(tags, scheme):
    tags = converted(tags, scheme)
    assert scheme_of([tags]) == (scheme if entities_of(tags) else BIO)


def test_the_scheme_of_invalid_sequences():
    assert scheme_of([["I-X", "O"], ["O", "B-X"]]) == BIO
    assert scheme_of([["I-X", "B-X"], ["O", "I-X"]]) == IOB1
    assert scheme_of([["O"], ["B-X", "M-X", "E-X"]]) == BIOES


@pytest.mark.parametrize(("scheme", "expected"), [(IOB1, "I-X I-X B-X O I-Y I-X"), (BIOES, "B-X E-X S-X O S-Y S-X")])
def test_schemes_by_hand(scheme, expected):
    bio = ["B-X", "I-X", "B-X", "O", "B-Y", "B-X"]
    assert converted(bio, scheme) == expected.split()
    assert converted(expected.split(), BIO) == bio


@pytest.mark.parametrize("entities", [[("X", 0, 2), ("Y", 1, 3)], [("X", 1, 1)], [("X", 2, 4)]])
def test_invalid_entities_are_rejected(entities):
    with pytest.raises(ValueError, match="is empty, overlaps"):
        tags_of([Entity(*entity) for entity in entities], 3, BIO)


def test_labels_have_a_fixed_order():
    sentences = [["O", "M-NS", "S-NR"], ["E-NR", "B-NS"]]
    assert tag_labels(sentences) == ("O", "E-NR", "S-NR", "B-NS", "I-NS")
    assert tag_labels(sentences[::-1]) == tag_labels(sentences)
    assert tag_labels(sentences, BIO) == ("O", "B-NR", "I-NR", "B-NS", "I-NS")
    assert tag_labels(sentences, BIOES) == ("O", *(f"{p}-{k}" for k in ("NR", "NS") for p in "BIES"))
    assert tag_labels([["O"]], BIO) == ("O",)


def test_unknown_tags_are_counted_and_ignored_in_training():
    labels = ("O", "B-X", "I-X")
    sentences = [["O", "B-Y", "I-Y"], ["I-X", "B-Y"]]
    assert unknown_tags(sentences, labels) == {"B-Y": 2, "I-Y": 1}
    assert unknown_tags([["O", "I-X"]], labels) == {}
    numbers = tag_numbers(sentences, labels)
    assert numbers.dtype == np.int64
    assert numbers.tolist() == [0, -100, -100, 2, -100]
