"""Label probabilities are read off the token at which an answer names its label."""

import math

import pytest

from potstill.rationale_generation.answers import Answer
from potstill.rationale_generation.label_probabilities import label_probabilities

CHOICES = ["lake", "pond", "sea"]
NLI = ["entailment", "neutral", "contradiction"]


def answer(tokens, at, alternatives):
    """An answer whose token number `at` had these alternatives; every other one was sure."""
    top = [[(token, 0.0)] for token in tokens]
    top[at] = [(token, math.log(value)) for token, value in alternatives.items()]
    pairs = [(token, own[0][1]) for token, own in zip(tokens, top, strict=True)]
    return Answer("".join(tokens), "stop", 1, len(tokens), pairs, top)


LETTERED = ["Fish", " live", " there", ".", " So", " the", " answer", " is", " (", "b", ")", " pond", "."]


def test_a_lettered_choice_is_decided_at_its_letter():
    found = label_probabilities(
        answer(LETTERED, 9, {"b": 0.5, "a": 0.3, "the": 0.1, "z": 0.1}), "pond", CHOICES, lettered=True
    )
    assert list(found) == CHOICES
    assert found == pytest.approx({"lake": 0.3 / 0.8, "pond": 0.5 / 0.8, "sea": 0.0})


def test_the_letter_may_have_its_bracket_and_the_blank_its_sign():
    tokens = ["So", "▁the", "▁answer", "▁is", "▁(b", ")", "▁pond"]
    found = label_probabilities(
        answer(tokens, 4, {"▁(b": 0.6, "▁(c": 0.2, "b": 0.1}), "pond", CHOICES, lettered=True
    )
    assert found == pytest.approx({"lake": 0.0, "pond": 0.7 / 0.9, "sea": 0.2 / 0.9})


def test_a_named_label_is_decided_at_its_first_token_the_last_time_it_is_named():
    tokens = ["neutral", "?", " No", ".", " Answer", ":", " ent", "ail", "ment"]
    made = answer(tokens, 6, {" ent": 0.8, " neutral": 0.1, " contr": 0.06, " x": 0.04})
    found = label_probabilities(made, "entailment", NLI, lettered=False)
    assert found == pytest.approx(
        {"entailment": 0.8 / 0.96, "neutral": 0.1 / 0.96, "contradiction": 0.06 / 0.96}
    )


def test_the_token_that_was_said_counts_even_where_it_is_no_likeliest_one():
    made = answer(LETTERED, 9, {"a": 0.4})
    made.logprobs[9] = ("b", math.log(0.1))
    assert label_probabilities(made, "pond", CHOICES, lettered=True)["pond"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("tokens", "at", "alternatives", "label", "lettered"),
    [
        (LETTERED, 9, {"b": 1.0}, "river", True),  # not in the answer
        (["(", "b", ")", " pond", "s"], 0, {"(": 1.0}, "lake", True),
        (["po", "nd"], 0, {"po": 0.5, "": 0.5}, "", False),
    ],
)
def test_what_cannot_be_told_is_none(tokens, at, alternatives, label, lettered):
    assert label_probabilities(answer(tokens, at, alternatives), label, CHOICES, lettered=lettered) is None


def test_a_token_that_fits_two_choices_tells_nothing():
    made = answer(["pon", "d"], 0, {"pon": 0.9, "lake": 0.1})
    assert label_probabilities(made, "pond", ["pond", "pony", "lake"], lettered=False) is None


def test_without_alternatives_there_are_none():
    bare = Answer("pond", "stop", 1, 1, [("pond", -0.1)], None)
    assert label_probabilities(bare, "pond", CHOICES, lettered=False) is None
