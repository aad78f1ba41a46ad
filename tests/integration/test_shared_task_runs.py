"""Several tasks with a teacher each into one student, from end to end, in this process."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from potstill.errors import CheckpointError, ConfigError
from potstill.runs.checks import validate_train
from potstill.runs.doctor import examine
from potstill.training.callbacks import LastCheckpoint

pytestmark = pytest.mark.integration

QUIET = ["logger=csv", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"]
SMALL = [
    "data.max_length=16", "data.batch_size=8", "data.eval_batch_size=32",
    "optimizer.lr=3e-3", "optimizer.betas=[0.9,0.98]", "trainer.gradient_clip_val=5",  # random encoders, few steps
]  # fmt: skip
TINY = {"layers": 2, "initializer_range": 0.05}


@pytest.fixture(scope="module")
def files(tmp_path_factory, words):
    """Rows whose label is the part of the word list that their words are of."""
    folder = tmp_path_factory.mktemp("tasks")
    for task, parts in (("halves", 2), ("thirds", 3)):
        draw, size = random.Random(parts), len(words) // parts
        for part, count in (("train", 60 * parts), ("dev", 40)):
            rows = ["text\tlabel"]
            for _ in range(count):
                label = draw.randrange(parts)
                chosen = draw.choices(words[label * size : (label + 1) * size], k=draw.randint(3, 9))
                rows.append(f"{' '.join(chosen)}\tpart{label}")
            (folder / f"{task}_{part}.tsv").write_text("\n".join(rows) + "\n")
    return folder


def options_of(files, task):
    return f"{{train_file: {files}/{task}_train.tsv, eval_file: {files}/{task}_dev.tsv}}"


@pytest.fixture(scope="module")
def train(trained):
    """The summary of a run."""
    return lambda folder, *overrides: trained(folder, *SMALL, *QUIET, *overrides).summary


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, bert_tokenizer, make_bert, files, train):
    """A fine-tuned teacher of each task, the second of them narrower."""
    made = {}
    for seed, (task, width) in enumerate((("halves", 32), ("thirds", 16))):
        folder = tmp_path_factory.mktemp(f"teacher-{task}")
        encoder = make_bert(folder / "encoder", bert_tokenizer, seed=seed, hidden_size=width, **TINY)
        parts = [
            f"benchmark.{part}_file={files}/{task}_{file}.tsv" for part, file in (("train", "train"), ("eval", "dev"))
        ]
        train(
            folder, "objective=finetune", "benchmark=text_classification", *parts, f"student.model={encoder}",
            "trainer.max_epochs=4",
        )  # fmt: skip
        made[task] = folder / "student"
    return made


@pytest.fixture(scope="module")
def tasks(files, teachers):
    entries = [
        f"{{benchmark: text_classification, name: {task}, teacher: {teachers[task]}, "
        f"options: {options_of(files, task)}}}"
        for task in ("halves", "thirds")
    ]
    return f"tasks=[{','.join(entries)}]"


SCRATCH = (
    "+student.config={model_type: bert, num_hidden_layers: 2, hidden_size: 16, num_attention_heads: 4, "
    "intermediate_size: 32, max_position_embeddings: 32}"
)
MATCH = "objective.matches=[{teacher: 2, student: 2, loss: hidden_mse, projection: linear, name: last}]"


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def learnt(train, tasks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("learnt")
    return folder, train(
        folder, "objective=task_kd", tasks, "student.layers=[0,1]", MATCH, "trainer.max_epochs=8",
        "objective.gradient_shares_every=4",
    )  # fmt: skip


def test_one_student_learns_both_tasks(learnt, teachers):
    folder, summary = learnt
    assert summary["val/accuracy_halves"] > 0.85
    assert summary["val/accuracy_thirds"] > 0.75
    mean = (summary["val/accuracy_halves"] + summary["val/accuracy_thirds"]) / 2
    assert summary["val/mean"] == pytest.approx(mean)
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert saved["objective"] == sorted(["ce_halves", "ce_thirds", "match_last_halves", "match_last_thirds"])
    state = saved["state_dict"]
    assert state["projections.halves-last.weight"].shape == (32, 32)
    assert state["projections.thirds-last.weight"].shape == (16, 32)
    assert not any(key.startswith("teacher.") for key in state)


def test_the_doctor_measures_the_longest_of_all_tasks(tasks, compose_config, capsys):
    config = compose_config(
        *SMALL, "objective=task_kd", tasks, "student.layers=[0,1]", MATCH, "doctor=true",
        "trainer.max_epochs=2",
    )  # fmt: skip
    validate_train(config)
    examine(config)
    printed = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert "8: " in printed["measured"]
    assert "for 76 steps" in printed["time"]  # 2 * ceil((120 + 180) / 8)


def test_each_task_has_a_folder_that_transformers_opens(learnt, files, evaluated, tmp_path):
    folder, summary = learnt
    opened = {}
    for task, labels in (("halves", 2), ("thirds", 3)):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder / "student" / task, output_loading_info=True
        )
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert model.config.num_labels == labels
        assert model.config.id2label == {n: f"part{n}" for n in range(labels)}
        AutoTokenizer.from_pretrained(folder / "student" / task)
        opened[task] = model.bert.state_dict()
    assert all(torch.equal(opened["halves"][name], value) for name, value in opened["thirds"].items())
    part = ["benchmark=text_classification", f"benchmark.eval_file={files}/thirds_dev.tsv", *SMALL[:1]]
    table = evaluated(tmp_path, *part, f"model={folder}/student/thirds")
    assert table.value == pytest.approx(summary["val/accuracy_thirds"])


def test_a_resumed_run_ends_in_the_same_weights(train, tasks, tmp_path):
    common = ["objective=task_kd", tasks, SCRATCH, MATCH, "trainer.max_steps=12", "mixing.exponent=0.5"]
    train(tmp_path / "whole", *common)
    original = LastCheckpoint.on_train_batch_end

    def die_a_step_later(self, trainer, *rest):
        original(self, trainer, *rest)
        if trainer.global_step == 6:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_train_batch_end", die_a_step_later)
        with pytest.raises(KilledError):
            train(tmp_path / "half", *common, "checkpoint.every_n_steps=5")
    resume = f"ckpt_path={tmp_path}/half/checkpoints/last.ckpt"
    with pytest.raises(CheckpointError, match=r"mixing\.exponent=1\.0: .* 0\.5"):
        train(tmp_path / "other", *common, "mixing.exponent=1", resume)
    train(tmp_path / "resumed", *common, resume)
    whole, resumed = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "resumed")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_a_task_may_decide_and_have_matches_of_its_own(train, files, teachers, tmp_path):
    own = "{teacher: 1, student: 1, loss: attention_mse}"
    entries = [
        f"{{benchmark: text_classification, name: {task}, teacher: {teachers[task]}, "
        f"options: {options_of(files, task)}, matches: {matches}}}"
        for task, matches in (("halves", own), ("thirds", "[]"))
    ]
    summary = train(
        tmp_path, "objective=task_kd", f"tasks=[{','.join(entries)}]", SCRATCH, "mixing.monitor=thirds",
        "trainer.max_steps=8", "trainer.val_check_interval=4",
    )  # fmt: skip
    saved = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert saved["objective"] == ["ce_halves", "ce_thirds", "match_0_halves"]
    best = max(
        value for key, value in summary.items() if key == "val/accuracy_thirds"
    )  # of the best student, which was kept
    kept = next(own for key, own in saved["callbacks"].items() if "BestStudent" in key)
    assert kept["value"] == pytest.approx(best)
    assert summary["train/best_step"] == kept["step"]
    assert "train/loss" in summary


def test_entities_beside_sentences(train, files, teachers, bert_tokenizer, make_bert, words, tmp_path):
    tags = ["B-PER" if n % 3 == 0 else "O" for n in range(len(words))]
    lines = [f"{word} {tag}" + "\n" * (1 + (n % 5 == 4)) for n, (word, tag) in enumerate(zip(words, tags, strict=True))]
    (tmp_path / "names.txt").write_text("".join(lines) + "\n")
    parts = dict.fromkeys(("train_file", "eval_file"), f"{tmp_path}/names.txt")
    encoder = make_bert(tmp_path / "encoder", bert_tokenizer, seed=3, **TINY)
    train(
        tmp_path / "tagger", "objective=finetune", "benchmark=token_classification", f"student.model={encoder}",
        *(f"benchmark.{part}={path}" for part, path in parts.items()), "trainer.max_steps=2",
    )  # fmt: skip
    entries = [
        f"{{benchmark: token_classification, name: names, teacher: {tmp_path}/tagger/student, "
        f"options: {{train_file: {tmp_path}/names.txt, eval_file: {tmp_path}/names.txt}}}}",
        f"{{benchmark: text_classification, name: halves, teacher: {teachers['halves']}, "
        f"options: {options_of(files, 'halves')}}}",
    ]
    summary = train(
        tmp_path / "run", "objective=task_kd", f"tasks=[{','.join(entries)}]", "student.layers=[0]",
        "trainer.max_steps=8", "mixing.exponent=0",
    )  # fmt: skip
    assert {"val/f1_names", "val/accuracy_halves", "val/mean"} <= summary.keys()
    _, report = AutoModelForTokenClassification.from_pretrained(
        tmp_path / "run/student/names", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]  # the pooler that the other task needs stays out


def test_two_processes_make_the_update_of_one(command, tasks, tmp_path):
    """The same global batch, shared by two processes (gloo) or not, though a step leaves a head without gradient."""
    still = SCRATCH.replace("}", ", hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}")
    common = ["objective=task_kd", tasks, still, MATCH, *SMALL, *QUIET, "trainer.max_steps=4"]
    two = [
        "trainer.strategy=ddp_find_unused_parameters_true", "trainer.accelerator=cpu", "trainer.devices=2",
        "data.batch_size=4",
    ]  # fmt: skip
    for name, overrides in (("one", []), ("two", two)):
        done = command("train.py", *common, *overrides, f"hydra.run.dir={tmp_path}/{name}")
        assert done.returncode == 0, done.stderr[-3000:]
    for task in ("halves", "thirds"):
        one, both = (load_file(tmp_path / name / "student" / task / "model.safetensors") for name in ("one", "two"))
        for key, value in one.items():
            torch.testing.assert_close(both[key], value, rtol=0, atol=1e-5, msg=key)
    figures = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")]
    assert figures[1]["val/mean"] == pytest.approx(figures[0]["val/mean"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda o: [o[0].replace("name: thirds", "name: halves")], "tasks[1].name=halves: "),
        (lambda o: [o[0].replace("name: thirds", "name: a/b")], "tasks[1].name=a/b: "),
        (lambda o: [o[0].replace("teacher:", "teacher: null, matches:", 1)], "tasks[0].teacher=null: halves "),
        (lambda o: [o[0].replace("text_classification", "sst3")], "tasks[0].benchmark=sst3: "),
        (lambda o: [o[0].replace("train_file", "training_file")], "tasks[0].options.training_file="),
        (lambda o: [f"{o[0].rsplit(',{', 1)[0]}]"], "tasks: "),
        (lambda o: [*o, "benchmark=sst2"], "benchmark=sst2 with tasks"),
        (lambda o: [*o, "teacher.model=x"], "teacher.model=x with tasks"),
        (lambda o: [*o, "mixing.exponent=-1"], "mixing.exponent=-1.0"),
        (lambda o: [*o, "mixing.monitor=sst2"], "mixing.monitor=sst2: "),
        (lambda o: [*o, "objective=finetune"], "tasks: objective=finetune "),
        (lambda o: [*o, "objective.interchange.mapping=single_middle"], "objective.interchange.mapping=single_middle"),
        (lambda o: [*o, "trainer.devices=2", "trainer.strategy=ddp"], "ddp_find_unused_parameters_true"),
        (
            lambda o: [*o, "objective.matches={teacher: 2, student: 2, loss: hidden_mse}"],
            "tasks.thirds: objective.matches[0].loss=hidden_mse: the student's states are 32 wide, the teacher's 16",
        ),
        (lambda o: [*o, "objective.temperature=0"], "objective.temperature=0.0"),
    ],
)  # fmt: skip
def test_invalid_options_are_rejected_in_one_line(change, said, tasks, compose_config):
    with pytest.raises(ConfigError) as error:
        validate_train(compose_config("objective=task_kd", "student.layers=[0,1]", *QUIET, *change([tasks])))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).count(said) == 1


def test_sets_of_one_row_are_evaluated(train, files, teachers, tmp_path):
    entries = []
    for task in ("halves", "thirds"):
        rows = (files / f"{task}_dev.tsv").read_text().splitlines()[:2]
        (tmp_path / f"{task}_dev.tsv").write_text("\n".join(rows) + "\n")
        options = f"{{train_file: {files}/{task}_train.tsv, eval_file: {tmp_path}/{task}_dev.tsv}}"
        entries.append(
            f"{{benchmark: text_classification, name: {task}, teacher: {teachers[task]}, options: {options}}}"
        )
    given = [f"tasks=[{','.join(entries)}]", "student.layers=[0,1]", "trainer.max_steps=1"]
    summary = train(tmp_path / "run", "objective=task_kd", *given)
    assert {summary["val/accuracy_halves"], summary["val/accuracy_thirds"]} <= {0, 1}
