"""Task models from end to end, in this process: what a run leaves, the best student, resuming, evaluating."""

import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from potstill.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.integration

QUIET = ["logger=csv", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"]
SMALL = ["data.max_length=32", "data.batch_size=8", "optimizer.lr=3e-3", "data.eval_batch_size=16"]


@pytest.fixture(scope="module")
def lines(words):
    """Rows of words of one half of the list: `yes` where the text, or a pair's second one, is of the first half."""
    half = len(words) // 2

    def make(count, seed, pair=False, labels=("no", "yes")):
        draw, rows = random.Random(seed), []

        def text(first):
            return " ".join(draw.choices(words[:half] if first else words[half:], k=draw.randint(4, 12)))

        for _ in range(count):
            label = draw.random() < 0.5
            texts = [text(draw.random() < 0.5), text(label)] if pair else [text(label)]
            rows.append("\t".join([*texts, labels[label]]))
        return rows

    return make


@pytest.fixture(scope="module")
def files(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("task")
    for name, pair, header in (("single", False, "text\tlabel"), ("pair", True, "a\tb\tlabel")):
        for part, count in (("train", 200), ("dev", 60)):
            rows = lines(count, f"{name}{part}", pair)
            (folder / f"{name}_{part}.tsv").write_text("\n".join([header, *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, bert_tokenizer, make_bert):
    return make_bert(tmp_path_factory.mktemp("encoder"), bert_tokenizer, layers=2, initializer_range=0.05)


@pytest.fixture
def run(files, encoder, trained, tmp_path):
    def start(name, *overrides, task="single"):
        parts = [f"benchmark.train_file={files}/{task}_train.tsv", f"benchmark.eval_file={files}/{task}_dev.tsv"]
        own = [] if any(o.startswith(("student", "+student")) for o in overrides) else [f"student.model={encoder}"]
        return trained(
            tmp_path / name, "objective=finetune", "benchmark=text_classification", *parts, *SMALL, *QUIET, *own,
            *overrides,
        )  # fmt: skip

    return start


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, files, encoder, trained):
    """The folder and the summary of a run that has learnt the task of single texts."""
    return trained(
        tmp_path_factory.mktemp("learnt"), "objective=finetune", "benchmark=text_classification",
        f"benchmark.train_file={files}/single_train.tsv", f"benchmark.eval_file={files}/single_dev.tsv",
        f"student.model={encoder}", "trainer.max_epochs=3", *SMALL, *QUIET,
    )  # fmt: skip


@pytest.fixture
def evaluator(evaluated, tmp_path):
    task = ["benchmark=text_classification", "data.max_length=32"]
    return lambda name, *overrides: evaluated(tmp_path / name, *task, *overrides)


def student(folder):
    return load_file(folder / "student" / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_task_is_learnt_and_transformers_opens_the_student(learnt, files):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, summary = learnt
    assert summary["val/accuracy"] > 0.95
    assert 0.5 <= summary["val/majority_accuracy"] < summary["val/accuracy"]
    assert summary["val/better_than_constant"] is True
    assert {"val/f1_macro", "val/loss", "train/loss_label", "train/best_step", "data/train_examples"} <= summary.keys()
    for name in ("metrics.csv", "report.html", "config.yaml", "checkpoints/last.ckpt"):
        assert (folder / name).is_file()
    model = AutoModelForSequenceClassification.from_pretrained(folder / "student").eval()
    assert model.config.id2label == {0: "no", 1: "yes"}
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    rows = [line.split("\t") for line in (files / "single_dev.tsv").read_text().splitlines()[1:]]
    batch = tokenizer([text for text, _ in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        predicted = model(**batch).logits.argmax(-1).tolist()
    right = [model.config.id2label[number] == label for number, (_, label) in zip(predicted, rows, strict=True)]
    assert np.mean(right) == pytest.approx(summary["val/accuracy"])


def test_pairs_are_distinguished_by_token_types(run):
    _, summary = run("pairs", "benchmark.text_columns=[a,b]", "trainer.max_epochs=6", task="pair")
    assert summary["val/accuracy"] > 0.9  # the label is of the second text alone


def test_a_score_is_learnt(run, lines, tmp_path, evaluator):
    for part in ("train", "dev"):
        rows = lines(120, f"score{part}", labels=("1.0", "4.5"))
        (tmp_path / f"{part}.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *(f"same\t{r}" for r in rows)]))
    folder, summary = run(
        "score", "benchmark=stsb", f"benchmark.train_file={tmp_path}/train.tsv", "trainer.max_epochs=6",
        f"benchmark.eval_file={tmp_path}/dev.tsv",
    )  # fmt: skip
    assert summary["val/pearson"] > 0.9
    assert {"val/spearman", "val/loss"} <= summary.keys()
    keys = [f"model={folder}/student", "benchmark=stsb", f"benchmark.test_file={tmp_path}/dev.tsv"]
    where, evaluated = evaluator("evaluated", *keys)
    assert evaluated["test/pearson"] == pytest.approx(summary["val/pearson"], abs=1e-6)
    assert (where / "predictions.tsv").read_text().startswith("index\tprediction\tlabel\n")
    texts = [line.rpartition("\t")[0] for line in (tmp_path / "dev.tsv").read_text().splitlines()]
    (tmp_path / "test.tsv").write_text("\n".join(texts) + "\n")
    where, evaluated = evaluator("unlabelled", *keys[:2], f"benchmark.test_file={tmp_path}/test.tsv")
    assert not [name for name in evaluated if name.startswith("test/")]
    assert len((where / "predictions.tsv").read_text().splitlines()) == 121


def test_students_of_layers_and_from_scratch(run, encoder, bert_tokenizer, gpt2_tokenizer):
    two = ["trainer.max_steps=2"]
    for name, overrides, architecture in (
        ("layers", [f"teacher.model={encoder}", "student.layers=[1]"], "BertForSequenceClassification"),
        ("distilbert", [f"teacher.model={encoder}", "student=distilbert"], "DistilBertForSequenceClassification"),
        ("scratch", ["student=gpt2_tiny", f"data.tokenizer={gpt2_tokenizer}"], "GPT2ForSequenceClassification"),
    ):
        folder, summary = run(name, *overrides, *two)
        settings = json.loads((folder / "student" / "config.json").read_text())
        assert settings["architectures"] == [architecture]
        assert settings["pad_token_id"] is not None
        assert summary["train/steps"] == 2
        assert "val/accuracy" in summary


def test_resuming_in_mid_epoch_ends_in_the_same_best_student(run):
    """Dropout, order, noise, optimizer, schedule and the best so far continue as in the uninterrupted run."""
    from potstill.training.callbacks import LastCheckpoint

    steps = ["trainer.max_steps=40", "trainer.val_check_interval=8"]
    steps += ["data.augment.share=0.5", "data.augment.disorder=0.5"]
    whole, summary = run("whole", *steps)  # 25 steps per epoch

    class KilledError(Exception):
        pass

    original = LastCheckpoint.on_train_batch_end
    for every in (20, 24):  # between two validations, and together with one

        def die_a_step_later(self, trainer, *rest, at=every + 1):
            original(self, trainer, *rest)
            if trainer.global_step == at:
                raise KilledError

        own = [*steps, f"checkpoint.every_n_steps={every}"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LastCheckpoint, "on_train_batch_end", die_a_step_later)
            with pytest.raises(KilledError):
                run(f"half{every}", *own)
        checkpoint = f"ckpt_path={whole.parent}/half{every}/checkpoints/last.ckpt"
        resumed, again = run(f"resumed{every}", *own, checkpoint)
        assert same(student(whole), student(resumed))
        for key in ("val/accuracy", "val/loss", "train/loss", "train/steps", "train/best_step"):
            assert summary[key] == again[key], key


def test_the_same_global_batch_gives_the_same_update_however_it_is_split(run, tmp_path, bert_tokenizer, make_bert):
    calm = make_bert(
        tmp_path / "calm", bert_tokenizer, layers=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    common = [f"student.model={calm}", "trainer.max_steps=4", "optimizer.lr=1e-2", "optimizer.eps=1e-3"]
    once = student(run("once", *common, "data.batch_size=12").folder)
    split = student(run("split", *common, "data.batch_size=4", "trainer.accumulate_grad_batches=3").folder)
    for key, value in once.items():
        torch.testing.assert_close(split[key], value, rtol=0, atol=2e-5, msg=key)


def test_a_checkpoint_of_another_task_is_rejected(run, bert_teacher):
    first, _ = run("first", "trainer.max_steps=2")
    ckpt = f"ckpt_path={first}/checkpoints/last.ckpt"
    with pytest.raises(CheckpointError, match=r"student\.model="):
        run("other", f"student.model={bert_teacher}", "trainer.max_steps=4", ckpt)
    with pytest.raises(CheckpointError, match=r"data\.batch_size=4"):
        run("batch", "data.batch_size=4", "trainer.max_steps=4", ckpt)


def test_several_models_and_sets_are_evaluated(run, learnt, evaluator, files, lines, tmp_path):
    folder, summary = learnt
    fresh, _ = run("fresh", "trainer.max_steps=1")
    keys = [f"model=[{folder}/student,{folder}/student,{fresh}/student]", "names=[one,of/two,fresh]"]
    where, evaluated = found = evaluator("several", *keys, f"benchmark.eval_file={files}/single_dev.tsv")
    assert found.value == evaluated["one/test/accuracy"] == evaluated["of/two/test/accuracy"]
    assert found.value == pytest.approx(summary["val/accuracy"])
    assert {"one/parameters", "one/latency_ms", "one/size_mb"} <= evaluated.keys()
    assert {"predictions_one.tsv", "predictions_of_two.tsv"} <= {path.name for path in where.iterdir()}
    report = (where / "report.html").read_text()
    assert "100.0%" in report
    assert "Quality against latency" in report
    assert "+0.0000 (+0.0000 to +0.0000)" in report
    assert evaluated["of/two/test/accuracy_difference"] == 0
    gap = evaluated["fresh/test/accuracy_difference"]
    assert gap == pytest.approx(evaluated["fresh/test/accuracy"] - found.value)
    assert evaluated["fresh/test/accuracy_difference_low"] <= gap < 0
    assert gap <= evaluated["fresh/test/accuracy_difference_high"]
    assert "one/test/accuracy_difference" not in evaluated

    (tmp_path / "sets").mkdir()
    for name, seed in (("dev_matched", 1), ("dev_mismatched", 2)):
        rows = lines(30, seed)
        (tmp_path / "sets" / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    where, evaluated = evaluator(
        "both", f"model={folder}/student", f"benchmark.folder={tmp_path}/sets", "benchmark.eval.file=dev_matched",
        "benchmark.further=[{name: mismatched, file: dev_mismatched}]",
    )  # fmt: skip
    assert {"test/accuracy", "test/accuracy_mismatched", "test/loss_mismatched"} <= evaluated.keys()
    for name, end in (("dev_matched", ""), ("dev_mismatched", "_mismatched")):
        table = [line.split("\t") for line in (where / f"predictions{end}.tsv").read_text().splitlines()]
        gold = [line.split("\t")[1] for line in (tmp_path / "sets" / f"{name}.tsv").read_text().splitlines()[1:]]
        assert [row[2] for row in table[1:]] == gold
        right = np.mean([row[1] == row[2] for row in table[1:]])
        assert evaluated[f"test/accuracy{end}"] == pytest.approx(right)


def test_labels_in_another_order_and_rows_without_labels(learnt, evaluator, files, tmp_path, caplog):
    folder, _ = learnt
    model, dev = f"model={folder}/student", f"benchmark.eval_file={files}/single_dev.tsv"
    first = evaluator("first", model, dev).value
    assert evaluator("turned", model, dev, "benchmark.labels=[yes,no]").value == first
    texts = [line.split("\t")[0] for line in (files / "single_dev.tsv").read_text().splitlines()]
    (tmp_path / "test.tsv").write_text("\n".join(texts) + "\n")
    where, summary = found = evaluator("unlabelled", model, f"benchmark.test_file={tmp_path}/test.tsv")
    assert found.value is None
    assert not [name for name in summary if name.startswith("test/")]
    assert "text_classification has no labels; it is only predicted" in caplog.text
    columns = (where / "predictions.tsv").read_text().splitlines()
    assert columns[0] == "index\tprediction\tp(no)\tp(yes)"
    assert len(columns) == 61


def test_labels_that_differ_in_their_sign_alone(run, evaluator, files, tmp_path):
    for part in ("train", "dev"):
        text = (files / f"single_{part}.tsv").read_text()
        (tmp_path / f"{part}.tsv").write_text(text.replace("\tno\n", "\t-1\n").replace("\tyes\n", "\t1\n"))
    parts = [f"benchmark.{name}_file={tmp_path}/{part}.tsv" for name, part in (("train", "train"), ("eval", "dev"))]
    folder, summary = run("signs", *parts, "trainer.max_epochs=2")
    assert summary["val/accuracy"] > 0.9
    model = f"model={folder}/student"
    assert evaluator("evaluated", model, parts[1]).summary["test/accuracy"] == pytest.approx(summary["val/accuracy"])
    again = run("again", *parts, f"student.model={folder}/student", "trainer.max_steps=0").summary
    assert again["val/accuracy"] == pytest.approx(summary["val/accuracy"])
    teacher = ["objective=task_kd", f"teacher.model={folder}/student", "student.layers=[0]", "trainer.max_steps=1"]
    assert "val/accuracy" in run("taught", *parts, *teacher).summary
    (tmp_path / "one.csv").write_text("text,label\nthe of,-1.0\n")
    one = evaluator("one", model, f"benchmark.eval_file={tmp_path}/one.csv").summary
    assert one["test/accuracy"] == 0  # both words are of the first half
    (tmp_path / "one.csv").write_text("text,label\nthe of,-1\n")
    missing = evaluator("missing", model, f"benchmark.eval_file={tmp_path}/one.csv").summary
    assert missing["test/accuracy"] == one["test/accuracy"]


@pytest.mark.parametrize("name", ["text_classification", "stsb"])
def test_a_set_of_one_row_is_evaluated(name, run, evaluator, tmp_path, encoder):
    columns, label = ("sentence1\tsentence2\tscore", "1.5") if name == "stsb" else ("text\tlabel", "no")
    texts = "the of\tand to" if name == "stsb" else "the of"
    other = "4.5" if name == "stsb" else "yes"
    (tmp_path / "train.tsv").write_text(f"{columns}\n{texts}\t{label}\n{texts} in\t{other}\n")
    (tmp_path / "dev.tsv").write_text(f"{columns}\n{texts}\t{label}\n")
    parts = [f"benchmark.{name}_file={tmp_path}/{part}.tsv" for name, part in (("train", "train"), ("eval", "dev"))]
    folder, summary = run("one", f"benchmark={name}", *parts, "trainer.max_steps=1")
    assert np.isfinite(summary["val/loss"])
    _, evaluated = evaluator(
        "evaluated", f"benchmark={name}", f"model=[{folder}/student,{folder}/student]", "names=[a,b]", parts[1]
    )
    assert evaluated["a/test/loss"] == pytest.approx(summary["val/loss"], rel=1e-5)
    if name == "text_classification":
        kept = ["objective=task_kd", f"teacher.model={folder}/student", "student.layers=[0]", "trainer.max_steps=1"]
        assert "val/accuracy" in run("cached", *parts, *kept, "teacher.cache.enabled=true").summary
        exchange = ["objective=diito", "objective.terms.ce.weight=1", "objective.interchange.proportion=0.5"]
        assert "val/accuracy" in run("swapped", *parts, *exchange, *kept[1:]).summary


DIITO = ["objective=diito", "objective.interchange.proportion=0.5"]


@pytest.fixture(scope="module")
def task_teacher(learnt):
    """A classifier of two blocks that knows the task of single texts."""
    return learnt.folder / "student"


def test_a_task_student_learns_to_react_like_its_teacher(run, task_teacher):
    common = [*DIITO, f"teacher.model={task_teacher}", "student.layers=[0]", "objective.terms.causal_ce.weight=2"]
    _, before = run("before", *common, "trainer.max_steps=0")
    folder, after = run("after", *common, "trainer.max_epochs=4")
    assert after["val/interchange_kl"] < before["val/interchange_kl"]
    assert after["val/interchange_agreement"] > 0.9
    assert after["val/accuracy"] > 0.9
    for term in ("label", "ce", "cos", "causal_ce"):
        assert f"train/loss_{term}" in after
    assert "val/interchange_agreement_1-0" in after
    assert after["teacher/parameters"] > after["student/parameters"]
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert not [key for key in checkpoint["state_dict"] if key.startswith("teacher.")]
    from transformers import AutoModelForSequenceClassification

    assert AutoModelForSequenceClassification.from_pretrained(folder / "student").config.num_hidden_layers == 1


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective.interchange.pairing=dataset", "objective.interchange.crossway=true"],
        ["objective.interchange.crossway=true", "objective.terms.causal_cos.weight=1"],
        ["objective.interchange.data_augment=true", "trainer.accumulate_grad_batches=2"],
        ["student.architecture=distilbert", "objective.terms.mse.weight=0.1"],
        [
            "objective.matches=[{teacher: 1, student: 1, loss: pkd, run: counterfactual}]",
            "objective.interchange.pairing=shuffled",
            "objective.interchange.crossway=true",
        ],
        ["data.augment.share=0.8", "data.augment.delete=0.3", "data.augment.ngram=0.5"],
    ],
    ids=lambda overrides: ",".join(overrides).replace("objective.", ""),
)
def test_every_way_to_swap_in_a_task_runs(run, task_teacher, overrides):
    layers = ["student.layers=[1]", "trainer.max_steps=3"]
    _, summary = run("swap", *DIITO, f"teacher.model={task_teacher}", *layers, *overrides)
    assert summary["train/loss_causal_ce"] > 0
    assert summary["train/steps"] == 3


def test_pairs_of_texts_and_scores_can_swap_too(run, task_teacher, files, lines):
    rows = ["a\tb\tscore", *lines(40, "scored", pair=True, labels=("0.5", "4.5"))]
    for name in ("train", "dev"):
        (files / f"scored_{name}.tsv").write_text("\n".join(rows) + "\n")
    regression = ["benchmark=text_regression"]
    columns = ["benchmark.text_columns=[a,b]", "benchmark.label_column=score"]
    folder, _ = run("scores", *regression, *columns, "trainer.max_steps=5", task="scored")
    common = [*DIITO, *regression, *columns, f"teacher.model={folder}/student", "student.layers=[0]"]
    _, summary = run("swapped", *common, "trainer.max_steps=3", task="scored")
    assert summary["train/loss_causal_ce"] > 0
    assert "val/interchange_agreement" not in summary  # two scores are never the same


def test_resuming_task_interventions_ends_in_the_same_weights(run, task_teacher, monkeypatch):
    from potstill.training.callbacks import LastCheckpoint

    common = [
        *DIITO, f"teacher.model={task_teacher}", "student.layers=[0]", "trainer.max_steps=20",
        "checkpoint.every_n_steps=8", "data.batch_size=16",
    ]  # fmt: skip
    whole, _ = run("whole", *common)

    class KilledError(Exception):
        pass

    original = LastCheckpoint.save

    def save_and_die(self, trainer):
        original(self, trainer)
        if trainer.global_step == 8:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "save", save_and_die)
        with pytest.raises(KilledError):
            run("half", *common)
    resumed, _ = run("resumed", *common, f"ckpt_path={whole.parent}/half/checkpoints/last.ckpt")
    assert same(student(whole), student(resumed))


def test_interventions_of_a_task_have_requirements(run, encoder, task_teacher):
    with pytest.raises(ConfigError, match=r"teacher\.model=.*has no"):
        run("headless", *DIITO, f"teacher.model={encoder}", "student.layers=[0]", "trainer.max_steps=1")
    with pytest.raises(ConfigError, match=r"^objective\.interchange\.positions=masked: "):
        run(
            "masked",
            *DIITO,
            f"teacher.model={task_teacher}",
            "objective.interchange.positions=masked",
            "student.layers=[0]",
        )
    with pytest.raises(ConfigError, match=r"^objective\.terms\.mlm\.weight=1\.0: "):
        run("mlm", *DIITO, f"teacher.model={task_teacher}", "objective.terms.mlm.weight=1", "student.layers=[0]")


def test_classifiers_are_compared_block_by_block(run, evaluator, task_teacher, files):
    common = [*DIITO, f"teacher.model={task_teacher}", "student.layers=[0,1]"]
    same_folder, _ = run("same", *common, "trainer.max_steps=0")
    other_folder, _ = run("other", *common[:-1], "student.layers=[1]", "trainer.max_steps=5")
    models = f"model=[{task_teacher},{same_folder}/student,{other_folder}/student]"
    rows = [f"benchmark.eval_file={files}/single_dev.tsv", "names=[teacher,same,other]"]
    swap = ["benchmark.interchange.mapping=grid", "benchmark.interchange.proportion=0.5"]
    folder, summary = evaluator("compared", models, *rows, *swap)
    for block in range(2):
        assert summary[f"same/test/interchange_agreement_{block}-{block}"] == 1.0
        assert summary[f"same/test/interchange_kl_{block}-{block}"] < 1e-6
    assert {f"other/test/interchange_kl_{block}-0" for block in range(2)} <= summary.keys()
    assert not any(name.startswith("teacher/") for name in summary)
    assert summary["same/test/interchange_unswapped"] == 1.0
    assert summary["random same/test/loss"] > summary["same/test/loss"]
    assert 0 <= summary["random other/test/interchange_unswapped"] < 1
    assert "other: interchange agreement" in (folder / "report.html").read_text()
    with pytest.raises(ConfigError, match=r"^benchmark\.interchange\.positions=masked: "):
        evaluator("masked", models, *rows, *swap, "benchmark.interchange.positions=masked")
