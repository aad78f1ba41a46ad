"""Scores of entities: figures documented by seqeval, edge cases, and a brute-force count."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.evaluation.entities import EntityScores, entity_scores, micro


def split(*sentences):
    return [sentence.split() for sentence in sentences]


def rounded(score):
    return round(score.precision, 2), round(score.recall, 2), round(score.f1, 2), score.gold


# The example in the README of seqeval, whose report has the same rows.
GOLD = split("O O O B-MISC I-MISC I-MISC O", "B-PER I-PER O")
PREDICTED = split("O O B-MISC I-MISC I-MISC I-MISC O", "B-PER I-PER O")


def test_the_report_in_the_readme_of_seqeval():
    scores = entity_scores(GOLD, PREDICTED)
    assert list(scores) == ["MISC", "PER"]
    assert rounded(scores["MISC"]) == (0, 0, 0, 1)
    assert rounded(scores["PER"]) == (1, 1, 1, 1)
    assert rounded(micro(scores.values())) == (0.5, 0.5, 0.5, 2)


def test_an_invalid_sequence_is_an_entity():
    assert micro(entity_scores(split("B-NP I-NP O"), split("I-NP I-NP O")).values()).f1 == 1


# Counted by hand: correct, predicted, gold.
@pytest.mark.parametrize(
    ("gold", "predicted", "expected"),
    [
        ("B-X I-X O", "B-X O O", {"X": (0, 1, 1)}),  # not all its words
        ("B-X I-X", "B-Y I-Y", {"X": (0, 0, 1), "Y": (0, 1, 0)}),  # another type
        ("B-X I-X", "B-X B-X", {"X": (0, 2, 1)}),
        ("B-X B-X", "B-X I-X", {"X": (0, 1, 2)}),
        ("B-X I-X B-X", "B-X I-X I-X", {"X": (0, 1, 2)}),
        ("I-X I-X B-X", "B-X I-X B-X", {"X": (2, 2, 2)}),  # schemes may differ
        ("B-X M-X E-X S-X", "B-X I-X I-X B-X", {"X": (2, 2, 2)}),
        ("B-X O", "B-X I-Y", {"X": (1, 1, 1), "Y": (0, 1, 0)}),
        ("O O", "O O", {}),
    ],
)
def test_counts_by_hand(gold, predicted, expected):
    scores = entity_scores(split(gold), split(predicted))
    assert scores == {kind: EntityScores(*counts) for kind, counts in expected.items()}


def test_scores_without_entities_are_0():
    nothing = micro([])
    assert (nothing.precision, nothing.recall, nothing.f1) == (0, 0, 0)
    missed = micro(entity_scores(split("B-X"), split("O")).values())
    assert (missed.precision, missed.recall, missed.f1, missed.gold) == (0, 0, 0, 1)


def test_an_entity_ends_with_its_sentence():
    scores = entity_scores(split("B-X", "I-X"), split("B-X", "B-X"))
    assert scores["X"] == EntityScores(2, 2, 2)


def test_different_lengths_are_rejected():
    with pytest.raises(ValueError, match=r"^sentence 1: 1"):
        entity_scores(split("O", "O O"), split("O", "O"))
    with pytest.raises(ValueError, match="shorter"):
        entity_scores(split("O", "O"), split("O"))


def entities_slowly(sentences):
    """Entities of valid BIO tags, from each B to the last I that follows it."""
    found = []
    for number, tags in enumerate(sentences):
        for start, tag in enumerate(tags):
            if tag[0] == "B":
                end = start + 1
                while end < len(tags) and tags[end][0] == "I":
                    end += 1
                found.append((number, start, end, tag[2:]))
    return found


@st.composite
def whole_bio(draw, length):
    tags = []
    while len(tags) < length:
        kind = draw(st.sampled_from(["O", "X", "Y"]))
        size = draw(st.integers(1, 3))
        tags += ["O"] * size if kind == "O" else [f"B-{kind}"] + [f"I-{kind}"] * (size - 1)
    return tags[:length]


@st.composite
def two_sides(draw):
    lengths = draw(st.lists(st.integers(0, 8), max_size=4))
    return [[draw(whole_bio(length)) for length in lengths] for _ in range(2)]


@given(two_sides())
def test_scores_equal_a_brute_force_count(sides):
    gold, predicted = (entities_slowly(side) for side in sides)
    scores = entity_scores(*sides)
    assert set(scores) == {entity[3] for entity in gold + predicted}
    for kind, score in [*scores.items(), (None, micro(scores.values()))]:
        there = [entity for entity in gold if kind in (None, entity[3])]
        said = [entity for entity in predicted if kind in (None, entity[3])]
        hits = sum(entity in there for entity in said)
        precision = hits / len(said) if said else 0
        recall = hits / len(there) if there else 0
        both = precision + recall
        assert (score.correct, score.predicted, score.gold) == (hits, len(said), len(there))
        assert score.precision == precision
        assert score.recall == recall
        assert score.f1 == pytest.approx(2 * precision * recall / both if both else 0)


@given(two_sides())
def test_scores_of_parts_add_up(sides):
    gold, predicted = sides
    halves = [entity_scores(gold[part], predicted[part]) for part in (slice(0, 1), slice(1, None))]
    assert micro(entity_scores(gold, predicted).values()) == micro(s for h in halves for s in h.values())
