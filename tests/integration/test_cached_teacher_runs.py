"""Runs that read a stored teacher: the same student as beside the teacher itself, and what is refused."""

import json
import pickle
import random

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file

from potstill.data.common.tokenizers import describe
from potstill.errors import DataError, PotstillError
from potstill.methods.language.build import build_language_training
from potstill.methods.task.build import build_task_training
from potstill.teacher_cache import computing
from potstill.training.callbacks import LastCheckpoint

pytestmark = pytest.mark.integration

QUIET = ["logger=csv", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"]
SMALL = ["data.max_length=16", "data.num_proc=1", "data.batch_size=8", "optimizer.lr=3e-3"]
CACHED = "teacher/cache=on"


def whole(teacher):
    """Overrides that store every token of a teacher: nothing is lost."""
    size = json.loads((teacher / "config.json").read_text())["vocab_size"]
    return [CACHED, f"teacher.cache.k={size}", "teacher.cache.precision=float32"]


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def start(trained):
    """Train in this process; gives the folder."""
    return lambda folder, *overrides: trained(folder, *SMALL, *QUIET, *overrides).folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory, words):
    """Overrides of a task of each kind, of a few rows."""
    folder, draw = tmp_path_factory.mktemp("tasks"), random.Random(0)

    def text():
        return " ".join(draw.choices(words, k=draw.randint(3, 9)))

    made = {}
    for part, count in (("train", 40), ("dev", 12)):
        rows = {
            "classification": ["text\tlabel", *(f"{text()}\t{draw.choice(['no', 'yes'])}" for _ in range(count))],
            "regression": ["text\tlabel", *(f"{text()}\t{draw.random():.2f}" for _ in range(count))],
            "tokens": [
                "\n".join(f"{word} {draw.choice(['O', 'B-A', 'I-A'])}" for word in text().split()) + "\n"
                for _ in range(count)
            ],
        }  # fmt: skip
        contexts = [text() for _ in range(count)]
        asked = [
            {
                "context": context,
                "qas": [
                    {
                        "id": f"{part}{i}",
                        "question": words[i],
                        "answers": [{"text": context.split()[1], "answer_start": len(context.split()[0]) + 1}],
                    }
                ],
            }
            for i, context in enumerate(contexts)
        ]  # fmt: skip
        for kind, lines in rows.items():
            (folder / f"{kind}-{part}.{'txt' if kind == 'tokens' else 'tsv'}").write_text("\n".join(lines) + "\n")
        squad = {"version": "1.1", "data": [{"title": "t", "paragraphs": asked}]}
        (folder / f"spans-{part}.json").write_text(json.dumps(squad))
    options = {
        "classification": ["benchmark=text_classification"],
        "regression": [
            "benchmark=text_regression", "benchmark.metrics=[mse]", "benchmark.monitor=mse", "benchmark.mode=min",
        ],
        "tokens": ["benchmark=token_classification"],
        "spans": [
            "benchmark=question_answering", "data.max_length=16", "benchmark.stride=2",
            "benchmark.max_question_length=4",
        ],
    }  # fmt: skip
    for kind, own in options.items():
        end = {"tokens": "txt", "spans": "json"}.get(kind, "tsv")
        files = [
            f"benchmark.{key}_file={folder}/{kind}-{part}.{end}" for key, part in (("train", "train"), ("eval", "dev"))
        ]
        made[kind] = [*own, *files]
    return made


@pytest.fixture(scope="module")
def experts(tmp_path_factory, tasks, start, bert_tokenizer, make_bert):
    """A fine-tuned teacher of each kind of task, as made when it is asked for."""
    made = {}

    def of(kind, seed=0):
        if (kind, seed) not in made:
            folder = tmp_path_factory.mktemp(f"expert-{kind}")
            encoder = make_bert(folder / "encoder", bert_tokenizer, seed=seed, layers=2)
            start(folder, "objective=finetune", f"student.model={encoder}", *tasks[kind], "trainer.max_steps=2")
            made[kind, seed] = folder / "student"
        return made[kind, seed]

    return of


def same_students(one, other, within=1e-5):
    first, second = (load_file(folder / "student" / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=within, msg=key)


def of_steps(folder, name):
    import csv

    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        *((kind, []) for kind in ("classification", "regression", "tokens", "spans")),
        ("tokens", ["objective.tokens=all"]),
    ],
)
def test_a_task_student_is_that_of_the_live_teacher(kind, more, tasks, experts, start, tmp_path):
    common = [
        *more,
        "objective=task_kd", f"teacher.model={experts(kind)}", "student.layers=[0]", *tasks[kind],
        "trainer.max_steps=8", "trainer.accumulate_grad_batches=2", "data.batch_size=4",
        "objective.terms.label.weight=0.5", "optimizer.eps=1e-3",
    ]  # fmt: skip
    live = start(tmp_path / "live", *common)
    cached = start(tmp_path / "cached", *common, CACHED)
    same_students(live, cached)
    assert of_steps(cached, "train/loss_ce") == pytest.approx(of_steps(live, "train/loss_ce"), rel=1e-4)


def test_two_teachers_and_losses_that_need_the_whole_logits(tasks, experts, start, tmp_path):
    both = f"teacher.models=[{experts('classification')},{experts('classification', 1)}]"
    common = [
        "objective=task_kd", both, "student.layers=[0]", *tasks["classification"], "trainer.max_steps=6",
        "teacher.average=probabilities", "objective.soft_target=jsd", "objective.temperature_schedule=flsw",
        "objective.probability_shift=true", "teacher.weights=[1,3]", "optimizer.eps=1e-3",
    ]  # fmt: skip
    live = start(tmp_path / "live", *common)
    cached = start(tmp_path / "cached", *common, CACHED, f"teacher.cache.folder={tmp_path}/stores")
    same_students(live, cached)
    assert sorted(path.name for path in (tmp_path / "stores").iterdir() if path.is_dir()) == ["train_0", "train_1"]


@pytest.fixture
def masked(text_file, eval_file, bert_teacher):
    return [
        "objective=kd", "objective.terms.cos.weight=0", f"teacher.model={bert_teacher}", "data=text_files",
        f"data.train_files=[{text_file}]", f"data.eval_files=[{eval_file}]", "student.layers=[0,3]",
        "data.max_examples=60", "trainer.max_steps=7", "optimizer.eps=1e-3", "data.eval_batch_size=5",
    ]  # fmt: skip


@pytest.fixture
def causal(masked, gpt2_teacher):
    return [f"teacher.model={gpt2_teacher}" if o.startswith("teacher.model=") else o for o in masked]


@pytest.mark.parametrize(
    "further",
    [
        ["trainer.accumulate_grad_batches=2", "data.group_size=3"],
        ["objective.positions=masked", "data.max_tokens=100", "objective.gradient_shares_every=2"],
    ],
)
def test_a_masked_student_is_that_of_the_live_teacher(further, masked, start, tmp_path, bert_teacher):
    live = start(tmp_path / "live", *masked, *further)
    cached = start(tmp_path / "cached", *masked, *further, *whole(bert_teacher))
    same_students(live, cached)
    figures = [json.loads((folder / "summary.json").read_text()) for folder in (live, cached)]
    for name in ("train/loss_ce", "val/loss", "val/loss_ce", "val/perplexity"):
        assert figures[1][name] == pytest.approx(figures[0][name], rel=1e-4), name


def test_a_causal_student_is_that_of_the_live_teacher_over_epochs(causal, start, tmp_path, gpt2_teacher):
    common = [*causal, "data.max_examples=20", "trainer.max_steps=7"]
    live = start(tmp_path / "live", *common)
    cached = start(tmp_path / "cached", *common, *whole(gpt2_teacher), "data.num_workers=1")
    same_students(live, cached)
    saved = torch.load(cached / "checkpoints/last.ckpt", weights_only=True)
    assert saved["epoch"] >= 1
    assert of_steps(cached, "val/loss_ce") == pytest.approx(of_steps(live, "val/loss_ce"), rel=1e-4)


@pytest.mark.parametrize(
    ("precision", "further"),
    [
        ("float32", ["trainer.accumulate_grad_batches=2", "data.group_size=3", "objective.divergence=jsd"]),
        ("float32", ["objective.positions=masked", "objective.divergence=reverse_kl"]),
        ("float32", ["objective.terms.ce.weight=0", "objective.terms.mse.weight=0"]),
        ("float16", ["objective.positions=masked", "objective.temperature=4"]),
        ("bfloat16", ["data.max_tokens=100"]),
    ],
)
def test_hidden_states_make_the_student_of_the_live_teacher(precision, further, masked, start, tmp_path):
    common = [*masked, "objective.terms.cos.weight=1", "objective.terms.mse.weight=0.01", *further]
    live = start(tmp_path / "live", *common)
    cached = start(
        tmp_path / "cached", *common, CACHED, "teacher.cache.form=hidden", f"teacher.cache.precision={precision}",
        f"teacher.cache.folder={tmp_path}/stores",
    )  # fmt: skip
    same_students(live, cached, within={"float32": 1e-5, "float16": 1e-4, "bfloat16": 1e-3}[precision])
    figures = [json.loads((folder / "summary.json").read_text()) for folder in (live, cached)]
    names = {name for name in figures[0] if "loss_" in name or name in ("val/loss", "val/perplexity")}
    assert {"train/loss_cos", "val/loss_cos"} <= names
    for name in names:
        near = {"float32": 1e-4, "float16": 1e-3, "bfloat16": 1e-2}[precision]
        assert figures[1][name] == pytest.approx(figures[0][name], rel=near), name
    # Tokens that are not read are not stored.
    index = json.loads((tmp_path / "stores" / "train" / "index.json").read_text())
    rows = sum(shard["rows"] for shard in index["shards"])
    if "objective.positions=masked" in further:
        assert 0 < rows < index["items"] / 4
    else:
        assert index["fields"][0]["ragged"] is False


def test_hidden_states_of_a_causal_teacher_over_epochs(causal, start, tmp_path):
    common = [*causal, "objective.terms.cos.weight=1", "data.max_examples=20", "trainer.max_steps=7"]
    live = start(tmp_path / "live", *common)
    stored = [CACHED, "teacher.cache.form=hidden", "teacher.cache.precision=float32"]
    same_students(live, start(tmp_path / "cached", *common, *stored, "data.num_workers=1"))
    # One store is of all temperatures and divergences.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(computing, "hidden_states", lambda *_, **__: pytest.fail("a teacher was asked"))
        other = start(
            tmp_path / "other", *common, *stored, "objective.temperature=1", "objective.divergence=reverse_kl"
        )
    assert all(loss > 0 for loss in of_steps(other, "train/loss_ce"))


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("form", ["npy", "safetensors", "parquet"])
def test_logits_of_ones_own_are_those_of_the_teacher(kind, form, tasks, experts, start, compose_config, tmp_path):
    expert = experts(kind)
    common = [
        "objective=task_kd",
        *tasks[kind],
        "trainer.max_steps=4",
        "objective.terms.label.weight=0.5",
        "optimizer.eps=1e-3",
    ]
    layers = [f"teacher.model={expert}", "student.layers=[0]"]
    live = start(tmp_path / "live", *common, *layers)
    config = compose_config(*SMALL, *QUIET, *common, *layers, CACHED, f"teacher.cache.folder={tmp_path}/store")
    logits = build_task_training(config).module.parts[""].stored[0](torch.arange(40))
    file = tmp_path / f"logits.{form}"
    if form == "npy":
        np.save(file, logits.numpy())
    elif form == "safetensors":
        save_file({"logits": logits}, file)
    else:
        parquet.write_table(pa.table({"logits": logits.tolist()}), file)
    # A student of a teacher's layers, and one that needs no teacher at all.
    same_students(live, start(tmp_path / "own", *common, *layers, f"teacher.cache.file={file}"))
    alone = start(
        tmp_path / "alone", *common, f"student.model={expert}", f"teacher.cache.file={file}", "data.max_examples=null"
    )
    assert "teacher/parameters" not in json.loads((alone / "summary.json").read_text())
    assert all(loss > 0 for loss in of_steps(alone, "train/loss_ce"))


def test_logits_of_sets_of_labels_and_a_resumed_run(start, bert_tokenizer, make_bert, words, tmp_path):
    make_bert(tmp_path / "bert", bert_tokenizer, layers=1)
    for part, count in (("train", 24), ("dev", 12)):
        rows = [{"text": " ".join(words[n : n + 4]), "label": ["a", "b", "c"][: n % 4]} for n in range(count)]
        (tmp_path / f"{part}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    logits = np.random.default_rng(0).normal(size=(24, 3))
    np.save(tmp_path / "logits.npy", logits)
    common = [
        "objective=task_kd", "benchmark=text_classification", "benchmark.multi_label=true",
        f"benchmark.train_file={tmp_path}/train.jsonl", f"benchmark.eval_file={tmp_path}/dev.jsonl",
        f"student.model={tmp_path}/bert", f"teacher.cache.file={tmp_path}/logits.npy", "schedule=constant",
    ]  # fmt: skip
    whole = start(tmp_path / "whole", *common, "trainer.max_steps=5")
    assert of_steps(whole, "train/loss_ce")[0] > 0
    start(tmp_path / "part", *common, "trainer.max_steps=2")
    same_students(whole, start(tmp_path / "part", *common, "trainer.max_steps=5", "resume=auto"), within=0)
    np.save(tmp_path / "logits.npy", logits + 1)
    with pytest.raises(PotstillError, match=r"teacher\.cache\.file"):
        start(tmp_path / "part", *common, "trainer.max_steps=6", "resume=auto")


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["teacher.cache.file=none.npy"], r"teacher\.cache\.file=none\.npy: does not exist"),
        (["teacher.cache.file=[a.npy,b.npy]"], r"teacher\.cache\.file=.* reads one file"),
        (["teacher.cache.file={file}.txt"], r"\.txt: one of \.npy, \.safetensors, \.parquet"),
        (["data.max_examples=30"], r"has 40 rows, and 30 are trained on"),
        (["benchmark.labels=[no,yes,both]"], r"has 2 columns; .* 3 labels \(no, yes, both\)"),
        (["data.augment.share=0.2", "data.augment.mask=0.1"], r"data\.augment\.share=0\.2: "),
        (["objective.matches=[{{teacher: 1, student: 1, loss: cos}}]"], r"objective\.matches=.*teacher\.cache\.file="),
        (["objective.terms.cos.weight=1"], r"objective\.terms\.cos\.weight=1\.0: teacher\.cache\.file="),
        (["teacher.model={expert}"], r"teacher\.model=.*: teacher\.cache\.file=.* its place"),
        (["teacher.models=[{expert},{expert}]"], r"teacher\.models=.*: teacher\.cache\.file=.* their place"),
        ([CACHED], r"teacher\.cache\.file=.* with teacher/cache=on"),
        (["objective=finetune"], r"teacher\.cache\.file=.*objective=finetune"),
    ],
)  # fmt: skip
def test_logits_of_ones_own_that_do_not_fit(overrides, problem, tasks, experts, start, monkeypatch, tmp_path):
    monkeypatch.setattr("lightning.Trainer.fit", lambda *_, **__: pytest.fail("training began"))
    expert, file = experts("classification"), tmp_path / "logits.npy"
    np.save(file, np.zeros((40, 2), np.float32))
    (tmp_path / "logits.npy.txt").write_text("")
    given = [override.format(file=file, expert=expert) for override in overrides]
    common = ["objective=task_kd", *tasks["classification"], f"student.model={expert}", f"teacher.cache.file={file}"]
    with pytest.raises(PotstillError, match=problem) as error:
        start(tmp_path / "run", *common, *given)
    assert "\n" not in str(error.value)


def test_logits_of_ones_own_are_of_rows(tasks, experts, start, tmp_path):
    np.save(tmp_path / "logits.npy", np.zeros((40, 2), np.float32))
    for kind in ("tokens", "spans"):
        with pytest.raises(PotstillError, match=r"teacher\.cache\.file=.* prediction for each token"):
            start(
                tmp_path / kind, "objective=task_kd", *tasks[kind], f"student.model={experts(kind)}",
                f"teacher.cache.file={tmp_path}/logits.npy",
            )  # fmt: skip


@pytest.mark.parametrize("form", ["top", "sampled"])
def test_sparse_forms_train(form, causal, start, tmp_path):
    folder = start(
        tmp_path / form, *causal, CACHED, f"teacher.cache.form={form}", "teacher.cache.k=8", "trainer.max_epochs=1",
        "teacher.cache.samples=200", f"teacher.cache.folder={tmp_path}/stores",
    )  # fmt: skip
    live = start(tmp_path / "live", *causal, "trainer.max_epochs=1")
    measured, exact = (of_steps(run, "train/loss_ce") for run in (folder, live))
    assert len(measured) == 7
    if form == "top":  # whatever is put into one class can only hide a divergence
        assert all(0 < kept <= whole for kept, whole in zip(measured, exact, strict=True))
    else:
        assert sum(measured) == pytest.approx(sum(exact), abs=0.3 * sum(exact))


def test_a_second_run_loads_no_teacher(masked, tasks, experts, compose_config, monkeypatch, tmp_path):
    folder = f"teacher.cache.folder={tmp_path}/stores"
    base = [*SMALL, *QUIET, CACHED]
    corpus = compose_config(*base, *masked, folder)
    kind = "classification"
    rows = compose_config(
        *base, "objective=task_kd", f"teacher.model={experts(kind)}", "student.layers=[0]", *tasks[kind],
        f"{folder}/rows",
    )  # fmt: skip
    builders = [(build_language_training, corpus), (build_task_training, rows)]
    for build, config in builders:
        build(config)

    def asked(*_):
        raise AssertionError("a teacher was asked")

    monkeypatch.setattr(computing, "hidden_states", asked)
    for build, config in builders:
        training = build(config)
        assert training.module.teacher is None
        names = [name for name, _ in training.module.named_parameters()]
        assert names
        assert all(name.startswith("student.") for name in names)
        assert training.teacher_parameters


@pytest.mark.parametrize("form", ["top", "sampled", "hidden"])
def test_a_resumed_run_ends_in_the_same_student(form, masked, start, tmp_path):
    common = [*masked, CACHED, f"teacher.cache.form={form}", f"teacher.cache.folder={tmp_path}/stores"]
    whole = start(tmp_path / "whole", *common)
    original = LastCheckpoint.on_train_batch_end

    def die(self, trainer, *rest):
        original(self, trainer, *rest)
        if trainer.global_step == 5:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_train_batch_end", die)
        with pytest.raises(KilledError):
            start(tmp_path / "killed", *common, "checkpoint.every_n_steps=4")
    same_students(whole, start(tmp_path / "killed", *common, "resume=auto"), within=0)


def test_a_store_whose_build_was_killed_is_built_anew(masked, start, tmp_path):
    stores = tmp_path / "stores"
    common = [*masked, CACHED, f"teacher.cache.folder={stores}"]
    original, calls = computing.hidden_states, []

    def die(*arguments, **named):
        calls.append(1)
        if len(calls) == 5:
            raise KilledError
        return original(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(computing, "hidden_states", die)
        with pytest.raises(KilledError):
            start(tmp_path / "killed", *common)
    assert not [path for path in stores.iterdir() if path.is_dir()]
    (stores / "train.tmp-1-dead").mkdir()  # what a kill that cannot be caught leaves
    start(tmp_path / "run", *common)
    assert sorted(path.name for path in stores.iterdir() if path.is_dir()) == ["eval", "train"]


def test_a_stale_store_is_rejected_with_the_reason(masked, start, bert_tokenizer, make_bert, tmp_path):
    stores = tmp_path / "stores"
    common = [*masked, CACHED, f"teacher.cache.folder={stores}"]
    start(tmp_path / "first", *common)
    other = make_bert(tmp_path / "other", bert_tokenizer, seed=5, layers=4)
    counts = tmp_path / "counts.pickle"
    counts.write_bytes(pickle.dumps([1] * describe(bert_tokenizer).size))
    changes = {
        r"masks\.token_counts is .* in the store and": [f"data.token_counts={counts}"],
        r"teacher\.weights is \w{12}\.\.\. in the store and": [f"teacher.model={other}"],
        r"masks\.seed is 42 in the store and 7 here": ["seed=7"],
        r"data is \w{12}\.\.\. in the store": ["data.max_examples=50"],
        r"form\.k is 64 in the store and 8 here": ["teacher.cache.k=8"],
        r"masks\.steps is 7 in the store and 6 here": ["trainer.max_steps=6"],
        r"form\.temperatures is \[2\.0\] in the store and \[3\.0\] here": ["objective.temperature=3"],
    }
    for said, overrides in changes.items():
        with pytest.raises(DataError, match=said) as error:
            start(tmp_path / "refused", *common, *overrides)
        assert "\n" not in str(error.value)
    log_probs = next((stores / "train").glob("log_probs-*.npy"))
    whole = log_probs.read_bytes()
    for damage, said in ((whole[:-8], "bytes instead of"), (whole[:-1] + b"\x77", "does not match its checksum")):
        log_probs.write_bytes(damage)
        with pytest.raises(DataError, match=f"{log_probs.name}.*{said}|{said}|{log_probs.name}"):
            start(tmp_path / "refused", *common)
    (stores / "train" / "index.json").unlink()
    with pytest.raises(DataError, match=r"index\.json is missing"):
        start(tmp_path / "refused", *common)


@pytest.mark.parametrize("form", ["top", "hidden"])
def test_two_processes_read_one_store_and_make_the_update_of_one(form, command, masked, tmp_path):
    still = (
        "+student.config={model_type: bert, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 4, "
        "intermediate_size: 64, max_position_embeddings: 64, hidden_dropout_prob: 0.0, "
        "attention_probs_dropout_prob: 0.0}"
    )
    common = [o for o in masked if not o.startswith("student.layers")]
    common += [*SMALL[:2], *QUIET, "optimizer.lr=1e-3", still, CACHED, f"teacher.cache.form={form}"]
    two = ["strategy=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
    runs_of = {"one": ["data.batch_size=8"], "two": [*two, "data.batch_size=2", "trainer.accumulate_grad_batches=2"]}
    for name, overrides in runs_of.items():
        done = command("train.py", *common, *overrides, f"hydra.run.dir={tmp_path}/{name}")
        assert done.returncode == 0, done.stderr[-3000:]
    same_students(tmp_path / "one", tmp_path / "two")


def test_the_command_rejects_a_damaged_store_in_one_line(command, masked, tmp_path):
    (tmp_path / "stores" / "train").mkdir(parents=True)
    common = [*masked, *SMALL, *QUIET, CACHED, f"hydra.run.dir={tmp_path}/run"]
    done = command("train.py", *common, f"teacher.cache.folder={tmp_path}/stores")
    assert done.returncode == 2, done.stderr[-3000:]
    assert "index.json is missing" in done.stderr.strip().splitlines()[-1]
