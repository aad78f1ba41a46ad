"""Rows in the formats of the tasks: small files, and the published ones if available."""

import gzip
import json

import numpy as np
import pytest

from potstill.data.tasks.labels import encode_labels, labels_of, with_known_labels
from potstill.data.tasks.readers import Layout, RowSource
from potstill.data.tasks.sources import DataFile
from potstill.data.tasks.splits import evaluated_parts, task_of, training_parts
from potstill.errors import ConfigError, DataError, FormatError, LabelError

SINGLE = (Layout(("text",), "label"),)
PAIR = (Layout(("a", "b"), "label"),)


@pytest.fixture
def write(tmp_path):
    def file(name, content):
        path = tmp_path / name
        raw = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return path

    return file


def read(path, layouts=SINGLE, labelled=True, **options):
    source = RowSource(DataFile(path), labelled, layouts=layouts, **options)
    source.check()
    return source.read()


def error(path, layouts=SINGLE, code="E-FORMAT"):
    with pytest.raises(DataError) as caught:
        read(path, layouts)
    assert caught.value.code == code
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"benchmark.train_file: '{path}'")
    return message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", 'text\tlabel\nsay "so\tyes\nwell, no\tno\n'),
        ("a.txt", 'label\ttext\tx\r\nyes\tsay "so\t1\r\nno\twell, no\t2\r\n'),
        ("a.tsv.gz", '\ufefftext\tlabel\nsay "so\tyes\nwell, no\tno'),
        ("a.csv", 'text,label\n"say ""so",yes\n"well, no",no\n'),
        ("a.jsonl", '{"text": "say \\"so", "label": "yes"}\n\n{"text": "well, no", "label": "no"}\n'),
        ("a.json", '{"text": "say \\"so", "label": "yes"}\n{"text": "well, no", "label": "no"}\n'),
        ("b.json", '[{"text": "say \\"so", "label": "yes"},\n {"text": "well, no", "label": "no"}]'),
        ("c.json.gz", '{"0": {"text": "say \\"so", "label": "yes"},\n "1": {"text": "well, no", "label": "no"}}'),
    ],
)
def test_every_format_gives_the_same_rows(write, name, content):
    rows = read(write(name, content))
    assert rows.texts == (['say "so', "well, no"],)
    assert rows.labels == ["yes", "no"]


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("content", ['{"text": "a", "label": "x"}', '[{"text": "a", "label": "x"}]'])
def test_a_single_row(write, name, content, end):
    assert read(write(name, content + end)).labels == ["x"]


def test_a_text_of_a_csv_file_may_have_several_lines(write):
    rows = read(write("a.csv", 'text,label\n"one\ntwo",yes\nthree,no\n'))
    assert rows.texts == (["one\ntwo", "three"],)
    assert rows.places == ["line 3", "line 4"]


def test_columns_by_number_where_there_is_no_header(write):
    layouts = (Layout(("sentence",), "label"), Layout(("3",), "1"))
    path = write("cola.tsv", "gj04\t1\t\tThe ship sank.\ngj04\t0\t*\tSank ship the.\n")
    rows = read(path, layouts)
    assert (rows.texts, rows.labels) == ((["The ship sank.", "Sank ship the."],), ["1", "0"])
    test = read(write("test.tsv", "index\tsentence\n0\tThe ship sank.\n"), layouts, labelled=False)
    assert (test.texts, test.labels) == ((["The ship sank."],), None)


def test_max_examples_limits_the_rows(write):
    path = write("a.tsv", "text\tlabel\na\tx\nb\ty\nc\tz\n")
    assert len(read(path, max_examples=2)) == 2


@pytest.mark.parametrize(
    ("name", "content", "code", "message"),
    [
        ("a.tsv", "text\tlabel\na\tb\tx\n", "E-FORMAT", "line 2: 3 columns, the first line has 2"),
        ("a.tsv", "text\tlable\na\tx\n", "E-FORMAT", "text, lable; set benchmark.label_column"),
        ("a.tsv", "sentence\tlabel\na\tx\n", "E-FORMAT", "sentence, label; set benchmark.text_columns"),
        ("a.tsv", "text\tlabel\n", "E-FORMAT", ""),
        ("a.tsv", "", "E-FILE", ""),
        ("a.tsv", b"text\tlabel\ncaf\xe9\tx\n", "E-FILE", "line 2"),
        ("a.xlsx", "text\n", "E-FORMAT", ".tsv .txt .csv"),
        ("a.csv", 'text,label\n"a"b,x\n', "E-FORMAT", "line 2: invalid CSV"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": \n', "E-FORMAT", "line 2: invalid JSON"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n[1]\n', "E-FORMAT", "line 2: [1]"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "a"}\n', "E-FORMAT", "line 2: 'label'"),
        ("a.jsonl", '{"text": 3, "label": "x"}\n', "E-FORMAT", "line 1: 'text' is 3"),
        ("a.json", "[1, 2]", "E-FORMAT", "row 1: 1"),
        ("a.json", "7", "E-FORMAT", "line 1: 7"),
    ],
)  # fmt: skip
def test_invalid_files(write, name, content, code, message):
    path = write(name, content)
    assert message in error(path, code=code)


def test_a_missing_file(tmp_path):
    error(tmp_path / "nowhere.tsv", code="E-FILE")


def test_broken_rows_can_be_left_out(write):
    path = write("a.tsv", "a\tb\tlabel\n1\t2\tx\n1\t2\n3\t4\ty\n")
    assert "skip_broken=true" in error(path, PAIR)
    rows = read(path, PAIR, skip_broken=True)
    assert (rows.texts, rows.broken) == ((["1", "3"], ["2", "4"]), 1)
    assert rows.places == ["line 2", "line 4"]


# Labels.


def task(compose_config, *overrides):
    return task_of(compose_config(*overrides, name="evaluate").benchmark)


def test_a_label_is_a_name_or_its_number_or_an_alias(write, compose_config):
    xnli = task(compose_config, "benchmark=xnli_zh")
    rows = read(write("a.tsv", "text\tlabel\na\tneutral\nb\t0\nc\tcontradictory\n"))
    assert encode_labels(rows, xnli).tolist() == [1, 0, 2]
    named = task(compose_config, "benchmark=text_classification", "benchmark.labels=['2','1']")
    rows = read(write("b.tsv", "text\tlabel\na\t1\nb\t2\n"))
    assert encode_labels(rows, named).tolist() == [1, 0]  # a name that is a number is a name


def test_an_unknown_label_is_reported_with_its_line(write, compose_config):
    rows = read(write("a.tsv", "text\tlabel\na\tpositive\nb\tmaybe\n"))
    with pytest.raises(LabelError, match=r"'a.tsv' line 3: .*'maybe'.*negative, positive"):
        encode_labels(rows, task(compose_config, "benchmark=sst2"))


def test_scores_are_finite_numbers(write, compose_config):
    stsb = task(compose_config, "benchmark=stsb")
    assert encode_labels(read(write("a.tsv", "text\tlabel\na\t2.5\n")), stsb).tolist() == [2.5]
    for wrong in ("much", "nan"):
        with pytest.raises(LabelError, match=f"line 2: score '{wrong}'"):
            encode_labels(read(write("a.tsv", f"text\tlabel\na\t{wrong}\n")), stsb)


def test_labels_are_sorted(write):
    assert labels_of(read(write("a.tsv", "text\tlabel\na\tb\nb\ta\nc\tb\n"))) == ("a", "b")
    assert labels_of(read(write("a.tsv", "text\tlabel\na\t10\nb\t9\n"))) == ("9", "10")
    with pytest.raises(LabelError, match="1 different"):
        labels_of(read(write("a.tsv", "text\tlabel\na\tb\n")))
    with pytest.raises(LabelError, match=r"a.tsv' line 3: label ''"):
        labels_of(read(write("a.tsv", "text\tlabel\na\tb\nb\t \nc\ta\n")))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["benchmark=sst2", "benchmark.text_columns=[a,b]"], "benchmark.text_columns=['a', 'b']: sst2"),
        (["benchmark=mrpc", "benchmark.text_columns=[a]"], "benchmark.text_columns=['a']: mrpc"),
        (["benchmark=text_classification", "benchmark.text_columns=[]"], "benchmark.text_columns=[]:"),
        (["benchmark=text_classification", "benchmark.text_columns=[0]"], "benchmark.label_column=label:"),
        (["benchmark=sst2", "benchmark.metrics=[pearson]"], "benchmark.metrics=['pearson']: some of accuracy, f1"),
        (["benchmark=mnli", "benchmark.metrics=[f1]", "benchmark.monitor=f1"], "mnli has 3; use f1_macro"),
        (["benchmark=sst2", "benchmark.monitor=f1"], "benchmark.monitor=f1: one of benchmark.metrics, accuracy"),
        (["benchmark=sst2", "benchmark.labels=[a,a]"], "benchmark.labels=['a', 'a']:"),
        (["benchmark=stsb", "benchmark.labels=[a,b]"], "benchmark.labels=[a,b]: no such key of benchmark=stsb"),
        (["benchmark=stsb", "benchmark.aliases=[a]"], "benchmark.aliases=[a]: no such key of benchmark=stsb"),
        (["benchmark=sst2", "benchmark.task=tokens"], "benchmark.task=tokens: no such key"),
        (["benchmark=sst2", "benchmark.aliases=[a]"], "benchmark.aliases=[a]:"),
        (["benchmark=sst2", "benchmark.folder=nowhere"], "benchmark.folder=nowhere:"),
        (["benchmark=lcqmc"], "benchmark.eval_file=null: benchmark=lcqmc needs its eval part"),
    ],
)  # fmt: skip
def test_invalid_configurations(overrides, said, compose_config):
    def read():
        benchmark = compose_config(*overrides, name="evaluate").benchmark
        return task_of(benchmark), evaluated_parts(benchmark, None)

    with pytest.raises(ConfigError) as caught:
        read()
    assert said in str(caught.value)


def test_a_folder_without_the_part(tmp_path, compose_config):
    benchmark = compose_config("benchmark=sst2", f"benchmark.folder={tmp_path}", name="evaluate").benchmark
    with pytest.raises(ConfigError, match=r"has no train .*the train part of sst2.*benchmark\.train_file"):
        training_parts(benchmark, None)


def test_a_saved_hub_data_set_is_read_by_its_names(tmp_path, compose_config):
    """Class labels are matched by name, -1 is no label; a folder of data files stands in for the hub."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["positive", "negative"])}
    )
    (tmp_path / "hub").mkdir()
    for split, labels in {"train": [0, 1], "validation": [1, 1], "test": [-1, -1]}.items():
        part = datasets.Dataset.from_dict({"sentence": ["good", "bad"], "label": labels}, features=features)
        part.to_parquet(str(tmp_path / "hub" / f"{split}.parquet"))
    keys = ["benchmark=sst2", f"benchmark.hub={tmp_path}/hub", "benchmark.config=null"]
    benchmark = compose_config(*keys, name="evaluate").benchmark
    (train,) = training_parts(benchmark, None).train
    train.check()
    assert encode_labels(train.read(), task_of(benchmark)).tolist() == [1, 0]
    benchmark = compose_config(*keys, "benchmark.part=test", name="evaluate").benchmark
    rows = evaluated_parts(benchmark, None)[""].read()
    assert with_known_labels(rows, task_of(benchmark)).labels is None


def test_saved_hub_data_sets_of_tokens_and_of_questions_are_read(tmp_path, compose_config):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "ner").mkdir()
    tags = datasets.ClassLabel(names=["O", "B-PER", "I-PER"])
    features = datasets.Features({"tokens": [datasets.Value("string")], "ner_tags": [tags]})
    rows = {"tokens": [["Ada", "said"], ["no"]], "ner_tags": [[1, 0], [0]]}
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "ner" / f"{split}.parquet"))
    benchmark = compose_config("benchmark=conll2003", f"benchmark.hub={tmp_path}/ner", name="evaluate").benchmark
    (source,) = training_parts(benchmark, None).train
    source.check()
    sentences = source.read()
    assert (sentences.words, sentences.tags) == (rows["tokens"], [["B-PER", "O"], ["O"]])

    (tmp_path / "qa").mkdir()
    answers = [
        {"text": ["Ada"], "answer_start": [0]},
        {"text": ["Ada"], "answer_start": [4]},  # not where it says
        {"text": [], "answer_start": []},
    ]
    rows = {"id": ["a", "b", "c"], "question": ["Who?"] * 3, "context": ["Ada said no."] * 3, "answers": answers}
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(rows).to_parquet(str(tmp_path / "qa" / f"{split}.parquet"))
    benchmark = compose_config("benchmark=squad_v2", f"benchmark.hub={tmp_path}/qa", name="evaluate").benchmark
    parts = training_parts(benchmark, None)
    train, evaluated = parts.train[0].read(), parts.eval[""].read()
    assert ([item.id for item in train.items], train.counts.misplaced, train.counts.unanswerable) == (["a", "c"], 1, 1)
    assert [item.id for item in evaluated.items] == ["a", "b", "c"]
    benchmark = compose_config("benchmark=squad", f"benchmark.hub={tmp_path}/ner", name="evaluate").benchmark
    with pytest.raises(FormatError, match="question"):
        training_parts(benchmark, None).train[0].check()


# The real files.

GLUE = {
    "cola": ("CoLA", (8551, 1043, 1063), 0.7044), "sst2": ("SST-2", (67349, 872, 1821), 0.5578),
    "mrpc": ("MRPC", (3668, 408, 1725), 0.6745), "stsb": ("STS-B", (5749, 1500, 1379), 2.7010),
    "wnli": ("WNLI", (635, 71, 146), 0.4913),
}  # fmt: skip


@pytest.mark.parametrize("name", GLUE)
def test_the_files_of_glue(name, data_dir, compose_config):
    folder, sizes, mean = GLUE[name]
    keys = [f"benchmark={name}", f"benchmark.folder={data_dir}/glue/{folder}"]
    benchmark = compose_config(*keys, "benchmark.part=test", name="evaluate").benchmark
    parts = training_parts(benchmark, None)
    sources = [*parts.train, parts.eval[""], evaluated_parts(benchmark, None)[""]]
    rows = [source.read() for source in sources]
    assert tuple(map(len, rows)) == sizes
    assert rows[2].labels is None
    asked = task_of(benchmark)
    assert encode_labels(rows[0], asked).mean() == pytest.approx(mean, abs=1e-4)
    assert encode_labels(rows[1], asked) is not None


@pytest.mark.parametrize(
    ("name", "file", "count", "labels"),
    [
        ("qnli", "glue/QNLI/dev.tsv.gz", 5463, [2702, 2761]),
        ("qnli", "glue/QNLI/glue_pretrain_train.json.gz", 8999, [4523, 4476]),
        ("qqp", "glue/QQP/glue_pretrain_dev.json", 1000, [623, 377]),
        ("mnli", "glue/MNLI/dev_matched.jsonl.gz", 9815, None),
        ("mnli", "glue/MNLI/glue_pretrain_dev.json", 1000, [347, 333, 320]),
        ("xnli_zh", "chinese/xnli/dev-zh.tsv", 2490, [830, 830, 830]),
        ("lcqmc", "chinese/LCQMC/test.txt", 12500, [6250, 6250]),
    ],
)
def test_further_files_of_pairs(name, file, count, labels, data_dir, compose_config):
    benchmark = compose_config(f"benchmark={name}", f"benchmark.eval_file={data_dir}/{file}", name="evaluate").benchmark
    (source,) = evaluated_parts(benchmark, None).values()
    source.check()
    rows = source.read()
    assert len(rows) == count
    assert len(rows.texts) == 2
    assert not any(text.endswith("\r") for column in rows.texts for text in column)
    numbers = encode_labels(rows, task_of(benchmark))
    assert labels is None or np.bincount(numbers).tolist() == labels


def test_the_names_of_labels_are_those_of_the_hub(compose_config):
    """In the hub's order, so that a model that numbers its labels alone, as most on the hub, is read right."""
    order = {
        "cola": "unacceptable acceptable", "sst2": "negative positive", "mrpc": "not_equivalent equivalent",
        "qqp": "not_duplicate duplicate", "mnli": "entailment neutral contradiction",
        "qnli": "entailment not_entailment", "rte": "entailment not_entailment",
        "wnli": "not_entailment entailment", "xnli_zh": "entailment neutral contradiction",
    }  # fmt: skip
    for name, labels in order.items():
        assert task(compose_config, f"benchmark={name}").labels == tuple(labels.split()), name


def test_json_lines_of_numbers_as_labels(write):
    lines = [json.dumps({"text": "a", "label": label}) for label in (0, 1)]
    assert read(write("a.jsonl", "\n".join(lines))).labels == ["0", "1"]
