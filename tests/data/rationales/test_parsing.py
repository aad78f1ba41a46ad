"""Rationales and labels of raw outputs, and unparsed outputs."""

import pytest

from potstill.data.rationales.parsing import PARSED_SETS, Parsed, named, parse


@pytest.mark.parametrize(
    ("name", "output", "expected"),
    [
        ("cqa", "It is wet. So the answer is (b) the sea.\n\nQ: Why", Parsed("It is wet.", "the sea")),
        ("cqa", "So the answer is (b) the sea.", Parsed(None, "the sea")),
        ("cqa", "Both. So the answer is either (a) pond or (e) sea.", Parsed("Both.", "pond or")),
        ("cqa", "All. So the answer is one of these.", Parsed("All.", None)),
        ("cqa", "One. So the answer is (a) x. So the answer is (b) y.", Parsed(None, None)),
        ("svamp", "3 and 4. The answer is (3 + 4).\n\nQ: Ann", Parsed("3 and 4.", "(3 + 4)")),
        ("asdiv", "3 and 4. The answer is ((3 + 4) * 2).", Parsed("3 and 4.", "((3 + 4) * 2)")),
        ("svamp", "3 and 4. The answer is 7.", Parsed("3 and 4.", None)),
        ("svamp", "Q: 3 and 4. The answer is (3 + 4).", Parsed(None, None)),
        ("esnli", "A dog barks.\nAnswer: neutral\n\nPremise: Two", Parsed("A dog barks.", "neutral")),
        ("esnli", "A dog barks.\nAnswer: neutral\n\nPre", Parsed("A dog barks.", "neutral")),
        ("esnli", "A dog barks.\nAnswer: entail", Parsed("A dog barks.", None)),
        ("esnli", "A dog barks.\nAnswer:", Parsed("A dog barks.", None)),
        ("anli1", "It is 1999. So the answer is neutral.\n\nPremise: x", Parsed("It is 1999.", "neutral")),
        ("anli1", "It is 1999. So the answer is neutral", Parsed("It is 1999.", "neutral")),
        ("anli1", "It is 1999. The answer is neutral.", Parsed(None, None)),
    ],
)
def test_parse(name, output, expected):
    assert parse(name, output) == expected


def test_an_output_is_whole_with_rationale_and_label_only():
    assert Parsed("a", "b").whole
    assert not Parsed("a", None).whole
    assert not Parsed(None, "b").whole


def test_gpt_outputs_are_stripped_at_the_front():
    assert parse("anli1", "\n It is. The answer is neutral.", "gpt") == Parsed("It is.", "neutral")
    assert parse("esnli", "\n It is.\nAnswer: neutral", "gpt") == Parsed("It is.", "neutral")
    assert parse("cqa", "\n It is. So the answer is (a) x", "gpt") == Parsed("It is.", "x")
    assert parse("cqa", "\n It is. So the answer is (a) x", "palm").rationale == "\n It is."


@pytest.mark.parametrize("name", PARSED_SETS)
@pytest.mark.parametrize("output", ["", "\n", "Answer:", " Answer: "])
def test_empty_outputs(name, output):
    assert parse(name, output) == Parsed(None, None)


@pytest.mark.parametrize(
    ("label", "expected"),
    [("Neutral.", "neutral"), (" contradiction \nx", "contradiction"), ("entail", None), ("", None)],
)
def test_nli_label(label, expected):
    assert named(label) == expected
