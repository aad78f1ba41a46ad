import ast
import operator
import os
import re

import pytest
import yaml

from potstill.errors import ConfigError, DataError
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
        return (
            SIGNS[type(node.op)](of(node.left), of(node.right)) if isinstance(node, ast.BinOp) else node.value
        )

    return of(ast.parse(text, mode="eval").body)


@pytest.mark.parametrize("task", TASKS)
def test_every_demonstration_is_answered_in_the_published_format(task):
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


def test_the_demonstrations_of_choices_have_their_answer_among_them_at_several_letters():
    shown = load_prompts("cqa").demonstrations
    places = [row["choices"].index(row["answer"]) for row in shown]
    assert set(places) == {0, 1, 2, 3, 4}
    assert all(len(set(row["choices"])) == 5 for row in shown)


def test_the_demonstrations_of_arithmetic_are_right():
    for shown in load_prompts("svamp").demonstrations:
        result = value(shown["label"])
        assert re.findall(r"= (\d+)", shown["rationale"])[-1] == f"{result:g}"
        assert set(re.findall(r"\d+", shown["label"])) <= set(re.findall(r"\d+", shown["input"]))


@pytest.mark.parametrize("task", TASKS)
def test_completion_and_chat_say_the_same(task):
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


def test_braces_in_a_row_are_only_text():
    row = {"input": "{label} {0.__class__} {rationale}", "label": "(1)"}
    assert load_prompts("svamp").chat(row)[-1]["content"] == "Q: {label} {0.__class__} {rationale}"


def test_labels_by_number_have_names():
    prompts = load_prompts("esnli")
    assert [prompts.label({"label": number}) for number in range(3)] == list(prompts.label_names)
    with pytest.raises(DataError, match="label=3: expected 0 to 2"):
        prompts.label({"label": 3})
    with pytest.raises(DataError, match="no label 'label'"):
        prompts.label({"premise": ""})


def test_an_answer_is_cleaned_of_cue_and_further_questions():
    prompts = load_prompts("cqa")
    text = " A: Ink is sold there. So the answer is (b) shop.\n\nQ: What else\nA: Nothing"
    assert prompts.clean(text) == "Ink is sold there. So the answer is (b) shop."
    assert prompts.clean("half a \ud83d pair").encode() == "half a \ufffd pair".encode()
    assert prompts.clean("A: <think>\n\nQ: (a)</think> A: Ink. So the answer is (b) shop.") == (
        "Ink. So the answer is (b) shop."
    )
    assert prompts.clean("<think> So the answer is (b) shop.") is None


def test_fewer_shots_show_the_first_demonstrations():
    prompts = load_prompts("svamp", shots=2)
    assert prompts.demonstrations == load_prompts("svamp").demonstrations[:2]
    assert len(load_prompts("svamp", shots=0).chat(ROWS["svamp"])) == 2
    with pytest.raises(ConfigError, match=r"generation.shots=9: expected 0 to 7"):
        load_prompts("svamp", shots=9)


def test_a_file_of_the_users_takes_the_place_of_the_packages(tmp_path):
    content = yaml.safe_load((FOLDER / "svamp.yaml").read_text())
    content["instruction"] = "Do it my way."
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    mine = load_prompts("sums", tmp_path / "mine.yaml")
    assert mine.completion(ROWS["svamp"]).startswith("Do it my way.\n\nQ: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stop": None}, "stop: expected a list of texts"),
        ({"cue": " "}, "cue= : expected a text"),
        ({"answer": "It is {label}."}, "answer: lacks {rationale}"),
        ({"answer": "{rationale}"}, "answer: lacks {label}"),
        ({"shots": 3}, "has the unknown key shots"),
        ({"question": "Q: {task}"}, "demonstration 1: a row has no field 'task'"),
        (
            {"demonstrations": [{"input": "x", "rationale": "y"}]},
            "demonstration 1: a row has no label 'label'",
        ),
        (
            {"demonstrations": [{"input": "x", "rationale": "y", "label": None}]},
            "demonstration 1: a row has no label 'label'",
        ),
        ({"demonstrations": "none"}, "demonstrations: expected a list of mappings"),
    ],
)
def test_faults_of_a_file_are_named(tmp_path, change, message):
    content = yaml.safe_load((FOLDER / "svamp.yaml").read_text()) | change
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(DataError, match=re.escape(message)) as raised:
        load_prompts("svamp", path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "cannot be used"), ("- 1", "expected the keys"), ("cue: x", "lacks answer")],
)
def test_files_that_are_none_of_prompts_are_refused(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        load_prompts("svamp", tmp_path / "mine.yaml")


def test_an_unknown_task_names_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"generation.task=sums: .* anli1, cqa, esnli, svamp"):
        load_prompts("sums")
    with pytest.raises(DataError, match="does not exist"):
        load_prompts("sums", tmp_path / "nothing.yaml")
    with pytest.raises(DataError, match="choices=ab: expected a list"):
        load_prompts("cqa").chat({"question": "x", "choices": "ab"})


def mine(tmp_path, **change):
    content = yaml.safe_load((FOLDER / "svamp.yaml").read_text()) | change
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "mine.yaml"


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"generation.prompts=.*pipe"):
        load_prompts("svamp", tmp_path / "pipe")


@pytest.mark.parametrize(
    "raw",
    [
        b"instruction: \xff\n",
        b"[" * 10_000,
        b"a: \x00",
        b"a: 2024-99-99",
        b"x" * (SMALL_BYTES + 1),
        b'"\\ud83d"',
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, raw):
    (tmp_path / "mine.yaml").write_bytes(raw)
    with pytest.raises(DataError, match=r"generation.prompts=") as raised:
        load_prompts("svamp", tmp_path / "mine.yaml")
    assert "\n" not in str(raised.value)


def test_aliases_are_bounded_as_what_they_stand_for(tmp_path):
    lines = ["- &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"- &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    (tmp_path / "mine.yaml").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"generation.prompts=.*values"):
        load_prompts("svamp", tmp_path / "mine.yaml")
    text = mine(tmp_path).read_text().replace("demonstrations:", "label_names: &n [a, b]\ndemonstrations:")
    (tmp_path / "mine.yaml").write_text(text)
    assert load_prompts("svamp", tmp_path / "mine.yaml").label_names == ("a", "b")


def test_a_label_that_yaml_reads_as_true_is_named(tmp_path):
    shown = {"input": "1 and 1?", "label": True, "rationale": "So."}
    with pytest.raises(DataError, match="demonstration 1: label is true"):
        load_prompts("svamp", mine(tmp_path, demonstrations=[shown]))
    with pytest.raises(DataError, match="label=false"):
        load_prompts("svamp").label({"label": False})
