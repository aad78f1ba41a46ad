"""Problems from outside that a run survives, or ends on with one line; `docs/errors.md` lists them all."""

import errno
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from potstill.errors import CheckpointError, TrainingError
from potstill.training.language import LanguageDistillation

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def overrides(text_file, eval_file, bert_teacher):
    return [
        "objective=kd", f"teacher.model={bert_teacher}", "data=text_files", f"data.train_files=[{text_file}]",
        f"data.eval_files=[{eval_file}]", "data.max_length=32", "data.num_proc=1", "data.batch_size=8", "logger=csv",
        "trainer.max_steps=4", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1",
        "checkpoint.every_n_steps=2",
    ]  # fmt: skip


def test_out_of_memory_names_the_options_to_change(run, monkeypatch):
    def step(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(LanguageDistillation, "training_step", step)
    with pytest.raises(TrainingError) as error:
        run("full")
    line = str(error.value)
    assert line.startswith("data.batch_size=8: out of memory on the device; try data.batch_size=4 ")
    assert "trainer.accumulate_grad_batches=2" in line
    assert "\n" not in line


def test_a_full_disk_leaves_the_last_whole_checkpoint(run, whole, monkeypatch, tmp_path):
    saved = []

    def full(file):
        if "last.ckpt" in Path(f"/proc/self/fd/{file}").readlink().name:
            saved.append(file)
        if len(saved) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run("full")
    left = tmp_path / "full" / "checkpoints"
    assert [path.name for path in left.iterdir()] == ["last.ckpt"]
    assert torch.load(left / "last.ckpt", weights_only=True)["global_step"] == 2
    _, again = run("full", "resume=auto")
    assert again["val/loss"] == json.loads((whole / "summary.json").read_text())["val/loss"]


# train.py with a limit on the size of files, which stands for a full disk: the checkpoint does not fit.
LIMITED = """
import resource, signal
from potstill.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
main.train()
"""


def test_a_disk_without_space_is_one_line(overrides, command, tmp_path):
    (tmp_path / "limited.py").write_text(LIMITED)
    done = command(tmp_path / "limited.py", *overrides, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: hydra.run.dir: cannot write")
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_damaged_checkpoint_is_rejected(run, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    damaged = {
        "cut": content[: len(content) // 2],
        "flipped": content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
        "empty": b"",
        "foreign": b"not a checkpoint",
    }
    for damage in damaged.values():
        last.write_bytes(damage)
        with pytest.raises(CheckpointError, match=f"^ckpt_path={last}"):
            run("run", "resume=auto")


def test_a_clock_that_goes_backwards_changes_nothing(run, whole, monkeypatch):
    ticks = iter(range(10**6, 0, -1))
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: float(next(ticks)))
        _, other = run("backwards")
    assert other["val/loss"] == json.loads((whole / "summary.json").read_text())["val/loss"]
    assert other["seconds"] > 0
