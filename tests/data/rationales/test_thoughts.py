"""Thoughts are removed from answers in every notation; an unfinished thought has no answer."""

import pytest

from potstill.data.rationales.parsing import parse
from potstill.data.rationales.thoughts import LONGEST, ended, final_answer, is_mark, opened_thought

FINAL = "Ink is sold there. So the answer is (b) shop."
STOP = ("\n\nQ:",)


@pytest.mark.parametrize(
    "text",
    [
        FINAL,
        f"<think>\nMaybe (a)?\n</think>\n\n{FINAL}",
        f"<THINKING>So the answer is (a) sea.</Thinking>{FINAL}",
        f"Maybe (a)? So the answer is (a) sea.\n</think>\n\n{FINAL}",
        f"<think></think>{FINAL}<think>more</think>",
        f"<think>one</think><think>two</think> {FINAL}",
        f"<think>one <think>two</think> three</think> {FINAL}",
        f"<think>one</think> two </think> {FINAL}",
        f'<think budget="9">one <reasoning>two</reasoning></think>{FINAL}',
        f"<|begin_of_thought|>x<|end_of_thought|>\n\n<|begin_of_solution|>\n{FINAL}\n<|end_of_solution|>",
        f"<|START_THINKING|>x<|END_THINKING|><|START_RESPONSE|>{FINAL}<|END_RESPONSE|>",
        f"[THINK]x[/THINK]{FINAL}",
        f"<think>x</think><answer>{FINAL}</answer>",
        f"<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>{FINAL}<|return|>",
        f"<think>\n\nQ: is it (a)?</think>{FINAL}\n\nQ: What else?\nA: <think>unfinished",
        f"{FINAL}\n\nQ: What else?\nA: <think>x</think> So the answer is (a) sea.",
        f"x</think>{FINAL}\n\nQ: What else?\nA: y</think> So the answer is (a) sea.",
    ],
)
def test_final_answers(text):
    assert final_answer(text, stop=STOP) == FINAL


@pytest.mark.parametrize(
    "text",
    [
        f"<think>{FINAL}",
        f"{FINAL} <think>Wait, no",
        f"<think>one <think>two</think> {FINAL}",
        f"<|begin_of_thought|>\n\nQ: {FINAL}",
        f"[think] {FINAL} </think>",
        "x" * (LONGEST + 1),
    ],
)
def test_an_unfinished_thought_has_no_answer(text):
    assert final_answer(text, stop=STOP) is None
    assert not ended(text, STOP)


def test_marks_of_the_template_are_kept():
    text = "<reasoning>Ink.</reasoning> <answer>shop</answer>"
    template = "<reasoning>{rationale}</reasoning> <answer>{label}</answer>"
    assert final_answer(text, template=template) == text
    assert final_answer(f"<think>x</think>{text}", template=template) == text


def test_the_end_of_a_message_alone_ends_no_thought():
    assert final_answer(f"{FINAL}<|end|>") == f"{FINAL}<|end|>"


@pytest.mark.parametrize("unit", ["<think></think>", "<think>", "</think>", "a<think></think>", "<think ", "("])
def test_long_answers_take_no_time(unit):
    text = unit * (10**6 // len(unit))
    for name in ("cqa", "svamp", "esnli"):
        assert not parse(name, text).whole


def test_stop_strings():
    assert ended(f"<think>\n\nQ:</think>{FINAL}\n\nQ:", STOP)
    assert not ended("<think>\n\nQ:</think>Ink", STOP)
    assert not ended(FINAL, STOP)


def test_thoughts_opened_by_a_prompt():
    assert opened_thought("user: x\nassistant: <think>\n") == "<think>"
    assert opened_thought("user: x\nassistant: <think>\n\n</think>\n\n") == ""
    assert opened_thought("write <think> first") == opened_thought("") == ""
    assert is_mark("[THINK]")
    assert not is_mark("</s>")


@pytest.mark.parametrize(
    ("name", "answer", "label"),
    [
        ("cqa", "Ink. So the answer is (b) shop.", "shop"),
        ("svamp", "So 5 - 3 = 2. The answer is (5 - 3).", "(5 - 3)"),
        ("anli1", "Ink is sold. So the answer is neutral.", "neutral"),
        ("esnli", "Ink is sold.\nAnswer: neutral", "neutral"),
    ],
)
def test_outputs_of_every_set_are_parsed_without_thoughts(name, answer, label):
    for thought in ("<think>So the answer is (a) sea. The answer is (1). Answer: x</think>\n\n", "Answer: y</think>"):
        found = parse(name, thought + answer)
        assert found == parse(name, answer)
        assert found.label == label
    assert not parse(name, f"<think>{answer}").whole
