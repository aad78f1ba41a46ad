"""Runs that are stopped or killed, and resumed: weights, figures and metrics of the uninterrupted run."""

import csv
import json
import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from potstill.errors import ConfigError, StoppedError
from potstill.training.callbacks import Throughput, newest_checkpoint

pytestmark = pytest.mark.integration

SMALL = ["data.max_length=32", "data.num_proc=1", "data.batch_size=8", "logger=csv", "optimizer.lr=1e-3"]
QUIET = ["trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1", "trainer.val_check_interval=10"]
STEPS = ["trainer.max_steps=26", "checkpoint.every_n_steps=5"]
TIMED = ("train/step_seconds", "train/tokens_per_second", "train/peak_memory_gb")


@pytest.fixture(scope="module")
def overrides(text_file, eval_file, bert_teacher):
    source = ["data=text_files", f"data.train_files=[{text_file}]", f"data.eval_files=[{eval_file}]"]
    return [*source, *SMALL, *QUIET, *STEPS, f"teacher.model={bert_teacher}", "objective=diito"]


def metrics(folder):
    """Rows of metrics.csv without timings."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if v and k not in TIMED} for row in rows]


def same_end(one, other):
    weights = [load_file(folder / "student" / "model.safetensors") for folder in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    ends = [json.loads((folder / "summary.json").read_text()) for folder in (one, other)]
    for name in ends[0]:
        if name.startswith(("val/", "train/")) and name not in TIMED:
            assert ends[0][name] == ends[1][name], name
    assert metrics(one) == metrics(other)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_the_step_and_the_resumed_run_is_the_same(number, run, whole, monkeypatch, tmp_path):
    before = signal.getsignal(number)

    def signalled(self, trainer, *_):
        if trainer.global_step == 13:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Throughput, "on_train_batch_end", signalled)
        with pytest.raises(StoppedError, match=f"{number.name} after step 13"):
            run("stopped")
    assert signal.getsignal(number) == before
    assert not (tmp_path / "stopped" / "summary.json").exists()
    assert torch.load(tmp_path / "stopped/checkpoints/last.ckpt", weights_only=True)["global_step"] == 13
    same_end(whole, run("stopped", "resume=auto").folder)


def test_a_run_that_dies_is_resumed_from_its_last_whole_checkpoint(run, whole, monkeypatch, tmp_path):
    original = torch.save

    def torn(state, file):
        if state.get("global_step") == 20:
            file.write(b"half")
            raise KeyboardInterrupt  # as a kill, but this process lives on
        original(state, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", torn)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run("killed")
    folder = tmp_path / "killed"
    (folder / "checkpoints" / ".last.ckpt.1.tmp").write_bytes(b"half")
    assert newest_checkpoint(folder) == folder / "checkpoints" / "last.ckpt"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]
    same_end(whole, run("killed", "resume=auto").folder)


def test_without_a_checkpoint_a_run_starts_anew(run):
    assert run("fresh", "resume=auto", "trainer.max_steps=3").summary["train/steps"] == 3
    with pytest.raises(ConfigError, match=r"^resume=maybe: "):
        run("odd", "resume=maybe")
    with pytest.raises(ConfigError, match=r"^ckpt_path=last\.ckpt with resume=auto: "):
        run("both", "resume=auto", "ckpt_path=last.ckpt")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_the_command_ends_by_its_signal_and_is_resumed(
    number, code, overrides, whole, command, started_command, tmp_path
):
    folder = tmp_path / "stopped"
    arguments = [*overrides, f"hydra.run.dir={folder}", "resume=auto"]
    process = started_command("train.py", *arguments)
    until = time.monotonic() + 120
    while not (folder / "checkpoints" / "last.ckpt").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    if process.returncode != 0:  # else it was done already
        assert process.returncode == code, stderr
        assert ("resume=auto" in stderr) == (number == signal.SIGTERM)
        assert command("train.py", *arguments).returncode == 0
    same_end(whole, folder)
