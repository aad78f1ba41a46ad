"""Metrics of completions."""

import json

import numpy as np
import pytest

from potstill.data.conversations.reading import Conversation
from potstill.evaluation.generation import GenerationEvaluator, final_answer, is_exact


@pytest.mark.parametrize(
    ("text", "expected", "right"),
    [
        ("72", "72", True),
        ("She has 48 and 24.\n#### 72", "48 + 24 = 72\n#### 72", True),
        ("#### 1,000", "#### 1000", True),
        ("#### 72.0", "72", True),
        ("#### $72.", "72", True),
        ("#### 71 of 72", "72", False),  # the mark decides
        ("so it is 24, then 72", "#### 72", True),  # without it the last number
        ("so it is 72, then 24", "#### 72", False),
        ("-5", "\u22125", True),
        ("there are none", "0", False),
        ("", "0", False),
        ("the  man\n", "the man", True),
        ("the man", "The man", False),
        ("because\n#### the man", "the man", True),
        ("(__import__('os'))", "3", False),
    ],
)
def test_exact_match(text, expected, right):
    assert is_exact(text, expected) is right


def test_the_answer_of_a_text():
    assert final_answer("a #### 1 #### 2 ") == "2"
    assert final_answer(" all of it ") == "all of it"


def row(prompt, completion, **more):
    return Conversation((), frozenset(), (prompt, completion), "", **more)


def test_scores_of_rows_with_and_without_answers(tmp_path):
    rows = [row("1+1=", "it is 2", answer="2"), None, row("who", "the man there", reference="the man was there")]
    evaluator = GenerationEvaluator(rows)
    assert evaluator.numbers == [0, 2]
    assert evaluator.has_answers
    assert not GenerationEvaluator([row("a", "b"), None]).has_answers
    written = {2: "the man", 0: "it is 2"}
    scores = evaluator.scores(written)
    assert scores["exact_match"].tolist() == [1, 0]
    np.testing.assert_allclose(scores["rouge_l"], [1, 2 / 3])  # 2 of 4 words, 2 of 2
    assert evaluator.metrics(written) == pytest.approx({"exact_match": 0.5, "rouge_l": 5 / 6})
    assert evaluator.metrics({}) == {}
    assert evaluator.samples(written, 1) == [["1+1=", "it is 2", "it is 2", "yes"]]
    lines = [json.loads(line) for line in evaluator.write(tmp_path / "p.jsonl", written).read_text().splitlines()]
    assert [line["right"] for line in lines] == [True, False]
    assert lines[1] == {
        "prompt": "who", "completion": "the man", "expected": "the man was there", "right": False,
        "rouge_l": pytest.approx(2 / 3),
    }  # fmt: skip


def test_texts_of_a_chat():
    turns = [("user", "hi"), ("assistant", "hello"), ("user", "why"), ("assistant", "so")]
    chat = Conversation(tuple({"role": r, "content": c} for r, c in turns), frozenset({1, 3}), None, "")
    assert (chat.completion, chat.expected, chat.prompt_text) == ("so", "so", "user: hi\nassistant: hello\nuser: why")
