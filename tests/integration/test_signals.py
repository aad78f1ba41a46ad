"""Commands that a signal ends: exit code 128 + its number, one line on stderr, the finished step saved."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
CPU = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.enable_progress_bar=false"]

# A command in which the function that is named first sends signals on its n-th call: to this process, or to the group.
SIGNALLED = """
import functools, importlib, os
def patch(command, module, name, call, number, times, group):
    home = importlib.import_module(module)
    *classes, name = name.split(".")
    for one in classes:
        home = getattr(home, one)
    original, calls = getattr(home, name), []
    @functools.wraps(original)
    def signalled(*arguments, **options):
        calls.append(name)
        if len(calls) == int(call) and os.environ.get("LOCAL_RANK", "0") == "0":
            for _ in range(int(times)):
                (os.killpg if group == "group" else os.kill)(os.getpid(), int(number))
        return original(*arguments, **options)
    setattr(home, name, signalled)
    return command
if __name__ == "__main__":
    from potstill.cli import main
    getattr(main, patch(*os.environ["SIGNALLED"].split(",")))()  # ranks are started with the arguments of the first
"""
STEP = ("potstill.training.language", "LanguageDistillation.training_step")


@pytest.fixture
def signalled(command, tmp_path):
    """Call `signalled("train", (module, name), overrides, ...)`: the process after its end."""
    script = tmp_path / "signalled.py"
    script.write_text(SIGNALLED)

    def start(name, place, overrides, *, number=signal.SIGTERM, call=1, times=1, group=""):
        how = ",".join([name, *place, str(call), str(int(number)), str(times), group])
        return command(script, *overrides, SIGNALLED=how)

    return start


@pytest.fixture(scope="module")
def overrides(text_file, eval_file, bert_teacher):
    return [
        "objective=kd", f"teacher.model={bert_teacher}", "data=text_files", f"data.train_files=[{text_file}]",
        f"data.eval_files=[{eval_file}]", "data.max_length=32", "data.num_proc=1", "data.batch_size=8", "logger=csv",
        "trainer.max_steps=6", "trainer.log_every_n_steps=1", *CPU,
    ]  # fmt: skip


def check(done, number, folder):
    """The code, one line that names the signal, and no results."""
    assert done.returncode == 128 + number, done.stderr
    lines = [line for line in done.stderr.splitlines() if signal.Signals(number).name in line]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert not (folder / "summary.json").exists()


def saved_step(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_training_saves_the_step_and_ends(number, signalled, overrides, tmp_path):
    """With a process that reads batches, which the signal to the group reaches as well."""
    where = [*overrides, "data.num_workers=1", f"hydra.run.dir={tmp_path}/run"]
    done = signalled("train", STEP, where, number=number, call=3, group="group" * (number == signal.SIGINT))
    check(done, number, tmp_path / "run")
    assert saved_step(tmp_path / "run") == 3


def test_a_second_signal_within_a_step_ends_at_once(signalled, overrides, tmp_path):
    where = [*overrides, "checkpoint.every_n_steps=2", f"hydra.run.dir={tmp_path}/run"]
    done = signalled("train", STEP, where, call=5, times=2)
    check(done, signal.SIGTERM, tmp_path / "run")
    assert saved_step(tmp_path / "run") == 4
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_the_final_validation_is_repeated(signalled, overrides, run, whole, tmp_path):
    done = signalled("train", ("potstill.runs.train", "_final_metrics"), [*overrides, f"hydra.run.dir={tmp_path}/run"])
    check(done, signal.SIGTERM, tmp_path / "run")
    assert saved_step(tmp_path / "run") == 6
    ends = [run("run", "resume=auto").folder, whole]
    losses = [json.loads((folder / "summary.json").read_text())["val/loss"] for folder in ends]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_binarizing_leaves_nothing_half_written(number, signalled, overrides, tmp_path):
    cache = tmp_path / "cache"
    place = ("potstill.data.corpus.store", "StoreWriter.add")
    where = [*overrides, "data.num_proc=2", f"data.cache={cache}", f"hydra.run.dir={tmp_path}/run"]
    check(signalled("train", place, where, number=number, group="group"), number, tmp_path / "run")
    assert not [path for path in cache.rglob("*") if path.suffix in (".npy", ".json")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_evaluation_ends_without_results(number, signalled, eval_file, bert_teacher, tmp_path):
    overrides = [
        "data=text_files", "data.max_length=32", "data.num_proc=1", *CPU, f"data.eval_files=[{eval_file}]",
        f"model={bert_teacher}", "benchmark=mlm", f"hydra.run.dir={tmp_path}/run",
    ]  # fmt: skip
    place = ("potstill.training.language", "LanguageDistillation.validation_step")
    check(signalled("evaluate", place, overrides, number=number), number, tmp_path / "run")


def test_rationale_generation_ends(signalled, arithmetic_files, tmp_path):
    overrides = [
        "stage=rationales", "generation.url=http://127.0.0.1:9/v1", "generation.model=m", "objective=step_by_step",
        "data=svamp", f"data.folder={tmp_path}", f"data.train_files=[{arithmetic_files}/train.jsonl]",
        f"hydra.run.dir={tmp_path}/run",
    ]  # fmt: skip
    check(
        signalled("train", ("potstill.runs.generate_rationales", "_rows"), overrides), signal.SIGTERM, tmp_path / "run"
    )


def test_a_sweep_ends_with_its_job(signalled, overrides, tmp_path):
    where = ["-m", "seed=1,2", *overrides, f"hydra.sweep.dir={tmp_path}/sweep"]
    done = signalled("train", STEP, where, number=signal.SIGINT, call=2)
    check(done, signal.SIGINT, tmp_path / "sweep" / "0")
    assert saved_step(tmp_path / "sweep" / "0") == 2
    assert not (tmp_path / "sweep" / "1").exists()


@pytest.mark.parametrize(
    ("place", "call", "step"),
    [(STEP, 2, 2), (("potstill.runs.train", "_final_metrics"), 1, 6)],
    ids=["step", "validation"],
)
def test_all_ranks_end(place, call, step, signalled, overrides, tmp_path):
    """The signal reaches the first of two ranks only."""
    where = [*overrides, "trainer.strategy=ddp", "trainer.devices=2", f"hydra.run.dir={tmp_path}/run"]
    check(signalled("train", place, where, call=call), signal.SIGTERM, tmp_path / "run")
    assert saved_step(tmp_path / "run") == step


EARLY = """
import os, runpy, signal, sys
class Stopping:
    def find_spec(self, name, *_):
        if name == os.environ["AT_IMPORT"]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Stopping())
script = sys.argv.pop(1)
sys.argv[0] = script
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("script", "module"),
    [
        *(("train.py", name) for name in ("potstill.cli.commands", "hydra", "omegaconf", "yaml", "torch")),
        *(("evaluate.py", name) for name in ("potstill.cli.commands", "transformers")),
    ],
)
def test_ctrl_c_during_imports(script, module, overrides, eval_file, bert_teacher, tmp_path):
    own = overrides
    if script == "evaluate.py":
        own = [f"model={bert_teacher}", "benchmark=mlm", "data=text_files", f"data.eval_files=[{eval_file}]"]
    (tmp_path / "early.py").write_text(EARLY)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "early.py"), str(ROOT / script), *own, f"hydra.run.dir={tmp_path}/run"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "AT_IMPORT": module}, capture_output=True, text=True, timeout=120,
        check=False, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    check(done, signal.SIGINT, tmp_path / "run")
    assert len(done.stderr.splitlines()) == 1, done.stderr
