"""Values of a label: what is one, what is a set of them, and what is neither."""

import json

import numpy as np
import pytest

from potstill.data.tasks.labels import Task, encode_labels, labels_of, with_known_labels
from potstill.data.tasks.readers import Layout, TaskFile
from potstill.data.tasks.splits import judged_parts, settle_labels, task_of, training_parts
from potstill.errors import ConfigError, DataError
from potstill.runs.checks import validate_train

LAYOUT = (Layout(("text",), "label"),)


@pytest.fixture
def write(tmp_path):
    def file(name, *labels, quoted=False):
        path = tmp_path / name
        if name.endswith(".jsonl"):
            lines = [f'{{"text": "t{n}", "label": {label}}}' for n, label in enumerate(labels)]
        else:
            gap = "," if name.endswith(".csv") else "\t"
            lines = [f"text{gap}label", *(f"t{n}{gap}{label}" for n, label in enumerate(labels))]
        path.write_text("\n".join(lines) + "\n")
        return path

    return file


def sets_of(path, separator=",", labelled=True):
    return TaskFile(path, LAYOUT, labelled, separator=separator).read()


@pytest.mark.parametrize(
    ("name", "labels", "separator"),
    [
        ("a.jsonl", ['["sport", "money"]', "[]", '["money"]'], ","),
        ("b.jsonl", ['"sport, money"', '""', '"money"'], ","),
        ("a.tsv", ["sport,money", "", " money "], ","),
        ("b.tsv", ["sport | money", "", "|money|"], "|"),
        ("a.csv", ['" sport,money"', '""', "money"], ","),
    ],
)
def test_every_format_gives_the_same_sets(write, name, labels, separator, compose_config):
    rows = sets_of(write(name, *labels), separator)
    assert rows.sets == [("sport", "money"), (), ("money",)]
    assert labels_of(rows) == ("money", "sport")
    task = task_of(compose_config("benchmark=text_classification", "benchmark.multi_label=true").benchmark)
    encoded = encode_labels(rows, task.with_labels(("money", "sport", "law")))
    assert np.array_equal(encoded, [[1, 1, 0], [0, 0, 0], [1, 0, 0]])
    with pytest.raises(DataError, match=r"line .: label 'sport'"):
        encode_labels(rows, task.with_labels(("money", "law")))


def test_numbers_in_sets_are_labels_by_number(write, compose_config):
    config = compose_config(
        "benchmark=text_classification", "benchmark.multi_label=true", "benchmark.labels=[a,b,c]"
    )
    rows = sets_of(write("a.jsonl", "[2, 0]", "1", "[]"))
    assert np.array_equal(encode_labels(rows, task_of(config.benchmark)), [[1, 0, 1], [0, 1, 0], [0, 0, 0]])


BROKEN = ['{"a": 1}', "true", "NaN", "Infinity", '["a", ["b"]]', '["a", null]', '["a", false]', "[NaN]"]


@pytest.mark.parametrize("separator", [None, ","])
@pytest.mark.parametrize("value", BROKEN)
def test_other_values_of_json_are_no_labels(write, value, separator):
    path = write("a.jsonl", '"x"' if separator is None else '["x"]', value, '"y"')
    with pytest.raises(DataError) as caught:
        sets_of(path, separator)
    message = str(caught.value)
    assert message.startswith(f"benchmark.train_file: '{path}' line 2: 'label'")
    assert "\n" not in message
    assert json.dumps(json.loads(value)) in message or "entry" in message


@pytest.mark.parametrize("value", ["null", '["a", "a"]', "[0, 1, 1, 0]", '["a", " "]'])
def test_what_is_no_set(write, value):
    path = write("a.jsonl", '["x"]', value)
    with pytest.raises(DataError, match="line 2: 'label'"):
        sets_of(path)


def test_a_list_among_single_labels_names_the_key(write):
    path = write("a.jsonl", '"x"', '["y"]')
    with pytest.raises(DataError, match=r"line 2: 'label' .*benchmark\.multi_label=true"):
        sets_of(path, separator=None)


def test_parts_without_labels(write):
    task = Task("t", "multi_label", ("a", "b"), ("f1_micro",), "f1_micro", "max")
    for path in (write("a.jsonl", "null", "null"), write("a.tsv", "", ""), write("b.tsv", "-1", "-1")):
        rows = with_known_labels(sets_of(path, labelled=False), task)
        assert (rows.labels, rows.sets) == (None, None)
    empty = with_known_labels(sets_of(write("b.jsonl", "[]", "[]"), labelled=False), task)
    assert empty.sets == [(), ()]


def test_lists_in_the_rows_settle_the_task(write, compose_config):
    lists, names = write("a.jsonl", '"x"', '["x", "y"]'), write("b.jsonl", '"x"', '"y"')

    def settled(training, *overrides):
        config = compose_config("benchmark=text_classification", *overrides)
        settle_labels(config.benchmark, None, training=training)
        task = task_of(config.benchmark)
        return task.kind, task.monitor, task.metrics

    sets = ("multi_label", "f1_micro", ("f1_micro", "f1_macro", "accuracy"))
    single = ("classification", "accuracy", ("accuracy", "f1_macro"))
    both = [f"benchmark.train_file={names}", f"benchmark.eval_file={lists}"]
    assert settled(True, f"benchmark.train_file={lists}", f"benchmark.eval_file={names}") == sets
    assert settled(True, *both) == single
    assert settled(False, *both) == sets
    assert settled(True, *both, "benchmark.multi_label=true") == sets
    assert settled(True, f"benchmark.train_file={lists}", "benchmark.multi_label=false") == single
    own = ["benchmark.metrics=[f1_macro]", "benchmark.monitor=f1_macro", "benchmark.multi_label=true"]
    assert settled(True, *both, *own) == ("multi_label", "f1_macro", ("f1_macro",))
    config = compose_config("benchmark=text_classification", *both, "benchmark.multi_label=true")
    for parts in (training_parts(config.benchmark, None).eval, judged_parts(config.benchmark, None)):
        assert parts[""].read().sets == [("x",), ("x", "y")]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["benchmark=stsb", "benchmark.multi_label=true"], "benchmark.multi_label=true"),
        (["benchmark=conll2003", "benchmark.multi_label=true"], "benchmark.multi_label=true"),
        (["benchmark=cola", "benchmark.multi_label=true"], r"benchmark.metrics=\['matthews', 'accuracy'\]"),
        (["benchmark=text_classification", "benchmark.label_separator=|"], r"benchmark.label_separator='\|'"),
        (
            ["benchmark=text_classification", "benchmark.multi_label=true", "benchmark.label_separator=''"],
            "benchmark.label_separator=''",
        ),
        (["benchmark=text_classification", "benchmark.task=multi_label"], "benchmark.task=multi_label"),
    ],
)
def test_keys_that_do_not_go_together(compose_config, overrides, key):
    with pytest.raises(ConfigError, match=key):
        task_of(compose_config(*overrides).benchmark)


def test_a_command_says_which_line_is_wrong(write, compose_config, bert_teacher):
    path = write("a.jsonl", '["x"]', '["y"]', '{"z": 1}')
    with pytest.raises(ConfigError, match="line 3") as caught:
        validate_train(
            compose_config(
                "objective=finetune", "benchmark=text_classification", f"student.model={bert_teacher}",
                f"benchmark.train_file={path}", f"benchmark.eval_file={path}",
            )
        )  # fmt: skip
    assert "benchmark.train_file" in str(caught.value)
