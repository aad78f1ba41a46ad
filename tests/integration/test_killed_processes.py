"""Processes that are killed, or whose disk is full, at the worst moment: evaluations, checkpoints, readers, ranks."""

import errno
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from potstill.errors import TrainingError
from potstill.training.callbacks import LastCheckpoint
from potstill.training.language import LanguageDistillation

pytestmark = pytest.mark.integration
CPU = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.enable_progress_bar=false"]
RESULTS = ("config.yaml", "report.html", "summary.json")
ENDS_WITHIN = 120  # seconds after one of two ranks is lost, on a machine with other work


@pytest.fixture(scope="module")
def overrides(text_file, eval_file, bert_teacher):
    return [
        "objective=kd", f"teacher.model={bert_teacher}", "data=text_files", f"data.train_files=[{text_file}]",
        f"data.eval_files=[{eval_file}]", "data.max_length=32", "data.num_proc=1", "data.batch_size=8", "logger=csv",
        "trainer.max_steps=6", "trainer.log_every_n_steps=1", "checkpoint.every_n_steps=2", *CPU,
    ]  # fmt: skip


@pytest.fixture
def evaluation(eval_file, bert_teacher):
    return [
        "data=text_files", "data.max_length=32", "data.num_proc=1", *CPU, f"data.eval_files=[{eval_file}]",
        f"model={bert_teacher}", "benchmark=mlm",
    ]  # fmt: skip


@pytest.fixture
def evaluator(evaluated, evaluation):
    return lambda folder, *further: evaluated(folder, *evaluation, *further).value


def same_end(one, other):
    weights = [load_file(folder / "student" / "model.safetensors") for folder in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    ends = [json.loads((folder / "summary.json").read_text())["val/loss"] for folder in (one, other)]
    assert ends[0] == ends[1]


# evaluate.py, killed when the result that is named first is half written.
EVALUATION_KILLED = """
import os, signal, sys
from pathlib import Path
from potstill.cli import main
named, write = sys.argv.pop(1), Path.write_text
def torn(path, text, *arguments, **options):
    if path.name.startswith(f".{named}."):
        write(path, text[: len(text) // 2], *arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, text, *arguments, **options)
Path.write_text = torn
main.evaluate()
"""


def test_a_killed_evaluation_leaves_no_half_results(evaluator, evaluation, command, tmp_path):
    """The summary is the last to be written: without it the evaluation is not done, and the same command does it."""
    folder, script = tmp_path / "killed", tmp_path / "killed.py"
    script.write_text(EVALUATION_KILLED)
    done = command(script, "summary.json", *evaluation, f"hydra.run.dir={folder}")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (folder / "summary.json").exists()
    assert (folder / "report.html").read_text().endswith("</html>\n")
    assert evaluator(folder) == evaluator(tmp_path / "whole")
    assert not list(folder.glob(".summary.json*"))


@pytest.mark.parametrize("full", RESULTS)
def test_a_full_disk_leaves_no_half_results(full, evaluator, monkeypatch, tmp_path):
    """Nothing is left of the result that the disk has no space for; the same evaluation succeeds afterwards."""
    original = Path.write_text

    def short(path, text, *arguments, **options):
        if path.name.startswith(f".{full}."):
            original(path, text[: len(text) // 2], *arguments, **options)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return original(path, text, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", short)
        with pytest.raises(OSError, match="No space left"):
            evaluator(tmp_path / "full")
    left = {path.name for path in (tmp_path / "full").iterdir()}
    assert left.intersection(RESULTS) == set(RESULTS[: RESULTS.index(full)])
    assert not [name for name in left if name.startswith(".")]
    evaluator(tmp_path / "full")
    assert all((tmp_path / "full" / name).is_file() for name in RESULTS)


# evaluate.py, whose results do not fit: a limit on the size of files stands for a full disk.
EVALUATION_LIMITED = """
import resource, signal
from potstill.cli import main
from potstill.runs import evaluate as evaluate_run
leave = evaluate_run._write
def full(*arguments):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
    return leave(*arguments)
evaluate_run._write = full
main.evaluate()
"""


def test_an_evaluation_without_space_is_one_line(evaluation, command, tmp_path):
    folder, script = tmp_path / "full", tmp_path / "full.py"
    script.write_text(EVALUATION_LIMITED)
    done = command(script, *evaluation, f"hydra.run.dir={folder}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: hydra.run.dir: cannot write")
    assert "Traceback" not in done.stderr
    assert not any((folder / name).exists() for name in RESULTS)


# train.py, killed when the checkpoint of step 4 is half written.
CHECKPOINT_KILLED = """
import os, signal, torch
from potstill.cli import main
save = torch.save
def torn(state, file, *arguments, **options):
    if isinstance(state, dict) and state.get("global_step") == 4:
        file.write(b"half a checkpoint")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(state, file, *arguments, **options)
torch.save = torn
main.train()
"""


def test_a_process_killed_in_a_checkpoint_is_resumed_from_the_last_whole_one(run, whole, overrides, command, tmp_path):
    folder, script = tmp_path / "killed", tmp_path / "killed.py"
    script.write_text(CHECKPOINT_KILLED)
    done = command(script, *overrides, f"hydra.run.dir={folder}")
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = folder / "checkpoints"
    assert torch.load(left / "last.ckpt", weights_only=True)["global_step"] == 2
    assert [path.read_bytes() for path in left.glob(".*.tmp")] == [b"half a checkpoint"]
    same_end(whole, run("killed", "resume=auto").folder)
    assert [path.name for path in left.iterdir()] == ["last.ckpt"]


def test_a_reader_that_dies_ends_the_run_in_one_line(run, whole, monkeypatch, tmp_path):
    """The process that reads batches is killed in step 3; the run is resumed from the checkpoint of step 2."""

    def kill_a_reader(self, trainer, *arguments):
        if trainer.global_step == 3:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
            time.sleep(1)  # the next step finds it gone, not on the way
        return original(self, trainer, *arguments)

    original = LastCheckpoint.on_train_batch_end
    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_train_batch_end", kill_a_reader)
        with pytest.raises(TrainingError) as error:
            run("killed", "data.num_workers=1")
    line = str(error.value)
    assert line.startswith("data.num_workers=1: ")
    assert "resume=auto" in line
    assert "\n" not in line
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 2
    same_end(whole, run("killed", "resume=auto").folder)


def test_an_evaluation_whose_reader_dies_ends_in_one_line(evaluator, monkeypatch, tmp_path):
    def kill_a_reader(self, *arguments):
        if readers := multiprocessing.active_children():
            os.kill(readers[0].pid, signal.SIGKILL)
            time.sleep(1)
        return original(self, *arguments)

    original = LanguageDistillation.validation_step
    with monkeypatch.context() as patch:
        patch.setattr(LanguageDistillation, "validation_step", kill_a_reader)
        with pytest.raises(TrainingError) as error:
            evaluator(tmp_path / "killed", "data.num_workers=1", "data.eval_batch_size=1")
    line = str(error.value)
    assert line.startswith("data.num_workers=1: ")
    assert "the same command again" in line
    assert "\n" not in line
    assert not (tmp_path / "killed" / "summary.json").exists()


def test_a_lost_connection_to_a_rank_is_one_line(run, monkeypatch):
    """What gloo says of it; any other error of torch's stays what it is."""

    def step(*_):
        raise RuntimeError(f"[gloo/transport/tcp/pair.cc:553] {said} [127.0.0.1]:45487.\nFurther advice.")

    monkeypatch.setattr(LanguageDistillation, "training_step", step)
    said = "Connection closed by peer"
    with pytest.raises(TrainingError) as error:
        run("lost")
    line = str(error.value)
    assert line.startswith("trainer.strategy=auto: ")
    assert "resume=auto" in line
    assert "\n" not in line
    said = "Shapes do not fit"
    with pytest.raises(RuntimeError, match="Shapes do not fit"):
        run("other")


# train.py, whose second rank is killed after step 3 if the first argument says so.
RANK_KILLED = """
import os, signal, sys
from potstill.cli import main
if sys.argv[1] == "killed":
    from potstill.training.callbacks import LastCheckpoint
    original = LastCheckpoint.on_train_batch_end
    def dies(self, trainer, *arguments):
        if trainer.global_step == 3 and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, trainer, *arguments)
    LastCheckpoint.on_train_batch_end = dies
del sys.argv[1]
main.train()
"""


def test_the_loss_of_a_rank_ends_the_other_and_the_run_can_be_resumed(overrides, torchrun, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK_KILLED)

    def start(how, folder, timeout, *further):
        return torchrun(
            script, how, *overrides, "strategy=torchrun", "trainer.devices=2", f"hydra.run.dir={folder}", *further,
            timeout=timeout,
        )  # fmt: skip

    whole = start("whole", tmp_path / "whole", 300)
    assert whole.returncode == 0, whole.stderr[-2000:]
    lost = start("killed", tmp_path / "lost", ENDS_WITHIN)
    assert lost.returncode != 0
    assert not (tmp_path / "lost" / "summary.json").exists()
    again = start("whole", tmp_path / "lost", 300, "resume=auto")
    assert again.returncode == 0, again.stderr[-2000:]
    same_end(tmp_path / "whole", tmp_path / "lost")
