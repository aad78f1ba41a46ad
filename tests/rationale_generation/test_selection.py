import math

import pytest

from potstill.rationale_generation.answers import Answer
from potstill.rationale_generation.selection import Choice, choose, label_probabilities, plain_label


def parse(text):
    rationale, found, label = text.partition(" => ")
    return (rationale, label) if found else None


@pytest.mark.parametrize(
    ("texts", "gold", "expected"),
    [
        ([], None, Choice("", "unanswered")),
        (["a => x"], None, Choice("a => x", "good")),
        (["a => x", "b => y", "c => Y"], None, Choice("b => y", "good")),
        (["a => x", "b => y"], None, Choice("a => x", "good")),
        (["b => y", "a => x", "c => x", "d => y"], None, Choice("b => y", "good")),
        (["none", "nothing"], "x", Choice("none", "unparsed")),
        ([" => x", "a =>  "], "x", Choice(" => x", "unparsed")),
        (["none", "a => x"], "x", Choice("a => x", "good")),
        (["a => y", "b => x", "c => y"], "x", Choice("a => y", "contradicting")),
        (["a => x "], " X", Choice("a => x ", "good")),
    ],
)
def test_the_first_answer_with_the_majority_label_is_selected(texts, gold, expected):
    assert choose(texts, parse, plain_label, gold) == expected


def test_labels_are_compared_in_their_canonical_form():
    values = {"7": 7, "(12 - 5)": 7, "( 12.0 - 5.0 )": 7, "8": 8}
    assert choose(["a => 8", "b => 7", "c => (12 - 5)"], parse, values.get, "( 12.0 - 5.0 )") == Choice(
        "b => 7", "good"
    )
    # No label contradicts a gold label without a value.
    assert choose(["a => 8"], parse, values.get, "1,080") == Choice("a => 8", "good")
    # A label without a value has no vote.
    assert choose(["a => ?", "b => 8"], parse, values.get) == Choice("b => 8", "good")
    assert choose(["a => ?"], parse, values.get) == Choice("a => ?", "unparsed")


CHOICES = ["lake", "pond", "sea"]
NLI = ["entailment", "neutral", "contradiction"]


def answer(tokens, at, alternatives):
    """An answer with alternatives at token number `at`; all other tokens have probability 1."""
    top = [[(token, 0.0)] for token in tokens]
    top[at] = [(token, math.log(value)) for token, value in alternatives.items()]
    pairs = [(token, own[0][1]) for token, own in zip(tokens, top, strict=True)]
    return Answer("".join(tokens), "stop", 1, len(tokens), pairs, top)


LETTERED = ["Fish", " live", " there", ".", " So", " the", " answer", " is", " (", "b", ")", " pond", "."]


def test_probabilities_of_lettered_choices_are_those_at_the_letter():
    found = label_probabilities(
        answer(LETTERED, 9, {"b": 0.5, "a": 0.3, "the": 0.1, "z": 0.1}), "pond", CHOICES, lettered=True
    )
    assert list(found) == CHOICES
    assert found == pytest.approx({"lake": 0.3 / 0.8, "pond": 0.5 / 0.8, "sea": 0.0})


def test_tokens_with_brackets_and_marked_blanks():
    tokens = ["So", "▁the", "▁answer", "▁is", "▁(b", ")", "▁pond"]
    found = label_probabilities(answer(tokens, 4, {"▁(b": 0.6, "▁(c": 0.2, "b": 0.1}), "pond", CHOICES, lettered=True)
    assert found == pytest.approx({"lake": 0.0, "pond": 0.7 / 0.9, "sea": 0.2 / 0.9})


def test_probabilities_of_a_label_are_those_at_its_last_mention():
    tokens = ["neutral", "?", " No", ".", " Answer", ":", " ent", "ail", "ment"]
    made = answer(tokens, 6, {" ent": 0.8, " neutral": 0.1, " contr": 0.06, " x": 0.04})
    found = label_probabilities(made, "entailment", NLI, lettered=False)
    assert found == pytest.approx({"entailment": 0.8 / 0.96, "neutral": 0.1 / 0.96, "contradiction": 0.06 / 0.96})


def test_the_generated_token_counts_if_it_is_not_among_the_most_likely_ones():
    made = answer(LETTERED, 9, {"a": 0.4})
    made.logprobs[9] = ("b", math.log(0.1))
    assert label_probabilities(made, "pond", CHOICES, lettered=True)["pond"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("tokens", "at", "alternatives", "label", "choices", "lettered"),
    [
        (LETTERED, 9, {"b": 1.0}, "river", CHOICES, True),  # not in the answer
        (["(", "b", ")", " pond", "s"], 0, {"(": 1.0}, "lake", CHOICES, True),
        (["po", "nd"], 0, {"po": 0.5, "": 0.5}, "", CHOICES, False),
        (["pon", "d"], 0, {"pon": 0.9, "lake": 0.1}, "pond", ["pond", "pony", "lake"], False),  # begins two choices
    ],
)
def test_without_a_token_of_exactly_one_choice_there_are_no_probabilities(
    tokens, at, alternatives, label, choices, lettered
):
    assert label_probabilities(answer(tokens, at, alternatives), label, choices, lettered=lettered) is None


def test_without_alternative_tokens_there_are_no_probabilities():
    bare = Answer("pond", "stop", 1, 1, [("pond", -0.1)], None)
    assert label_probabilities(bare, "pond", CHOICES, lettered=False) is None
