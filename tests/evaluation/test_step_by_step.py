"""Metrics of what a student wrote."""

import json
from dataclasses import replace

import pytest

from potstill.data.rationales.rows import RationaleRows
from potstill.evaluation.step_by_step import SAMPLE_COLUMNS, StudentJudge, Written

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


def judge_of(rows, name):
    return StudentJudge(rows, name, [" ".join(label.split()) for label in rows.labels], lambda ids: [])


def test_equations_are_judged_by_value_and_as_texts():
    written = Written(labels={0: "(2 + 1)", 1: "(4 * 2)", 2: "sun"})
    assert judge_of(ROWS, "svamp").metrics(written) == {
        "accuracy": pytest.approx(2 / 3),
        "text_accuracy": pytest.approx(1 / 3),
    }


def test_texts_may_be_as_the_tokenizer_gives_them_back():
    written = Written(labels={0: "sea", 1: "ice cream", 2: "sea"})
    assert judge_of(WORDS, "").metrics(written) == {"accuracy": pytest.approx(2 / 3)}


def test_the_likeliest_choices():
    written = Written(labels={0: "?", 1: "?", 2: "?"}, restricted={0: "sea", 1: "ice  cream", 2: "sea"})
    found = judge_of(WORDS, "").metrics(written)
    assert (found["accuracy"], found["accuracy_restricted"]) == (0, pytest.approx(2 / 3))


def test_rationales():
    written = Written(
        labels={0: "(1 + 2)", 1: "(4 * 2)", 2: "(9 - 3)"},
        rationales={0: "one and two, so 1 + 2 = 3", 1: "4 * 2 = 9", 2: "nothing"},
    )
    found = judge_of(ROWS, "svamp").metrics(written)
    assert found["rouge_l"] == pytest.approx(0.5)  # of the two rows that have a reference
    assert found["consistency_decided"] == pytest.approx(2 / 3)
    assert found["consistency"] == 0.5


def test_rows_that_were_not_reached_do_not_count():
    assert judge_of(ROWS, "svamp").metrics(Written(labels={2: "6"})) == {"accuracy": 1, "text_accuracy": 0}
    assert judge_of(ROWS, "svamp").metrics(Written()) == {}


def test_samples_and_predictions(tmp_path):
    judge = judge_of(ROWS, "svamp")
    written = Written(labels={2: "6", 0: "5"}, rationales={0: "why"})
    assert judge.samples(written, 1) == [["q0", "(1 + 2)", "5", "one and two, so 1 + 2 = 3", "why"]]
    assert len(judge.samples(written, 8)[0]) == len(SAMPLE_COLUMNS)
    lines = judge.write(tmp_path / "predictions.jsonl", written).read_text().splitlines()
    assert list(map(json.loads, lines)) == [
        {
            "index": 0, "label": "(1 + 2)", "prediction": "5", "right": False, "rationale": "why",
            "reference": "one and two, so 1 + 2 = 3",
        },
        {"index": 2, "label": "(9 - 3)", "prediction": "6", "right": True},
    ]  # fmt: skip
    written.add(Written(labels={1: "8"}, restricted={1: "8"}))
    assert sorted(written.labels) == [0, 1, 2]


def test_gold_labels_without_a_value_are_compared_as_texts():
    judge = judge_of(replace(ROWS, labels=["1,080", "$5", "(9 - 3)"]), "svamp")
    assert [judge.right(0, "1,080 "), judge.right(0, "1080"), judge.right(1, "$5"), judge.right(2, "6")] == [
        True, True, True, True,
    ]  # fmt: skip
