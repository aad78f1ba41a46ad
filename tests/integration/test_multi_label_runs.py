"""Rows with sets of labels, from end to end, in this process: fine-tuning, distillation, evaluation, export."""

import csv
import json
import random

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from potstill.errors import ConfigError
from potstill.runs.checks import validate_evaluate, validate_train
from potstill.runs.doctor import examine

pytestmark = pytest.mark.integration

QUIET = ["logger=csv", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"]
SMALL = ["data.max_length=24", "data.batch_size=8", "optimizer.lr=3e-3", "data.eval_batch_size=32"]
NAMES = ("law", "money", "sport")
SETS = "multi_label_classification"


@pytest.fixture(scope="module")
def files(tmp_path_factory, words):
    """Rows of words; a label where words of its own quarter of the list are among them."""
    folder, draw, size = tmp_path_factory.mktemp("sets"), random.Random(0), len(words) // 4
    for part, count in (("train", 240), ("dev", 60)):
        rows = []
        for _ in range(count):
            labels = [name for name in NAMES if draw.random() < 0.4]
            quarters = [NAMES.index(name) for name in labels] or [3]
            text = [word for q in quarters for word in draw.choices(words[q * size : (q + 1) * size], k=4)]
            draw.shuffle(text)
            rows.append((" ".join(text), labels))
        lines = [json.dumps({"text": text, "label": labels}) for text, labels in rows]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
        table = ["text\tlabel", *(f"{text}\t{' | '.join(labels)}" for text, labels in rows)]
        (folder / f"{part}.tsv").write_text("\n".join(table) + "\n")
        single = ["text\tlabel", *(f"{text}\t{(labels or ['none'])[0]}" for text, labels in rows)]
        (folder / f"single_{part}.tsv").write_text("\n".join(single) + "\n")
    return folder


def parts(files, stem="", suffix="jsonl"):
    return [
        "benchmark=text_classification",
        *(
            f"benchmark.{part}_file={files}/{stem}{name}.{suffix}"
            for part, name in (("train", "train"), ("eval", "dev"))
        ),
    ]


@pytest.fixture(scope="module")
def train(files, trained):
    """The summary of a run."""
    return lambda folder, *overrides, own=None: (
        trained(folder, *(own or parts(files)), *SMALL, *QUIET, *overrides).summary
    )


@pytest.fixture(scope="module")
def evaluator(evaluated):
    """The summary of an evaluation."""
    return lambda folder, *overrides: (
        evaluated(folder, "benchmark=text_classification", "data.max_length=24", *overrides).summary
    )


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, bert_tokenizer, make_bert, train, files):
    """Two fine-tuned models; the second has read a table and has its labels in another order."""
    made = []
    table = [*parts(files, suffix="tsv"), "benchmark.multi_label=true", "benchmark.label_separator=' | '"]
    for seed, (layers, *overrides) in enumerate(((4,), (2, "benchmark.labels=[sport,law,money]"))):
        folder = tmp_path_factory.mktemp(f"teacher{seed}")
        encoder = make_bert(folder / "encoder", bert_tokenizer, seed=seed, layers=layers, initializer_range=0.05)
        summary = train(
            folder, "objective=finetune", f"student.model={encoder}", "trainer.max_epochs=8", *overrides,
            own=table if seed else None,
        )  # fmt: skip
        assert summary["val/f1_micro"] > 0.9
        assert summary["val/constant_f1_micro"] == pytest.approx(micro_f1_of_all(files))
        assert summary["val/better_than_constant"] is True
        made.append(folder / "student")
    return made


def rows_of(files):
    return [json.loads(line) for line in (files / "dev.jsonl").read_text().splitlines()]


def test_transformers_alone_opens_a_student_and_reads_it_as_we_do(teachers, files):
    summary = json.loads((teachers[0].parent / "summary.json").read_text())
    assert {"val/f1_micro", "val/f1_macro", "val/accuracy", "val/loss"} <= summary.keys()
    model = AutoModelForSequenceClassification.from_pretrained(teachers[0]).eval()
    tokenizer = AutoTokenizer.from_pretrained(teachers[0])
    assert model.config.problem_type == SETS
    assert model.config.id2label == dict(enumerate(NAMES))
    rows = rows_of(files)
    inputs = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    gold = torch.tensor([[name in row["label"] for name in NAMES] for row in rows])
    with torch.no_grad():
        output = model(**inputs, labels=gold.float())
    assert output.loss.item() == pytest.approx(summary["val/loss"], rel=1e-4)
    same = ((output.logits > 0) == gold).all(1).double().mean().item()
    assert summary["val/accuracy"] == pytest.approx(same)
    found = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)([rows[0]["text"]])[0]
    by_name = {own["label"]: own["score"] for own in found}
    expected = dict(zip(NAMES, output.logits[0].sigmoid().tolist(), strict=True))
    assert by_name == pytest.approx(expected, abs=1e-4)
    report = (teachers[0].parent / "report.html").read_text()
    assert all(name in report for name in NAMES)


def micro_f1_of_all(files):
    """Of a model that gives every label to every row: what is reached without reading."""
    has = sum(len(row["label"]) for row in rows_of(files))
    return 2 * has / (has + len(NAMES) * len(rows_of(files)))


SCRATCH = (
    "+student.config={model_type: bert, num_hidden_layers: 2, hidden_size: 16, num_attention_heads: 2, "
    "intermediate_size: 32, max_position_embeddings: 32}"
)


def test_a_distilled_student_is_better_than_chance_with_and_without_a_store(train, teachers, files, tmp_path):
    chance = micro_f1_of_all(files)
    keys = [
        "objective=task_kd", f"teacher.model={teachers[0]}", "student.layers=[0,3]", "trainer.max_epochs=2",
        "student.dropout=0",
    ]  # fmt: skip
    direct = train(tmp_path / "direct", *keys)
    assert direct["val/f1_micro"] > chance + 0.2
    stored = train(tmp_path / "stored", *keys, "teacher/cache=on")
    for metric in ("val/f1_micro", "val/loss", "train/loss_ce"):
        assert stored[metric] == pytest.approx(direct[metric], rel=1e-3)
    shape = AutoModelForSequenceClassification.from_pretrained(tmp_path / "direct/student").config
    assert (shape.problem_type, shape.id2label) == (SETS, dict(enumerate(NAMES)))


@pytest.mark.parametrize(
    ("overrides", "weights"),
    [
        (
            ["teacher.average=probabilities", "objective.terms.label.weight=0.5", "objective.temperature=4"],
            {"label": 0.5},
        ),
        (["objective.matches={teacher: 2, student: 1, loss: hidden_mse, projection: linear}", SCRATCH], {"match_0": 1}),
        (["objective.soft_target=cross_entropy", "objective.probability_shift=true", SCRATCH], {}),
        (["objective.soft_target=jsd", "objective.temperature_schedule=cwsm", SCRATCH], {}),
        (
            ["objective.terms.mse.weight=0.1", "objective.soft_target=mse", "data.augment.share=0.5", SCRATCH],
            {"mse": 0.1},
        ),
    ],
)
def test_several_teachers_and_the_keys_of_soft_targets(train, teachers, tmp_path, overrides, weights):
    summary = train(
        tmp_path / "run", "objective=task_kd", f"teacher.models=[{teachers[0]},{teachers[1]}]", "trainer.max_steps=3",
        *overrides,
    )  # fmt: skip
    assert 0 < summary["train/loss_ce"] < 50
    weighted = summary["train/loss_ce"] + sum(
        weight * summary[f"train/loss_{term}"] for term, weight in weights.items()
    )
    assert summary["train/loss"] == pytest.approx(weighted, rel=1e-4)


def test_a_student_that_reacts_like_the_teacher(train, evaluator, teachers, files, tmp_path):
    summary = train(
        tmp_path / "run", "objective=diito", f"teacher.model={teachers[0]}", "student.layers=[0,3]",
        "trainer.max_steps=20", "objective.terms.label.weight=0.5",
    )  # fmt: skip
    assert summary["train/loss_causal_ce"] > 0
    assert 0.5 < summary["val/interchange_agreement"] <= 1
    evaluated = evaluator(
        tmp_path / "agreement", f"model=[{teachers[0]},{tmp_path}/run/student]", "names=[t,s]",
        f"benchmark.eval_file={files}/dev.jsonl", "benchmark.interchange.mapping=grid",
        "benchmark.interchange.random_control=false",
    )  # fmt: skip
    blocks = [value for name, value in evaluated.items() if name.startswith("test/interchange_agreement_")]
    assert len(blocks) == 4 * 2
    assert evaluated["test/interchange_agreement"] == pytest.approx(sum(blocks) / len(blocks))


def test_several_tasks_of_which_one_has_sets(train, teachers, files, tmp_path, bert_tokenizer, make_bert):
    encoder = make_bert(tmp_path / "encoder", bert_tokenizer, layers=2)
    single = parts(files, "single_", "tsv")
    train(tmp_path / "single", "objective=finetune", f"student.model={encoder}", "trainer.max_steps=2", own=single)
    entries = [
        f"{{benchmark: text_classification, name: {name}, teacher: {teacher}, options: {{train_file: "
        f"{files}/{stem}train.{suffix}, eval_file: {files}/{stem}dev.{suffix}}}}}"
        for name, teacher, stem, suffix in (
            ("sets", teachers[0], "", "jsonl"),
            ("one", tmp_path / "single/student", "single_", "tsv"),
        )
    ]
    summary = train(
        tmp_path / "run", "objective=task_kd", f"tasks=[{','.join(entries)}]", SCRATCH, "trainer.max_steps=6",
        f"data.tokenizer={bert_tokenizer}", own=QUIET,
    )  # fmt: skip
    assert {"val/f1_micro_sets", "val/accuracy_sets", "val/accuracy_one"} <= summary.keys()
    assert "val/f1_micro_one" not in summary
    for name, problem in (("sets", SETS), ("one", "single_label_classification")):
        saved = json.loads((tmp_path / "run/student" / name / "config.json").read_text())
        assert saved["problem_type"] == problem


def test_evaluation_predictions_intervals_and_export(evaluator, teachers, files, tmp_path):
    models = [f"model=[{teachers[0]},{teachers[1]}]", "names=[one,two]", "export=[onnx,int8]"]
    summary = evaluator(tmp_path / "both", *models, f"benchmark.eval_file={files}/dev.jsonl")
    own = json.loads((teachers[0].parent / "summary.json").read_text())
    for metric in ("f1_micro", "f1_macro", "accuracy", "loss"):
        assert summary[f"one/test/{metric}"] == pytest.approx(own[f"val/{metric}"], rel=1e-5)
    gap = summary["two/test/f1_micro"] - summary["one/test/f1_micro"]
    assert summary["two/test/f1_micro_difference"] == pytest.approx(gap)
    low, high = (summary[f"two/test/f1_micro_difference_{end}"] for end in ("low", "high"))
    assert low <= gap <= high
    assert summary["two onnx/test/loss"] == pytest.approx(summary["two/test/loss"], rel=1e-3)
    assert "two int8/test/f1_micro" in summary
    exported = json.loads((tmp_path / "both/export/two/onnx/config.json").read_text())
    assert exported["problem_type"] == SETS
    with (tmp_path / "both/predictions_one.tsv").open() as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    rows = rows_of(files)
    assert [row["label"] for row in table] == [",".join(row["label"]) for row in rows]
    for row in table:
        assert row["prediction"] == ",".join(name for name in NAMES if float(row[f"p({name})"]) > 0.5)
    right = sum(row["prediction"] == row["label"] for row in table) / len(table)
    assert summary["one/test/accuracy"] == pytest.approx(right)


def test_a_table_and_rows_without_labels_are_evaluated(evaluator, teachers, files, tmp_path):
    keys = [f"model={teachers[1]}", "benchmark.multi_label=true"]
    table = evaluator(
        tmp_path / "table", *keys, f"benchmark.eval_file={files}/dev.tsv", "benchmark.label_separator=' | '"
    )
    lists = evaluator(tmp_path / "lists", *keys, f"benchmark.eval_file={files}/dev.jsonl")
    assert table["test/f1_micro"] == lists["test/f1_micro"] > 0.9
    texts = "".join(json.dumps({"text": row["text"]}) + "\n" for row in rows_of(files))
    (tmp_path / "test.jsonl").write_text(texts)
    summary = evaluator(tmp_path / "unlabelled", *keys, f"benchmark.test_file={tmp_path}/test.jsonl")
    assert not [name for name in summary if name.startswith("test/")]
    lines = (tmp_path / "unlabelled/predictions.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction\tp(sport)\tp(law)\tp(money)"
    assert len(lines) == 61


def test_the_doctor_examines_such_a_run(compose_config, files, teachers):
    config = compose_config(
        *parts(files), *SMALL, *QUIET, "doctor=true",
        "objective=task_kd", f"teacher.model={teachers[0]}", "student.layers=[0,3]", "trainer.max_steps=2",
    )  # fmt: skip
    validate_train(config)
    examine(config)


def with_settings(model, folder, **settings):
    """The same model with other facts in its config.json."""
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    own = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**own, **settings}))
    return folder


@pytest.mark.parametrize(
    ("settings", "stem", "error"),
    [
        ({}, "single_", SETS),
        ({"problem_type": None}, "", "null"),
        ({"problem_type": "single_label_classification"}, "", "single_label_classification"),
        ({"problem_type": "regression"}, "", "regression"),
        ({"problem_type": "regression"}, "single_", "regression"),
        ({"problem_type": "ranking"}, "", "ranking"),
        ({"label2id": {"law": 1, "money": 0, "sport": 2}}, "", "label2id"),
        ({"num_labels": 4}, "", "num_labels=4"),
    ],
)
@pytest.mark.parametrize("objective", ["task_kd", "diito"])
def test_a_head_of_another_problem_is_a_user_error(
    compose_config, files, teachers, tmp_path, settings, stem, error, objective
):
    model = with_settings(teachers[0], tmp_path / "model", **settings)
    own = parts(files, stem, "tsv" if stem else "jsonl")
    labels = ["benchmark.labels=[law,money,sport]"]
    config = compose_config(
        f"objective={objective}", *own, *labels, f"teacher.model={model}",
        "student.layers=[0,3]",
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        validate_train(config)
    assert f"teacher.model={model}: " in str(caught.value)
    assert error in str(caught.value)
    config = compose_config("benchmark=text_classification", own[2], *labels, f"model={model}", name="evaluate")
    with pytest.raises(ConfigError) as caught:
        validate_evaluate(config)
    assert f"model={model}: " in str(caught.value)
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_student_gets_a_new_head_where_its_own_is_of_another_problem(train, teachers, files, tmp_path, caplog):
    keys = [f"student.model={teachers[0]}", "trainer.max_steps=0", "objective=finetune"]
    kept = train(tmp_path / "kept", *keys)
    assert kept["val/f1_micro"] > 0.9
    caplog.clear()
    single = train(
        tmp_path / "single", *keys, "benchmark.labels=[law,money,sport,none]", own=parts(files, "single_", "tsv")
    )
    assert "a new one is initialised" in caplog.text
    assert single["val/accuracy"] < 0.9
    other = with_settings(teachers[0], tmp_path / "other", label2id={"law": 1, "money": 0, "sport": 2})
    with pytest.raises(ConfigError, match=r"student\.model=.*label2id"):
        train(tmp_path / "error", f"student.model={other}", *keys[1:])


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["objective.temperature_schedule=flsw"], "objective.temperature_schedule=flsw"),
        (["benchmark.monitor=matthews"], "benchmark.monitor=matthews"),
        (["benchmark.metrics=[f1]", "benchmark.monitor=f1"], "benchmark.metrics="),
        (["benchmark.multi_label=false"], "benchmark.multi_label=true"),
    ],
)
def test_keys_that_sets_of_labels_do_not_have(compose_config, files, teachers, overrides, key):
    with pytest.raises(ConfigError, match=key):
        validate_train(
            compose_config(
                "objective=task_kd", *parts(files), f"teacher.model={teachers[0]}",
                "student.layers=[0,3]", *overrides,
            )
        )  # fmt: skip
