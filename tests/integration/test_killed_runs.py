"""Trainings that are killed at any moment and resumed: they end in all that the uninterrupted run leaves."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.integration

TIMED = ("train/step_seconds", "train/tokens_per_second", "train/peak_memory_gb")
COMMON = [
    "data.max_length=32", "data.num_proc=1", "data.batch_size=8", "logger=csv", "optimizer.lr=1e-3",
    "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1", "objective.gradient_shares_every=4",
]  # fmt: skip
MOMENTS = [
    "step", "checkpoint", "half_checkpoint", "in_validation", "row", "validated", "epoch", "last_checkpoint",
    "final_validation", "student", "summary", "half_row", "header",
]  # fmt: skip

# Runs each moment in two children of a process that has loaded everything: one is killed, the other resumes it.
SCRIPT = r"""
import json, os, signal, sys, traceback
from pathlib import Path
import torch
from matplotlib.figure import Figure
from potstill.runtime import atomic
from potstill.runs import train as train_run
from potstill.reporting import loggers
from potstill.training.callbacks import LastCheckpoint, Throughput
from potstill.config import TrainConfig, register
from potstill.config.typed import composed
from potstill.training.language import LanguageDistillation
from potstill.training.task import Downstream
from potstill.runs.checks import validate_train

root, overrides, moments, (step, validated, end) = json.loads(sys.argv[1])
register()

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def after(owner, name, when):
    original = getattr(owner, name)
    def patched(*arguments, **named):
        found = original(*arguments, **named)
        if when(*arguments, **named):
            die()
        return found
    setattr(owner, name, patched)

def before(owner, name, when):
    original = getattr(owner, name)
    def patched(*arguments, **named):
        if when(*arguments, **named):
            die()
        return original(*arguments, **named)
    setattr(owner, name, patched)

def half(state, file):
    if state["global_step"] == validated + 1:
        file.write(b"half")
        file.flush()
        die()
    save(state, file)

Figure.savefig = lambda figure, file, **options: file.write("<svg></svg>")
save, module = torch.save, LanguageDistillation if "objective=kd" in overrides else Downstream
rows = loggers.MetricsFile

def inject(moment):
    if moment == "step":
        after(Throughput, "on_train_batch_end", lambda _, trainer, *__: trainer.global_step == step)
    elif moment == "checkpoint":
        after(LastCheckpoint, "save", lambda _, trainer: trainer.global_step == step)
    elif moment == "half_checkpoint":
        torch.save = half
    elif moment == "in_validation":
        after(module, "validation_step", lambda own, *_: own.global_step == validated)
    elif moment == "row":
        after(rows, "log_metrics", lambda _, metrics, step: step == validated - 1 and "val/loss" in metrics)
    elif moment == "half_row":
        def torn(self, metrics, step):
            if step == validated - 1 and "val/loss" in metrics:
                with self.path.open("a") as file:
                    file.write("0,1")
                die()
            whole_row(self, metrics, step)
        whole_row, rows.log_metrics = rows.log_metrics, torn
    elif moment == "header":
        before(Path, "replace", lambda path, *_: path.name.startswith(".metrics.csv"))
    elif moment == "validated":
        after(module, "on_validation_end", lambda own: own.global_step == validated)
    elif moment == "epoch":
        after(LastCheckpoint, "save", lambda _, trainer: trainer.global_step == 15)
    elif moment == "last_checkpoint":
        after(LastCheckpoint, "on_train_end", lambda *_: True)
    elif moment == "final_validation":
        after(module, "on_validation_end", lambda own: own.global_step == end)
    elif moment == "student":
        before(Path, "rename", lambda path, *_: path.name.startswith(".student."))
    elif moment == "summary":
        before(train_run, "write_summary", lambda *_: True)

def run(name, moment=None):
    child = os.fork()
    if child == 0:
        try:
            config = composed("train", [*overrides, "resume=auto"], TrainConfig)
            validate_train(config)
            folder = Path(root) / name
            folder.mkdir(exist_ok=True)
            inject(moment)
            train_run.train(config, folder)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]

assert run("whole") == 0
for moment in moments:
    killed = run(moment, moment)
    assert killed == signal.SIGKILL, (moment, killed)
    assert run(moment) == 0, moment
"""


def rows_of(folder):
    """metrics.csv without timings."""
    with (folder / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIMED} for row in csv.DictReader(file)]


def summary_of(folder):
    found = json.loads((folder / "summary.json").read_text())
    assert set(TIMED) < found.keys()
    return {name: value for name, value in found.items() if name not in (*TIMED, "seconds")}


@pytest.fixture(scope="module")
def language(tmp_path_factory, text_file, eval_file, bert_teacher, start):
    """Ends within an epoch, after a validation, with the checkpoint of the end."""
    own = [
        "objective=kd", f"teacher.model={bert_teacher}", "data=text_files", f"data.train_files=[{text_file}]",
        f"data.eval_files=[{eval_file}]", "trainer.max_steps=16", "checkpoint.every_n_steps=3",
        "trainer.val_check_interval=8",
    ]  # fmt: skip
    return start(tmp_path_factory.mktemp("language"), [*COMMON, *own], MOMENTS, (6, 8, 16))


@pytest.fixture(scope="module")
def task(tmp_path_factory, bert_teacher, words, start):
    """Ends with its second epoch; the best student is validated once more."""
    folder = tmp_path_factory.mktemp("task")
    lines = [f"{words[n % 7]} {words[n % 11]} {words[n % 5]}\t{'ab'[n % 7 < 3]}" for n in range(80)]
    (folder / "train.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n")
    (folder / "dev.tsv").write_text("\n".join(["text\tlabel", *lines[3:40]]) + "\n")
    own = [
        "objective=finetune", "benchmark=text_classification", f"benchmark.train_file={folder}/train.tsv",
        f"benchmark.eval_file={folder}/dev.tsv", f"student.model={bert_teacher}", "trainer.max_epochs=2",
        "checkpoint.every_n_steps=5", "callbacks=early_stopping",
    ]  # fmt: skip
    moments = ["checkpoint", "in_validation", "validated", "row", "last_checkpoint", "final_validation", "summary"]
    return start(folder, [*COMMON, *own], moments, (10, 10, 20))


@pytest.fixture(scope="module")
def start(command, shared_cache):
    def killed_and_resumed(root, overrides, moments, steps):
        script = root / "killed.py"
        script.write_text(SCRIPT)
        done = command(script, json.dumps([str(root), overrides, moments, steps]), timeout=600)
        assert done.returncode == 0, done.stderr[-4000:]
        return root

    return killed_and_resumed


def same_end(whole, other):
    weights = [load_file(folder / "student" / "model.safetensors") for folder in (whole, other)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert rows_of(other) == rows_of(whole)
    assert summary_of(other) == summary_of(whole)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_language_model_run_ends_as_the_uninterrupted_one(moment, language):
    same_end(language / "whole", language / moment)


@pytest.mark.parametrize(
    "moment", ["checkpoint", "in_validation", "validated", "row", "last_checkpoint", "final_validation", "summary"]
)
def test_a_killed_task_run_ends_as_the_uninterrupted_one(moment, task):
    same_end(task / "whole", task / moment)
