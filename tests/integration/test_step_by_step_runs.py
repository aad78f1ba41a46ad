"""Distilling step-by-step from end to end, in this process: results, resuming, evaluation, errors."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file

from potstill.errors import ConfigError, DataError, ModelError, TokenizerError
from potstill.training.task_prefix import TaskPrefix

pytestmark = pytest.mark.integration

QUIET = ["logger=csv", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"]
TINY = ["student=t5_tiny", "student.config.d_model=64", "student.config.d_kv=16", "student.config.d_ff=128"]
SMALL = [
    "data.batch_size=32", "optimizer.lr=3e-3", "trainer.max_epochs=null", "student.dropout=0",
    "data.generation_max_length=24",
]  # fmt: skip


@pytest.fixture(scope="module")
def train(arithmetic_files, t5_tokenizer, trained):
    def start(folder, *overrides, own=True, student=TINY):
        parts = [
            f"data.{key}_files=[{arithmetic_files}/{part}.jsonl]"
            for key, part in (("train", "train"), ("eval", "valid"), ("test", "test"))
        ]
        source = ["data=rationales", "data.set=svamp", *parts] if own else []
        tiny = [] if "student=pretrained" in overrides else student
        common = ["objective=step_by_step", *source, *tiny, f"data.tokenizer={t5_tokenizer}", *SMALL, *QUIET]
        return trained(folder, *common, *overrides)

    return start


@pytest.fixture
def run(train, tmp_path):
    return lambda name, *overrides, **options: train(tmp_path / name, *overrides, **options)


@pytest.fixture(scope="module")
def learnt(train, tmp_path_factory):
    """The folder and the summary of a run that has learnt both tasks."""
    steps = ["trainer.max_steps=110", "trainer.val_check_interval=110"]
    return train(tmp_path_factory.mktemp("learnt"), *steps, "data.output_rationale=true")


@pytest.fixture(scope="module")
def begun(train, tmp_path_factory):
    """The student of a run of one step."""
    return train(tmp_path_factory.mktemp("begun"), "trainer.max_steps=1").folder / "student"


@pytest.fixture
def evaluator(arithmetic_files, evaluated, tmp_path):
    rows = ["benchmark=step_by_step", "data=rationales", "data.set=svamp", "data.generation_max_length=24"]
    rows.append(f"data.test_files=[{arithmetic_files}/test.jsonl]")
    return lambda name, *overrides: evaluated(tmp_path / name, *rows, *overrides)


def test_watched_test_rows_are_logged_and_select_nothing(run):
    steps = ["trainer.max_steps=6", "trainer.val_check_interval=3", "data.max_examples=32"]
    watched, with_curves = run("watched", *steps, "data.watch_test=true")
    plain, without = run("plain", *steps)
    with (watched / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/accuracy")]
    assert len(rows) >= 2
    assert all(row["watched/accuracy"] for row in rows)
    assert float(rows[-1]["watched/loss_total"]) == pytest.approx(with_curves["test/loss_total"], rel=1e-5)
    for name, value in without.items():
        if name.startswith(("val/", "test/", "train/loss")):
            assert with_curves[name] == value, name
    assert same(student(watched), student(plain))
    with pytest.raises(ConfigError, match=r"callbacks\.early_stopping\.monitor=watched/accuracy"):
        run("stopped", "data.watch_test=true", "callbacks=early_stopping",
            "callbacks.early_stopping.monitor=watched/accuracy")  # fmt: skip


def test_a_share_can_be_drawn_before_the_split(run):
    drawn = ["data.share=0.5", "data.share_before_split=true", "seed=3"]
    _, summary = run("files", *drawn, "data.eval_files=null", "trainer.max_steps=1")
    assert summary["data/train_rows"] == 115  # of 256: 128 drawn, 13 of them held out
    with pytest.raises(ConfigError, match=r"data\.share_before_split=true"):
        run("own", "data.share_before_split=true")


def student(folder):
    return load_file(folder / "student" / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_labels_and_rationales_are_learnt(learnt, evaluator, arithmetic_files):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    folder, summary = learnt
    assert summary["test/accuracy"] > 0.9
    assert summary["test/rouge_l"] > 0.5
    assert {
        f"{part}/loss_{name}" for part in ("train", "val", "test") for name in ("predict", "explain", "total")
    } <= summary.keys()
    for part in ("train", "val", "test"):
        mean = (summary[f"{part}/loss_predict"] + summary[f"{part}/loss_explain"]) / 2
        assert summary[f"{part}/loss_total"] == pytest.approx(mean, rel=1e-5)
    assert summary["data/train_rows"] == 256
    report = (folder / "report.html").read_text()
    assert "Samples" in report
    assert json.loads((arithmetic_files / "test.jsonl").read_text().splitlines()[0])["input"] in report
    # transformers opens the student, and writes what was evaluated.
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "student").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    rows = [json.loads(line) for line in (arithmetic_files / "test.jsonl").read_text().splitlines()]
    batch = tokenizer(["predict: " + row["input"] for row in rows], padding=True, return_tensors="pt")
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    written = model.generate(**batch, max_new_tokens=24)
    texts = tokenizer.batch_decode(written, skip_special_tokens=True)
    right = sum(text.strip() == row["label"] for text, row in zip(texts, rows, strict=True))
    assert right / len(rows) == pytest.approx(summary["test/accuracy"])
    assert "AutoModelForSeq2SeqLM" in (folder / "student" / "README.md").read_text()
    out, evaluated = found = evaluator("evaluated", f"model={folder}/student", "data.output_rationale=true")
    assert found.value == evaluated["test/accuracy"] == pytest.approx(summary["test/accuracy"])
    assert evaluated["test/loss_explain"] == pytest.approx(summary["test/loss_explain"], rel=1e-4)
    assert evaluated["test/rouge_l"] == pytest.approx(summary["test/rouge_l"])
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["prediction"] for line in lines] == [text.strip() for text in texts]
    assert [line["reference"] for line in lines] == [row["rationale"] for row in rows]
    assert sum(line["right"] for line in lines) / len(lines) == pytest.approx(found.value)


def test_a_resumed_run_equals_an_uninterrupted_one(run):
    short = ["trainer.accumulate_grad_batches=2", "data.batch_size=8", "student.dropout=0.1", "schedule=constant"]
    whole, _ = run("whole", "trainer.max_steps=6", "trainer.val_check_interval=2", *short)
    run("half", "trainer.max_steps=3", "trainer.val_check_interval=2", *short)
    last = f"ckpt_path={whole.parent}/half/checkpoints/last.ckpt"
    resumed, _ = run("resumed", "trainer.max_steps=6", "trainer.val_check_interval=2", last, *short)
    weights = [
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for folder in (whole, resumed)
    ]
    assert same(*weights)
    assert same(student(whole), student(resumed))


def test_a_batch_cut_differently_gives_the_same_update(run):
    fixed = ["trainer.max_steps=2", "optimizer._target_=torch.optim.SGD", "optimizer.lr=0.1"]
    sgd = ["~optimizer.betas", "~optimizer.eps", "~optimizer.fused"]
    one, _ = run("one", *fixed, *sgd, "data.batch_size=16")
    four, _ = run("four", *fixed, *sgd, "data.batch_size=4", "trainer.accumulate_grad_batches=4")
    first, second = student(one), student(four)
    for name in first:
        assert torch.allclose(first[name], second[name], rtol=1e-4, atol=1e-5), name


def test_labels_of_the_llm_alone(run, evaluator):
    folder, summary = run("standard", "objective.mode=standard", "data.labels=llm", "trainer.max_steps=2")
    assert not [name for name in summary if "explain" in name and not name.startswith("data/")]
    assert 0.5 < summary["data/llm_train_accuracy"] < 1
    assert "data/llm_test_accuracy" in summary
    settings = json.loads((folder / "student" / "config.json").read_text())
    assert settings["task_specific_params"] == {"predict": {"prefix": ""}}  # and so it is asked
    _, evaluated = evaluator("evaluated", f"model={folder}/student")
    assert evaluated["test/loss_predict"] == pytest.approx(summary["test/loss_predict"], rel=1e-4)
    assert "test/loss_explain" not in evaluated


def test_a_share_is_drawn_from_the_training_rows(run):
    _, summary = run("share", "data.share=0.25", "trainer.max_steps=1")
    assert (summary["data/train_rows"], summary["data/valid_rows"], summary["data/test_rows"]) == (64, 32, 48)


def test_restricted_decoding_finds_the_likeliest_choice(learnt, evaluator, tmp_path, arithmetic_rows):
    rows = [
        {**row, "choices": [row["label"], "( 0 + 0 )", "ann bob eve"][:: (-1) ** n]}
        for n, row in enumerate(arithmetic_rows(32, seed=9))
    ]
    (tmp_path / "choices.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    out, evaluated = evaluator(
        "evaluated", f"model={learnt.folder}/student", f"data.test_files=[{tmp_path}/choices.jsonl]",
        "data.restricted_decoding=true", "data.eval_batch_size=5",
    )  # fmt: skip
    assert evaluated["test/accuracy_restricted"] > 0.95
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert all(line["restricted"] in row["choices"] for line, row in zip(lines, rows, strict=True))


def test_two_students_are_compared(learnt, begun, evaluator):
    out, evaluated = evaluator("evaluated", f"model=[{learnt.folder}/student,{begun}]", "names=[first,second]")
    assert evaluated["first/test/accuracy"] == pytest.approx(learnt.summary["test/accuracy"])
    assert evaluated["second/test/accuracy"] < evaluated["first/test/accuracy"]
    assert evaluated["first/parameters"] == evaluated["second/parameters"]
    assert sorted(path.name for path in out.glob("predictions*")) == [
        "predictions_first.jsonl",
        "predictions_second.jsonl",
    ]


def test_rows_without_rationales(run, tmp_path, arithmetic_rows):
    rows = [{"input": row["input"], "label": row["label"]} for row in arithmetic_rows(40)]
    (tmp_path / "bare.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    bare = [f"data.train_files=[{tmp_path}/bare.jsonl]", "data.eval_files=null", "data.test_files=null"]
    with pytest.raises(DataError, match=r"data.rationales=palm.*line 1 has no rationale.*objective.mode=standard"):
        run("refused", *bare, "trainer.max_steps=1")
    with pytest.raises(DataError, match=r"data.labels=llm: 'bare.jsonl' line 1 has no label of an LLM"):
        run("refused", *bare, "objective.mode=standard", "data.labels=llm", "trainer.max_steps=1")
    _, summary = run("bare", *bare, "objective.mode=standard", "trainer.max_steps=1")
    assert (summary["data/train_rows"], summary["data/valid_rows"]) == (36, 4)
    assert not [name for name in summary if name.startswith("test/")]


def test_targets_that_are_cut_are_counted(run, caplog):
    _, summary = run("cut", "data.max_target_length=8", "trainer.max_steps=1")
    assert summary["data/train_rationales_cut"] == 256
    assert "train: 256 rationales cut at data.max_target_length=8" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "name", "parsed"),
    [
        (["data=svamp"], "svamp", True),
        (["data=cqa", "data.restricted_decoding=true"], "cqa", True),
        (["data=cqa", "objective.mode=standard"], "cqa", False),
    ],
)
def test_real_sets(run, data_dir, overrides, name, parsed):
    if not (data_dir / "tokenizers" / "t5").is_dir():
        pytest.skip("no T5 tokenizer there")
    _, summary = run(
        "real", *overrides, f"data.folder={data_dir}/stepbystep", f"data.tokenizer={data_dir}/tokenizers/t5",
        "data.max_examples=12", "data.batch_size=4", "trainer.max_steps=2", "data.generation_max_length=6", own=False,
    )  # fmt: skip
    assert summary["train/steps"] == 2
    assert [summary[f"data/{part}_rows"] for part in ("train", "test")] == [12, 12]
    right = 12 * summary["test/accuracy"]
    assert right == pytest.approx(round(right))
    assert ("test/loss_explain" in summary) == parsed
    assert ("test/accuracy_restricted" in summary) == ("data.restricted_decoding=true" in overrides)


def test_students_of_other_kinds_are_rejected(run, bert_teacher):
    with pytest.raises(ConfigError, match=r"^student.model="):
        run("refused", f"student.model={bert_teacher}", "student=pretrained")


def test_soft_labels_are_learnt_beside_rationales(run, tmp_path):
    """Gold labels are all alike; which choice is likely is only in the probabilities."""
    names = ["ann", "bob", "eve"]
    rows = []
    for number in range(96):
        name = names[number % 3]
        rows.append(
            {
                "input": f"{name} has pens", "label": "ann", "rationale": f"{name} has", "choices": names,
                "label_probabilities": {one: 0.9 if one == name else 0.05 for one in names},
            }
        )  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    evaluated = tmp_path / "evaluated.jsonl"
    evaluated.write_text("".join(f"{json.dumps({**row, 'label': row['input'].split()[0]})}\n" for row in rows[:12]))
    given = [
        "data=rationales", "data.set=null", f"data.train_files=[{path}]", f"data.eval_files=[{evaluated}]",
        "objective.alpha=0.9", "data.restricted_decoding=true", "trainer.max_steps=40",
        "trainer.val_check_interval=40",
    ]  # fmt: skip
    _, soft = run("soft", *given, "objective.soft_weight=1", own=False)
    assert soft["data/train_soft"] == 96
    assert soft["train/loss_soft"] < 0.6  # of a student that knows nothing: log 3 = 1.1
    assert soft["val/accuracy_restricted"] > 0.9
    _, hard = run("hard", *given, own=False)
    assert "train/loss_soft" not in hard
    assert hard["val/accuracy_restricted"] < 0.5
    path.write_text("".join(f"{json.dumps({**row, 'label_probabilities': None})}\n" for row in rows))
    with pytest.raises(DataError, match=r"objective.soft_weight: 'rows.jsonl' has no label probabilities") as error:
        run("none", *given, "objective.soft_weight=0.5", own=False)
    assert "\n" not in str(error.value)


def test_generated_problems_need_no_files(trained, evaluated, tmp_path):
    small = ["data.generated.train=64", "data.generated.valid=8", "data.generated.test=8", "trainer.max_steps=2"]
    run = ["experiment=arithmetic", *small, *QUIET, "trainer.val_check_interval=2"]
    folder, summary = trained(tmp_path / "run", *run)
    table = evaluated(
        tmp_path / "table", "benchmark=step_by_step", "data=arithmetic", f"model={folder}/student", *small[:3]
    )
    assert summary["test/loss_predict"] == pytest.approx(table.summary["test/loss_predict"], rel=1e-5)


def test_labels_that_the_tokenizer_cannot_write(run, tmp_path, caplog, arithmetic_rows):
    def written(labels):
        rows = [{**row, "label": label} for row, label in zip(arithmetic_rows(20), labels, strict=True)]
        (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        given = [f"data.{part}_files=[{tmp_path}/rows.jsonl]" for part in ("train", "eval", "test")]
        return ["data.set=null", *given, "trainer.max_steps=1"]

    with pytest.raises(DataError, match=r"data\.tokenizer: .* cannot write the labels of 'rows\.jsonl'") as error:
        run("refused", *written(["是", "否"] * 10))
    assert "\n" not in str(error.value)
    _, summary = run("some", *written(["是"] * 19 + ["ann"]))
    assert summary["data/train_labels_unknown"] == summary["data/test_labels_unknown"] == 19
    assert summary["test/accuracy"] <= 1 / 20
    assert "test: 19 labels hold tokens that data.tokenizer does not know, the first is '是'" in caplog.text


def test_rows_without_choices_have_no_likeliest_one(run):
    with pytest.raises(DataError, match=r"data\.restricted_decoding=true: 'valid\.jsonl' has no choices"):
        run("refused", "data.restricted_decoding=true", "trainer.max_steps=1")


def test_ranks_sum_up_the_same_tasks_whatever_rows_they_see(monkeypatch):
    """A rank without a row of a task would not meet the others where they sum it up."""
    from types import SimpleNamespace

    from potstill.data.rationales.datamodule import VALID, RationaleBatch
    from potstill.models.seq2seq import seq2seq_from_config
    from potstill.objectives.task_prefix import TaskPrefixObjective
    from potstill.training.means import Means
    from potstill.training.task_prefix import Decoding, TaskPrefix

    summed, compute = [], Means.compute
    monkeypatch.setattr(Means, "compute", lambda metric: summed.append(metric) or compute(metric))
    shape = {"model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    student = seq2seq_from_config(shape, vocab_size=9, pad_token_id=0, eos_token_id=1).eval()
    evaluator = SimpleNamespace(decode=lambda ids: ["x"] * len(ids), metrics=lambda written: {})
    module = TaskPrefix(student, TaskPrefixObjective(), {VALID: evaluator}, Decoding(max_tokens=2))
    ids, row = torch.tensor([[5, 1]]), torch.tensor([0])
    logged = {}
    monkeypatch.setattr(module, "log_dict", logged.update)
    module._trainer = SimpleNamespace(world_size=1)
    for tasks in ((), ("predict",), ("predict", "explain")):
        module.on_validation_epoch_start()
        targets, rows = dict.fromkeys(tasks, ids), dict.fromkeys(tasks, row)
        batch = RationaleBatch(ids.repeat(len(tasks), 1), torch.ones(len(tasks), 2).long(), targets, rows)
        module.validation_step(SimpleNamespace(micro=[batch] if tasks else []), 0)
        module.on_validation_epoch_end()
        assert len(summed) == 1  # one sum over all ranks, of as many numbers
        assert len(summed[0].names) == 2
        assert {name for name in logged if name[9:] in ("predict", "explain")} == {f"val/loss_{t}" for t in tasks}
        assert all(value == value for value in logged.values())
        summed.clear()
        logged.clear()


def test_a_set_of_one_row_is_evaluated(run, evaluator, arithmetic_files, tmp_path):
    for part in ("valid", "test"):
        row = (arithmetic_files / f"{part}.jsonl").read_text().splitlines()[0]
        (tmp_path / f"{part}.jsonl").write_text(row + "\n")
    test = f"data.test_files=[{tmp_path}/test.jsonl]"
    folder, summary = run("one", "trainer.max_steps=1", f"data.eval_files=[{tmp_path}/valid.jsonl]", test)
    assert {"val/accuracy", "test/accuracy"} <= summary.keys()
    found = evaluator("evaluated", f"model={folder}/student", test)
    assert found.value == found.summary["test/accuracy"] == summary["test/accuracy"]


@pytest.mark.parametrize("mode", ["task_prefix", "standard"])
def test_parts_of_one_row(run, evaluator, tmp_path, arithmetic_rows, mode):
    (row,) = arithmetic_rows(1, seed=4)
    (tmp_path / "one.jsonl").write_text(f"{json.dumps(row)}\n")
    parts = [f"data.{part}_files=[{tmp_path}/one.jsonl]" for part in ("train", "eval", "test")]
    folder, summary = run("one", *parts, f"objective.mode={mode}", "trainer.max_steps=2")
    assert [summary[f"data/{part}_rows"] for part in ("train", "valid", "test")] == [1, 1, 1]
    _, evaluated = evaluator("evaluated", f"model={folder}/student", f"data.test_files=[{tmp_path}/one.jsonl]")
    for name in ("accuracy", "loss_predict"):
        assert evaluated[f"test/{name}"] == pytest.approx(summary[f"test/{name}"], rel=1e-4)
        assert summary[f"val/{name}"] == pytest.approx(summary[f"test/{name}"], rel=1e-4)


def test_numbers_in_any_form_of_python_are_compared_by_value(begun, evaluator, tmp_path, arithmetic_rows, monkeypatch):
    pairs = [  # label, answer, whether it is right
        ("( 7 + 3 )", "1e1", True), ("( 7 + 3 )", "1E+1", True), ("( 7 + 3 )", "1_0", True),
        ("( 7 + 3 )", ".5 * 20.", True), ("( 7 + 3 )", "(2.5e-1 * 4_0)", True), ("( 7 + 3 )", "1e2", False),
        ("1.5e3", "(1_000 + 500)", True), ("( .25 + .5 )", "0.75", True), ("1_200", "1,200", True),
        ("1_200", "1_20", False), (".5", "5", False), ("2e-3", "0.002", True),
    ]  # fmt: skip
    rows = [{**row, "label": label} for row, (label, _, _) in zip(arithmetic_rows(len(pairs)), pairs, strict=True)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def write(self, part, batch, _):
        self.written[part].labels.update({row: pairs[row][1] for row in batch.rows["predict"].tolist()})

    monkeypatch.setattr(TaskPrefix, "_write", write)
    out, summary = found = evaluator("evaluated", f"model={begun}", f"data.test_files=[{tmp_path}/rows.jsonl]")
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["right"] for line in lines] == [right for _, _, right in pairs]
    assert found.value == summary["test/accuracy"] == pytest.approx(9 / 12)
    assert summary["test/text_accuracy"] == 0


LLAMA = [
    "student=llama_tiny", "student.config.hidden_size=64", "student.config.intermediate_size=128",
    "+student.config.max_position_embeddings=96", "data.max_target_length=32",
]  # fmt: skip
ONE_TARGET = "objective.mode=label_then_rationale"


def generated(folder, prompts, most=24, special=True):
    """What transformers alone writes with an exported student; a row at a time."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    seq2seq = json.loads((folder / "config.json").read_text())["model_type"] == "t5"
    model = (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = []
    for prompt in prompts:
        own = tokenizer(prompt, return_tensors="pt", add_special_tokens=special)
        inputs = {name: own[name] for name in ("input_ids", "attention_mask")}
        ids = model.generate(**inputs, max_new_tokens=most, do_sample=False)[0]
        ids = ids if seq2seq else ids[inputs["input_ids"].shape[1] :]
        texts.append(tokenizer.decode(ids, skip_special_tokens=True).strip())
    return texts


@pytest.fixture
def held_out_rows(arithmetic_files):
    return [json.loads(line) for line in (arithmetic_files / "test.jsonl").read_text().splitlines()]


def test_a_decoder_learns_labels_and_rationales(run, evaluator, held_out_rows):
    steps = ["trainer.max_steps=150", "trainer.val_check_interval=150", "data.output_rationale=true"]
    folder, summary = run("decoder", *steps, student=LLAMA)
    assert summary["test/accuracy"] > 0.9
    assert summary["test/rouge_l"] > 0.5
    assert summary["val/loss_total"] == pytest.approx(
        (summary["val/loss_predict"] + summary["val/loss_explain"]) / 2, rel=1e-5
    )
    settings = json.loads((folder / "student" / "config.json").read_text())
    assert settings["task_specific_params"]["explain"] == {"prefix": "explain: "}

    # Its tokenizer adds the end token, which is between the input and the target.
    texts = generated(folder / "student", [f"predict: {row['input']}" for row in held_out_rows])
    out, evaluated = found = evaluator(
        "evaluated", f"model={folder}/student", "data.output_rationale=true", "data.max_target_length=32"
    )
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["prediction"] for line in lines] == texts
    assert found.value == summary["test/accuracy"]
    for name in ("loss_predict", "loss_explain", "rouge_l"):
        assert evaluated[f"test/{name}"] == pytest.approx(summary[f"test/{name}"], rel=1e-4)


@pytest.mark.parametrize("student", [TINY, LLAMA], ids=["t5", "llama"])
def test_a_label_and_then_a_rationale(run, evaluator, held_out_rows, tmp_path, student):
    steps = [ONE_TARGET, "trainer.max_steps=150", "trainer.val_check_interval=150"]
    folder, summary = run("one", *steps, student=student)
    assert summary["test/accuracy"] > 0.9
    assert not [name for name in summary if "explain" in name]
    assert summary["train/loss_total"] == pytest.approx(summary["train/loss_predict"], rel=1e-5)
    settings = json.loads((folder / "student" / "config.json").read_text())
    assert settings["task_specific_params"] == {"predict": {"prefix": "", "separator": "explain:"}}
    # The whole text, then what evaluation reads of it: it stops at the rationale, or writes that too.
    texts = generated(folder / "student", [row["input"] for row in held_out_rows], most=32)
    choices = tmp_path / "choices.jsonl"
    longer = [{**row, "choices": [f"{row['label']} ( 0", "( 0 + 0 )", row["label"]]} for row in held_out_rows]
    choices.write_text("".join(f"{json.dumps(row)}\n" for row in longer))
    given = [f"model={folder}/student", "data.max_target_length=32", f"data.test_files=[{choices}]"]
    out, evaluated = found = evaluator("labels", *given, "data.restricted_decoding=true")
    assert found.value == summary["test/accuracy"]
    assert evaluated["test/accuracy_restricted"] > 0.9  # a label is told from a longer one that begins with it
    whole, both = evaluator("both", *given, "data.output_rationale=true", "data.generation_max_length=32")
    assert both["test/rouge_l"] > 0.5
    for folder, rationales in ((out, False), (whole, True)):
        lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        for line, text in zip(lines, texts, strict=True):
            label, _, rationale = text.partition(" explain: ")
            assert line["prediction"] == label
            assert line.get("rationale") == (rationale if rationales else None)


def test_rationales_of_other_rows(run):
    _, summary = run("shuffled", ONE_TARGET, "data.shuffle_rationales=true", "trainer.max_steps=1")
    assert summary["data/train_rationales_shuffled"] == summary["data/train_rows"] == 256
    _, plain = run("plain", ONE_TARGET, "trainer.max_steps=1")
    assert plain["train/loss_predict"] != summary["train/loss_predict"]
    assert "data/train_rationales_shuffled" not in plain


def test_a_resumed_decoder_equals_an_uninterrupted_one(run):
    short = [
        ONE_TARGET, "trainer.accumulate_grad_batches=2", "data.batch_size=8", "student.dropout=0.1",
        "schedule=constant", "trainer.val_check_interval=2",
    ]  # fmt: skip
    whole, _ = run("whole", "trainer.max_steps=6", *short, student=LLAMA)
    run("half", "trainer.max_steps=3", *short, student=LLAMA)
    last = f"ckpt_path={whole.parent}/half/checkpoints/last.ckpt"
    resumed, _ = run("resumed", "trainer.max_steps=6", last, *short, student=LLAMA)
    assert same(student(whole), student(resumed))


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def chatty(gpt2_tokenizer, tmp_path_factory):
    """A GPT-2 whose tokenizer has a chat template, and the end token as padding and as unknown token."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("chatty")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(gpt2_tokenizer)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    shape = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 192}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **shape)).save_pretrained(
        folder
    )
    return folder


def test_a_decoder_reads_the_chat_template_of_its_tokenizer(run, evaluator, chatty, tmp_path):
    from transformers import AutoTokenizer

    rows = [{"input": f"{name} has pens", "label": name} for name in ("ann", "bob", "eve")] * 16
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    given = [f"data.{part}_files=[{tmp_path}/rows.jsonl]" for part in ("train", "eval", "test")]
    given += ["data.set=null", "objective.mode=standard", "data.max_target_length=16", "data.tokenizer=null"]
    given += ["student=pretrained", f"student.model={chatty}"]
    steps = ["trainer.max_steps=80", "trainer.val_check_interval=40", "data.batch_size=16"]
    folder, summary = run("chat", *given, *steps)
    assert summary["test/accuracy"] == 1  # and texts end, although the end token is the padding
    settings = json.loads((folder / "student" / "config.json").read_text())
    assert settings["task_specific_params"] == {"predict": {"prefix": "", "chat": True}}

    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    messages = [[{"role": "user", "content": row["input"]}] for row in rows[:3]]
    prompts = [tokenizer.apply_chat_template(own, tokenize=False, add_generation_prompt=True) for own in messages]
    texts = generated(folder / "student", prompts, special=False)
    assert texts == ["ann", "bob", "eve"]
    test = ["data.set=null", f"data.test_files=[{tmp_path}/rows.jsonl]", f"model={folder}/student"]
    _, evaluated = found = evaluator("evaluated", *test, "data.max_target_length=16")
    assert found.value == 1
    assert evaluated["test/loss_predict"] == pytest.approx(summary["test/loss_predict"], rel=1e-4, abs=1e-6)
    _, plain = evaluator("plain", *test, "data.chat=false", "data.max_target_length=16")
    assert plain["test/loss_predict"] > evaluated["test/loss_predict"]
    long = [{"input": "pens " * 300 + "ann", "label": "ann"}] * 4
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in long))
    _, cut = run("cut", *given, "trainer.max_steps=1")
    assert cut["data/train_predict_cut"] == 4


def test_tokenizers_and_positions_that_a_decoder_cannot_use(run, chatty, gpt2_teacher, tmp_path):
    from transformers import AutoTokenizer

    given = ["student=pretrained", "data.tokenizer=null", "trainer.max_steps=1"]
    with pytest.raises(ConfigError, match=r"^data\.chat=true: .* has no chat template; data\.chat=false"):
        run("refused", *given, f"student.model={gpt2_teacher}", "data.chat=true")
    with pytest.raises(ModelError, match=r"^data\.max_target_length=256: the student has 64 positions"):
        run("refused", *given, f"student.model={gpt2_teacher}")
    with pytest.raises(
        DataError, match=r"^data\.max_input_length: a prompt without its input has \d\d tokens, and there"
    ):
        run("refused", *given, f"student.model={chatty}", "data.max_target_length=32", "data.max_input_length=8")
    tokenizer = AutoTokenizer.from_pretrained(gpt2_teacher)
    tokenizer.eos_token = tokenizer.bos_token = None
    tokenizer.save_pretrained(tmp_path / "endless")
    with pytest.raises(TokenizerError, match=r"^data\.tokenizer: '.*endless' has no end token \(eos_token\)"):
        run("refused", *given, f"student.model={gpt2_teacher}", f"data.tokenizer={tmp_path}/endless")
