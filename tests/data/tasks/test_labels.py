"""Labels as written in files, as sets, and as numbers."""

import json

import numpy as np
import pytest

from potstill.data.tasks.labels import Task, encode_labels, labels_of, other_spellings, with_known_labels
from potstill.data.tasks.readers import Layout, Rows, RowSource
from potstill.data.tasks.sources import DataFile
from potstill.data.tasks.splits import evaluated_parts, settle_labels, task_of, training_parts
from potstill.errors import ConfigError, LabelError
from potstill.runs.checks import validate_train

LAYOUT = (Layout(("text",), "label"),)


def rows(*labels):
    places = [f"line {number}" for number in range(2, len(labels) + 2)]
    return Rows((["a"] * len(labels),), list(labels), places, "rows.csv", "benchmark.eval_file")


def task(*labels, ordered=False, **aliases):
    return Task("own", "classification", labels, ("accuracy",), "accuracy", "max", aliases, ordered)


def encoded(labels, own):
    return encode_labels(rows(*labels), own).tolist()


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (("b", "a", "b"), ("a", "b")),
        (("10", "9", "-1"), ("-1", "9", "10")),
        (("10.0", "2.0", "11.0"), ("2.0", "10.0", "11.0")),
        (("1", "1.0", "2", "02", "+2"), ("1", "2")),
        (("a", "A"), ("A", "a")),
        (("A-B", "AB"), ("A-B", "AB")),
        (("1", "x"), ("1", "x")),
    ],
)
def test_spellings_of_one_number_are_one_label(labels, names):
    assert labels_of(rows(*labels)) == names


@pytest.mark.parametrize("written", ["2", "2.0", "+2", "02", "2.", "002.00", " 2 "])
def test_a_number_is_the_same_label_in_any_spelling(written):
    names = ("0.0", "1.0", "2.0", "10.0", "11.0")
    assert encoded([written, "10", "11.0", "0"], task(*names)) == [2, 3, 4, 0]
    assert encoded([written, "1"], task("0", "1", "2")) == [2, 1]
    assert encoded([written, "0"], task("LABEL_0", "LABEL_1", "LABEL_2")) == [2, 0]


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (("-1", "0", "1"), ("-1", "0", "1"), [0, 1, 2]),
        (("a", "A"), ("A", "a"), [1, 0]),
        (("A-B", "AB"), ("AB", "A-B"), [1, 0]),
        (("Positive", "NEGATIVE"), ("negative", "positive"), [1, 0]),
        (("1e0", "1"), ("1", "1e0"), [1, 0]),
    ],
)
def test_equal_names_come_before_similar_ones(labels, names, numbers):
    assert encoded(labels, task(*names)) == numbers


@pytest.mark.parametrize(
    ("labels", "own"),
    [
        (("ab",), task("AB", "A-B")),
        (("AB", "A-B"), task("AB", "c")),
        (("1",), task("1.0", "+1")),
        (("3",), task("0", "1", "2")),
        (("-1",), task("0", "1", "2")),
        (("3",), task("a", "b", "c", ordered=True)),
        (("-1",), task("a", "b", "c", ordered=True)),
        (("0.5",), task("a", "b", "c", ordered=True)),
    ],
)
def test_ambiguous_and_unknown_labels_are_rejected(labels, own):
    with pytest.raises(LabelError, match=r"line .: label '") as raised:
        encode_labels(rows(*labels), own)
    assert "benchmark.eval_file" in str(raised.value)


def test_positions_are_those_of_a_known_order():
    names = ("entailment", "neutral", "contradiction")
    part = rows("0", "2", "1.0", "neutral")
    assert encode_labels(part, task(*names, ordered=True)).tolist() == [0, 2, 1, 1]
    spellings = other_spellings(part, task(*names, ordered=True))
    assert spellings == "0 = entailment, 1.0 = neutral, 2 = contradiction"
    with pytest.raises(LabelError, match=r"benchmark\.labels"):
        encode_labels(part, task(*sorted(names)))
    with pytest.raises(LabelError, match=r"benchmark\.labels"):
        encode_labels(rows("no"), task("LABEL_0", "LABEL_1"))


def test_an_alias_is_a_label():
    own = task("no", "yes", ordered=True, nope="no")
    assert encoded(["nope", "yes", "0"], own) == [0, 1, 0]
    assert other_spellings(rows("nope", "yes"), own) == ""


@pytest.mark.parametrize(
    ("labels", "names", "kept"),
    [(("-1",), ("no", "yes"), False), (("", "-1"), ("0", "1"), False), (("-1",), ("-1", "1"), True)],
)
def test_minus_one_marks_a_missing_label_unless_it_is_one(labels, names, kept):
    known = with_known_labels(rows(*labels), task(*names))
    assert (known.labels is not None) == kept


@pytest.fixture
def write(tmp_path):
    def file(name, *labels):
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
    return RowSource(DataFile(path), labelled, layouts=LAYOUT, separator=separator).read()


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
def test_sets_of_labels_in_every_format(write, name, labels, separator, compose_config):
    rows = sets_of(write(name, *labels), separator)
    assert rows.sets == [("sport", "money"), (), ("money",)]
    assert labels_of(rows) == ("money", "sport")
    task = task_of(compose_config("benchmark=text_classification", "benchmark.multi_label=true").benchmark)
    encoded = encode_labels(rows, task.with_labels(("money", "sport", "law")))
    assert np.array_equal(encoded, [[1, 1, 0], [0, 0, 0], [1, 0, 0]])
    with pytest.raises(LabelError, match=r"line .: label 'sport'"):
        encode_labels(rows, task.with_labels(("money", "law")))


def test_numbers_in_sets_are_labels_by_number(write, compose_config):
    config = compose_config("benchmark=text_classification", "benchmark.multi_label=true", "benchmark.labels=[a,b,c]")
    rows = sets_of(write("a.jsonl", "[2, 0]", "1", "[]"))
    assert np.array_equal(encode_labels(rows, task_of(config.benchmark)), [[1, 0, 1], [0, 1, 0], [0, 0, 0]])


BROKEN = ['{"a": 1}', "true", "NaN", "Infinity", '["a", ["b"]]', '["a", null]', '["a", false]', "[NaN]"]


@pytest.mark.parametrize("separator", [None, ","])
@pytest.mark.parametrize("value", BROKEN)
def test_invalid_labels(write, value, separator):
    path = write("a.jsonl", '"x"' if separator is None else '["x"]', value, '"y"')
    with pytest.raises(LabelError) as caught:
        sets_of(path, separator)
    message = str(caught.value)
    assert message.startswith(f"benchmark.train_file: '{path}' line 2: 'label'")
    assert "\n" not in message
    assert json.dumps(json.loads(value)) in message or "entry" in message


@pytest.mark.parametrize("value", ["null", '["a", "a"]', "[0, 1, 1, 0]", '["a", " "]'])
def test_invalid_sets(write, value):
    path = write("a.jsonl", '["x"]', value)
    with pytest.raises(LabelError, match="line 2: 'label'"):
        sets_of(path)


def test_a_list_among_single_labels_names_the_key(write):
    path = write("a.jsonl", '"x"', '["y"]')
    with pytest.raises(LabelError, match=r"line 2: 'label' .*benchmark\.multi_label=true"):
        sets_of(path, separator=None)


def test_parts_without_labels(write):
    task = Task("t", "multi_label", ("a", "b"), ("f1_micro",), "f1_micro", "max")
    for path in (write("a.jsonl", "null", "null"), write("a.tsv", "", ""), write("b.tsv", "-1", "-1")):
        rows = with_known_labels(sets_of(path, labelled=False), task)
        assert (rows.labels, rows.sets) == (None, None)
    empty = with_known_labels(sets_of(write("b.jsonl", "[]", "[]"), labelled=False), task)
    assert empty.sets == [(), ()]


def test_lists_in_the_rows_decide_the_kind_of_task(write, compose_config):
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
    for parts in (training_parts(config.benchmark, None).eval, evaluated_parts(config.benchmark, None)):
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
        (["benchmark=conll2003", "benchmark.label_separator=|"], r"benchmark.label_separator=\|"),
    ],
)
def test_invalid_combinations_of_keys(compose_config, overrides, key):
    with pytest.raises(ConfigError, match=key):
        task_of(compose_config(*overrides).benchmark)


def test_a_command_names_the_invalid_line(write, compose_config, bert_teacher):
    path = write("a.jsonl", '["x"]', '["y"]', '{"z": 1}')
    with pytest.raises(ConfigError, match="line 3") as caught:
        validate_train(
            compose_config(
                "objective=finetune", "benchmark=text_classification", f"student.model={bert_teacher}",
                f"benchmark.train_file={path}", f"benchmark.eval_file={path}",
            )
        )  # fmt: skip
    assert "benchmark.train_file" in str(caught.value)
