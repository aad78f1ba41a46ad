"""Metrics of generated labels and rationales."""

import json
from dataclasses import replace

import pytest

from potstill.data.rationales.rows import RationaleRows
from potstill.evaluation.step_by_step import SAMPLE_COLUMNS, GeneratedTexts, RationaleEvaluator, rouge_l

ROWS = RationaleRows(
    inputs=["q0", "q1", "q2"],
    labels=["(1 + 2)", "(4 * 2)", "(9 - 3)"],
    llm_labels=[None] * 3,
    rationales=["one and two, so 1 + 2 = 3", None, "nine less three"],
    choices=[None] * 3,
    unparsed=[False] * 3,
    places=[""] * 3,
    name="a",
    key="data.folder",
)
WORDS = replace(
    ROWS, labels=["sea", "ice  cream", "sun"], choices=[("sea", "sun"), ("ice  cream", "sun"), ("sea", "sun")]
)


def evaluator_of(rows, name):
    return RationaleEvaluator(rows, name, [" ".join(label.split()) for label in rows.labels], lambda ids: [])


def test_equations_are_compared_by_value_and_as_texts():
    written = GeneratedTexts(labels={0: "(2 + 1)", 1: "(4 * 2)", 2: "sun"})
    assert evaluator_of(ROWS, "svamp").metrics(written) == {
        "accuracy": pytest.approx(2 / 3),
        "text_accuracy": pytest.approx(1 / 3),
    }


def test_labels_may_have_the_blanks_of_the_tokenizer():
    written = GeneratedTexts(labels={0: "sea", 1: "ice cream", 2: "sea"})
    assert evaluator_of(WORDS, "").metrics(written) == {"accuracy": pytest.approx(2 / 3)}


def test_accuracy_of_the_most_likely_choices():
    written = GeneratedTexts(labels={0: "?", 1: "?", 2: "?"}, restricted={0: "sea", 1: "ice  cream", 2: "sea"})
    found = evaluator_of(WORDS, "").metrics(written)
    assert (found["accuracy"], found["accuracy_restricted"]) == (0, pytest.approx(2 / 3))


def test_metrics_of_rationales():
    written = GeneratedTexts(
        labels={0: "(1 + 2)", 1: "(4 * 2)", 2: "(9 - 3)"},
        rationales={0: "one and two, so 1 + 2 = 3", 1: "4 * 2 = 9", 2: "nothing"},
    )
    found = evaluator_of(ROWS, "svamp").metrics(written)
    assert found["rouge_l"] == pytest.approx(0.5)  # of the two rows that have a reference
    assert found["consistency_decided"] == pytest.approx(2 / 3)
    assert found["consistency"] == 0.5


def test_only_generated_rows_count():
    assert evaluator_of(ROWS, "svamp").metrics(GeneratedTexts(labels={2: "6"})) == {"accuracy": 1, "text_accuracy": 0}
    assert evaluator_of(ROWS, "svamp").metrics(GeneratedTexts()) == {}


def test_samples_and_predictions(tmp_path):
    evaluator = evaluator_of(ROWS, "svamp")
    written = GeneratedTexts(labels={2: "6", 0: "5"}, rationales={0: "why"})
    assert evaluator.samples(written, 1) == [["q0", "(1 + 2)", "5", "one and two, so 1 + 2 = 3", "why"]]
    assert len(evaluator.samples(written, 8)[0]) == len(SAMPLE_COLUMNS)
    lines = evaluator.write(tmp_path / "predictions.jsonl", written).read_text().splitlines()
    assert list(map(json.loads, lines)) == [
        {
            "index": 0, "label": "(1 + 2)", "prediction": "5", "right": False, "rationale": "why",
            "reference": "one and two, so 1 + 2 = 3",
        },
        {"index": 2, "label": "(9 - 3)", "prediction": "6", "right": True},
    ]  # fmt: skip
    written.add(GeneratedTexts(labels={1: "8"}, restricted={1: "8"}))
    assert sorted(written.labels) == [0, 1, 2]


def test_gold_labels_without_a_value_are_compared_as_texts():
    evaluator = evaluator_of(replace(ROWS, labels=["1,080", "$5", "(9 - 3)"]), "svamp")
    answers = [(0, "1,080 "), (0, "1080"), (1, "$5"), (2, "6")]
    assert all(evaluator.right(row, answer) for row, answer in answers)


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        # Lin 2004, section 3.1: the candidates of "police killed the gunman", with beta 1.
        ("police kill the gunman", "police killed the gunman", 3 / 4),
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        # Subsequence of 3 words; precision 3/4, recall 3/6.
        ("the cat sat down", "the black cat sat on it", 2 * (3 / 4) * (3 / 6) / (3 / 4 + 3 / 6)),
        ("The SEA, is: wet!", "the sea is wet", 1.0),
        ("sea", "pond", 0.0),
        ("", "pond", 0.0),
        ("das Männchen läuft", "das Weibchen läuft", 2 / 3),
    ],
)
def test_rouge_l(prediction, reference, expected):
    assert rouge_l([prediction], [reference]) == [pytest.approx(expected, abs=1e-6)]


def test_rouge_l_needs_one_reference_per_prediction():
    assert rouge_l(["a b", "c"], ["a b", "d"]) == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"shorter|longer"):
        rouge_l(["a"], [])
