"""Accuracy of an LLM's labels, and conclusions of rationales."""

import math

import pytest

from potstill.data.rationales.parsing import NLI_LABELS
from potstill.data.rationales.readers import read_split
from potstill.data.rationales.rows import RationaleRows, for_training
from potstill.errors import LabelError
from potstill.evaluation.rationales import conclusion, consistency, llm_accuracy

CHOICES = ("train station", "station", "wooded area", "sea")


@pytest.mark.parametrize(
    ("name", "choices", "rationale", "expected"),
    [
        ("cqa", CHOICES, "It is wet. Of the above choices, only the sea is wet.", "sea"),
        ("cqa", CHOICES, "Of the above, only Wooded Areas have trees. Beavers like that.", "wooded area"),
        ("cqa", CHOICES, "A train station has trains.", "train station"),
        ("cqa", CHOICES, "A train station is no station.", None),
        ("cqa", CHOICES, "Only a season helps.", None),
        ("own", CHOICES, "It must be the sea.", "sea"),
        ("own", None, "It must be the sea.", None),
        ("svamp", None, "12 - 5 = 7. So 7 * 2 = 1,400.5 pens.", "1400.5"),
        ("svamp", None, "2 / 4 = .5.", ".5"),
        ("svamp", None, "1 / 100000 = 1e-05.", "1e-05"),
        ("svamp", None, "10 * 100 = 1_000", "1_000"),
        ("svamp", None, "So x = 1 / 3.", "1 / 3"),
        ("svamp", None, "The change is 3 - 5 = \u22122.", "\u22122"),
        ("svamp", None, "The change is 3 - 5 = -2.", "-2"),
        ("svamp", None, "There are 3 boxes.", None),
        ("esnli", NLI_LABELS, "A man is a person. A man cannot be a dog.", "contradiction"),
        ("esnli", NLI_LABELS, "It could be a dog, but it is not necessarily one.", "neutral"),
        ("esnli", NLI_LABELS, "That he runs implies that he moves.", "entailment"),
        ("esnli", NLI_LABELS, "That he runs does not imply that he is late.", "neutral"),
        ("esnli", NLI_LABELS, "It means that he cannot run.", None),
        ("esnli", NLI_LABELS, "The man runs.", None),
    ],
)
def test_conclusion(name, choices, rationale, expected):
    assert conclusion(name, rationale, choices) == expected


def test_consistency():
    found = consistency(
        "svamp", ["( 3.0 + 4.0 )", "3 * 4", "1", "?"], ["So 3 + 4 = 7.", "So 3 + 4 = 7.", "No.", "1 = 1"], [None] * 4
    )
    assert (found.share, found.decided) == (pytest.approx(1 / 3), 0.75)
    found = consistency("cqa", [" Sea"], ["Only the sea."], [CHOICES])
    assert (found.share, found.decided) == (1, 1)
    found = consistency("cqa", ["sea"], ["Who knows."], [CHOICES])
    assert math.isnan(found.share)
    assert found.decided == 0
    with pytest.raises(ValueError, match="no rows"):
        consistency("cqa", [], [], [])


@pytest.mark.parametrize(
    ("name", "labels", "llm_labels", "accuracy"),
    [("cqa", ["x", "y"], ["x", None], 0.5), ("cqa", ["7.0"], ["7"], 0), ("svamp", ["( 3.0 + 4.0 )"], ["7"], 1)],
)
def test_llm_accuracy(name, labels, llm_labels, accuracy):
    size = len(labels)
    rows = RationaleRows(
        ["a"] * size, labels, llm_labels, [None] * size, [None] * size, [False] * size, [""] * size, "a.json", "k"
    )
    assert llm_accuracy(name, rows) == accuracy


def test_llm_accuracy_without_labels():
    rows = RationaleRows(["a"], ["x"], [None], [None], [None], [True], [""], "a.json", "k")
    with pytest.raises(LabelError, match=r"^data\.rationales: 'a\.json'"):
        llm_accuracy("cqa", rows)


@pytest.mark.parametrize(
    ("name", "split", "right"),
    [("cqa", "test", 943), ("svamp", "test", 148), ("esnli", "test", 7171), ("anli1", "test", 656)],
)
def test_llm_accuracy_on_published_outputs(data_dir, name, split, right):
    rows = read_split(data_dir / "stepbystep", name, split)
    assert llm_accuracy(name, rows) == right / len(rows)


@pytest.mark.parametrize(("name", "share", "decided"), [("cqa", 0.99, 0.8), ("svamp", 0.84, 0.9)])
def test_consistency_of_published_outputs(data_dir, name, share, decided):
    rows = for_training(read_split(data_dir / "stepbystep", name, "test"), "llm")
    own = consistency(name, rows.labels, rows.rationales, rows.choices)
    assert own.share > share
    assert own.decided > decided
    # Rationales of other rows have other conclusions.
    moved = consistency(name, [*rows.labels[1:], rows.labels[0]], rows.rationales, rows.choices)
    assert moved.share < 0.3
