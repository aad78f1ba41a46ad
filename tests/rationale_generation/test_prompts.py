import ast
import operator
import os
import re

import pytest
import yaml

from potstill.errors import ConfigError, DataError, FormatError, LabelError
from potstill.rationale_generation.prompts import FOLDER, load_prompts
from potstill.runtime.small_files import SMALL_BYTES

TASKS = ["anli1", "cqa", "esnli", "svamp"]
ROWS = {
    "cqa": {"question": "Where is ink sold?", "choices": ["sea", "shop"], "answer": "shop"},
    "svamp": {"input": "Tom had 12 pens.\nHe gave away 5.", "label": "( 12.0 - 5.0 )"},
    "esnli": {"premise": "A man runs.", "hypothesis": "A man moves.", "label": 0},
    "anli1": {"premise": "A man runs.", "hypothesis": "A man moves.", "label": "entailment"},
}
# The published formats (Hsieh et al. 2023): what separates rationale and label in an answer.
FORMATS = {
    "cqa": r"(.*?) So the answer is \([a-e]\) (.*)\.",
    "svamp": r"(.*?) The answer is (\(.*\))\.",
    "esnli": r"(.*?)\nAnswer: (.*)",
    "anli1": r"(.*?) So the answer is (.*)\.",
}
SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value(text):
    def of(node):
        return SIGNS[type(node.op)](of(node.left), of(node.right)) if isinstance(node, ast.BinOp) else node.value

    return of(ast.parse(text, mode="eval").body)


def own_prompts(tmp_path, **change):
    """A user's file: the built-in prompts of SVAMP with changes."""
    content = yaml.safe_load((FOLDER / "svamp.yaml").read_text()) | change
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "mine.yaml"


@pytest.mark.parametrize("task", TASKS)
def test_demonstrations_have_the_published_format(task):
    prompts = load_prompts(task)
    assert 6 <= len(prompts.demonstrations) <= 8
    turns = prompts.chat(ROWS[task])
    answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    assert len(answers) == len(prompts.demonstrations)
    for shown, answer in zip(prompts.demonstrations, answers, strict=True):
        rationale, label = re.fullmatch(FORMATS[task], answer, re.DOTALL).groups()
        assert (rationale, label) == (shown["rationale"].strip(), prompts.label(shown))
        assert prompts.clean(answer) == answer  # no stop string cuts it
    labels = {prompts.label(shown) for shown in prompts.demonstrations}
    assert len(labels) >= 3


def test_answers_of_demonstrations_are_at_every_letter():
    shown = load_prompts("cqa").demonstrations
    places = [row["choices"].index(row["answer"]) for row in shown]
    assert set(places) == {0, 1, 2, 3, 4}
    assert all(len(set(row["choices"])) == 5 for row in shown)


def test_demonstrations_of_arithmetic_are_correct():
    for shown in load_prompts("svamp").demonstrations:
        result = value(shown["label"])
        assert re.findall(r"= (\d+)", shown["rationale"])[-1] == f"{result:g}"
        assert set(re.findall(r"\d+", shown["label"])) <= set(re.findall(r"\d+", shown["input"]))


@pytest.mark.parametrize("task", TASKS)
def test_completion_and_chat_have_the_same_content(task):
    prompts = load_prompts(task)
    text, turns = prompts.completion(ROWS[task]), prompts.chat(ROWS[task])
    assert [turn["role"] for turn in turns[:3]] == ["system", "user", "assistant"]
    assert turns[-1]["role"] == "user"
    assert text.endswith(f"{turns[-1]['content']}\n{prompts.cue}")
    at = 0
    for turn in turns:  # all of the chat is in the text, in this order
        at = text.index(turn["content"], at) + len(turn["content"])


def test_choices_are_lettered():
    question = load_prompts("cqa").chat(ROWS["cqa"])[-1]["content"]
    assert question == "Q: Where is ink sold?\nAnswer Choices:\n(a) sea\n(b) shop"


def test_braces_in_a_row_are_literal():
    row = {"input": "{label} {0.__class__} {rationale}", "label": "(1)"}
    assert load_prompts("svamp").chat(row)[-1]["content"] == "Q: {label} {0.__class__} {rationale}"


def test_labels_by_number():
    prompts = load_prompts("esnli")
    assert [prompts.label({"label": number}) for number in range(3)] == list(prompts.label_names)
    with pytest.raises(LabelError, match=r"^label=3: .* 2$"):
        prompts.label({"label": 3})
    with pytest.raises(LabelError, match=r"'label'.*premise"):
        prompts.label({"premise": ""})


def test_cue_thoughts_and_further_questions_are_removed_from_an_answer():
    prompts = load_prompts("cqa")
    text = " A: Ink is sold there. So the answer is (b) shop.\n\nQ: What else\nA: Nothing"
    assert prompts.clean(text) == "Ink is sold there. So the answer is (b) shop."
    assert prompts.clean("half a \ud83d pair").encode() == "half a \ufffd pair".encode()
    assert prompts.clean("A: <think>\n\nQ: (a)</think> A: Ink. So the answer is (b) shop.") == (
        "Ink. So the answer is (b) shop."
    )
    assert prompts.clean("<think> So the answer is (b) shop.") is None


def test_shots_are_the_first_demonstrations():
    prompts = load_prompts("svamp", shots=2)
    assert prompts.demonstrations == load_prompts("svamp").demonstrations[:2]
    assert len(load_prompts("svamp", shots=0).chat(ROWS["svamp"])) == 2
    with pytest.raises(ConfigError, match=r"^generation.shots=9: .*7"):
        load_prompts("svamp", shots=9)


def test_a_users_file_replaces_the_built_in_one(tmp_path):
    prompts = load_prompts("sums", own_prompts(tmp_path, instruction="Other instruction."))
    assert prompts.completion(ROWS["svamp"]).startswith("Other instruction.\n\nQ: ")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"stop": None}, "stop: "),
        ({"cue": " "}, "cue= : "),
        ({"answer": "It is {label}."}, "answer: .*{rationale}"),
        ({"answer": "{rationale}"}, "answer: .*{label}"),
        ({"shots": 3}, ".* shots;"),
        ({"question": "Q: {task}"}, "demonstration 1: .*'task'"),
        ({"demonstrations": [{"input": "x", "rationale": "y"}]}, "demonstration 1: .*'label'"),
        ({"demonstrations": [{"input": "x", "rationale": "y", "label": None}]}, "demonstration 1: .*'label'"),
        ({"demonstrations": [{"input": "x", "rationale": "y", "label": True}]}, "demonstration 1: label .*true"),
        ({"demonstrations": "none"}, "demonstrations: "),
    ],
)
def test_invalid_prompts_are_rejected(tmp_path, change, named):
    path = own_prompts(tmp_path, **change)
    with pytest.raises(FormatError, match=f"^generation.prompts={re.escape(str(path))}: {named}"):
        load_prompts("svamp", path)


def test_an_unknown_task_is_rejected(tmp_path):
    with pytest.raises(ConfigError, match=r"^generation.task=sums: .* anli1, cqa, esnli, svamp"):
        load_prompts("sums")
    with pytest.raises(DataError, match=r"^generation.prompts=.*nothing.yaml"):
        load_prompts("sums", tmp_path / "nothing.yaml")
    with pytest.raises(DataError, match=r"^choices=ab: "):
        load_prompts("cqa").chat({"question": "x", "choices": "ab"})


def test_a_named_pipe_is_rejected_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"^generation.prompts=.*pipe"):
        load_prompts("svamp", tmp_path / "pipe")


@pytest.mark.parametrize(
    "raw",
    [
        b"instruction: \xff\n",
        b"[" * 10_000,
        b"a: [",
        b"a: \x00",
        b"a: 2024-99-99",
        b"x" * (SMALL_BYTES + 1),
        b'"\\ud83d"',
        b"- 1",
        b"cue: x",
    ],
)
def test_an_unreadable_file_is_an_error_of_one_line(tmp_path, raw):
    (tmp_path / "mine.yaml").write_bytes(raw)
    with pytest.raises(DataError, match=r"^generation.prompts=.*mine\.yaml") as raised:
        load_prompts("svamp", tmp_path / "mine.yaml")
    assert "\n" not in str(raised.value)


def test_aliases_count_as_their_expanded_values(tmp_path):
    lines = ["- &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"- &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    (tmp_path / "mine.yaml").write_text("\n".join(lines))
    with pytest.raises(FormatError, match=r"^generation.prompts=.*100,000"):
        load_prompts("svamp", tmp_path / "mine.yaml")
    text = own_prompts(tmp_path).read_text().replace("demonstrations:", "label_names: &n [a, b]\ndemonstrations:")
    (tmp_path / "mine.yaml").write_text(text)
    assert load_prompts("svamp", tmp_path / "mine.yaml").label_names == ("a", "b")


def test_booleans_are_rejected_as_labels():
    with pytest.raises(LabelError, match=r"^label=false"):
        load_prompts("svamp").label({"label": False})
