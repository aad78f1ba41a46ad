import pytest

from potstill.rationale_generation.selection import Choice, choose, plain_label


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
def test_the_majority_of_labels_chooses(texts, gold, expected):
    assert choose(texts, parse, plain_label, gold) == expected


def test_labels_are_compared_by_what_counts_of_them():
    values = {"7": 7, "(12 - 5)": 7, "( 12.0 - 5.0 )": 7, "8": 8}
    assert choose(["a => 8", "b => 7", "c => (12 - 5)"], parse, values.get, "( 12.0 - 5.0 )") == Choice(
        "b => 7", "good"
    )
    # A gold label without a value is contradicted by none.
    assert choose(["a => 8"], parse, values.get, "1,080") == Choice("a => 8", "good")
    # A label without a value has no vote.
    assert choose(["a => ?", "b => 8"], parse, values.get) == Choice("b => 8", "good")
    assert choose(["a => ?"], parse, values.get) == Choice("a => ?", "unparsed")
