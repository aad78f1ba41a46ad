"""A disk that is full, at each moment of a command: one line that names the file, exit code 2, nothing half written.

The disk is a small tmpfs of the process's own, or a limit on the size of files stands for it.
"""

import shlex
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from potstill.runs.folder import MARK

pytestmark = pytest.mark.integration

# A command whose disk is filled, but for some bytes, when the function that is named is called for the n-th time.
FILLED = """
import ctypes, functools, importlib, os, resource, shutil
from pathlib import Path
def mount(folder, kept):
    user, group, libc = os.getuid(), os.getgid(), ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(0x10000000 | 0x20000) == 0, os.strerror(ctypes.get_errno())  # CLONE_NEWUSER, CLONE_NEWNS
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(text)
    assert libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None) == 0  # MS_REC, MS_PRIVATE
    assert libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, b"size=3m") == 0, os.strerror(ctypes.get_errno())
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if os.path.isdir(f"{folder}/run"):
            shutil.copytree(f"{folder}/run", kept)
        os._exit(code)
def fill(folder, left):
    with open(os.path.join(folder, "filler"), "ab", buffering=0) as file:
        size = 1 << 20
        while size >= 4096:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
        file.truncate(max(0, os.path.getsize(file.name) - left))
def patch(command, folder, module, name, call, left):
    home = importlib.import_module(module)
    *classes, name = name.split(".")
    for one in classes:
        home = getattr(home, one)
    original, calls = getattr(home, name), []
    @functools.wraps(original)
    def filled(*arguments, **options):
        calls.append(name)
        if len(calls) == int(call):
            if folder:
                fill(folder, int(left))
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(left), int(left)))
        return original(*arguments, **options)
    setattr(home, name, filled)
    return command
if __name__ == "__main__":
    if "KEPT" in os.environ:
        mount(os.environ["FILLED"].split(",")[1], os.environ["KEPT"])
    from potstill.cli import main
    getattr(main, patch(*os.environ["FILLED"].split(",")))()
"""
CHECKPOINT = ("potstill.training.callbacks", "LastCheckpoint.save")
STUDENT = ("potstill.methods.base", "Method.save")


@pytest.fixture(scope="module")
def may_mount(tmp_path_factory):
    """Where a process may mount a disk of its own."""
    place = shlex.quote(str(tmp_path_factory.mktemp("mount")))
    mount = ["unshare", "--mount", "--map-root-user", "sh", "-c", f"mount -t tmpfs -o size=64k tmpfs {place}"]
    try:
        allowed = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("mounting is not permitted here")


@pytest.fixture
def start(command, tmp_path):
    """Call `start("train", place, call, left, overrides, mounted=...)`: the process and its run folder."""
    script, disk, kept = tmp_path / "filled.py", tmp_path / "disk", tmp_path / "kept"
    script.write_text(FILLED)
    disk.mkdir()

    def run(name, place, call, left, overrides, *, mounted):
        folder = disk / "run" if mounted else kept
        filled = ",".join([name, str(disk if mounted else ""), *place, str(call), str(left)])
        own = {"KEPT": str(kept)} if mounted else {}
        return command(script, *overrides, f"hydra.run.dir={folder}", FILLED=filled, **own), kept

    return run


@pytest.fixture
def overrides(text_file, eval_file, bert_teacher):
    return [
        "objective=kd", f"teacher.model={bert_teacher}", "data=text_files", f"data.train_files=[{text_file}]",
        f"data.eval_files=[{eval_file}]", "data.max_length=32", "data.num_proc=1", "data.batch_size=8", "logger=csv",
        "trainer.max_steps=6", "trainer.log_every_n_steps=1", "trainer.enable_progress_bar=false",
        "checkpoint.every_n_steps=2", "trainer.accelerator=cpu",
    ]  # fmt: skip


def check(done, folder, names):
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert names in lines[0], lines
    assert any(reason in lines[0] for reason in ("No space left", "File too large")), lines
    left = [path.name for path in folder.rglob("*")]
    assert not [name for name in left if name.endswith((".tmp", ".new", ".old"))], left
    assert "summary.json" not in left


@pytest.mark.parametrize(
    ("place", "call", "left", "names"),
    [
        pytest.param(CHECKPOINT, 2, 50_000, "checkpoints/last.ckpt", id="checkpoint"),
        pytest.param(CHECKPOINT, 2, 0, "checkpoints/last.ckpt", id="checkpoint-at-its-start"),
        pytest.param(STUDENT, 1, 60_000, "run/student", id="weights"),
        pytest.param(STUDENT, 1, 112_000, "run/student", id="tokenizer"),
        pytest.param(("potstill.runs.train", "_report"), 1, 0, "report.html", id="report"),
        pytest.param(("potstill.reporting.loggers", "MetricsFile.log_metrics"), 1, 0, "metrics.csv", id="metrics"),
    ],
)
def test_a_run_on_a_full_disk(place, call, left, names, may_mount, start, overrides):
    done, folder = start("train", place, call, left, overrides, mounted=True)
    check(done, folder, names)
    if place == CHECKPOINT:  # the one before
        assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert (folder / "student").exists() == (names == "report.html")


@pytest.mark.parametrize(("place", "call"), [(CHECKPOINT, 2), (STUDENT, 1)], ids=["checkpoint", "student"])
def test_a_run_above_a_limit_on_files_keeps_its_earlier_files(place, call, start, run, overrides, tmp_path):
    before = load_file(run("kept", "trainer.max_steps=3").folder / "student" / "model.safetensors")
    (tmp_path / "kept" / "summary.json").unlink()
    (tmp_path / "kept" / MARK).write_text('{"command": "train"}')
    done, folder = start("train", place, call, 50_000, [*overrides, "resume=auto"], mounted=False)
    check(done, folder, "checkpoints/last.ckpt" if place == CHECKPOINT else "kept/student")
    after = load_file(folder / "student" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == (4 if place == CHECKPOINT else 6)


@pytest.mark.parametrize(
    "place", [("potstill.data.corpus.store", "StoreWriter.close"), ("potstill.data.common.store", "ShardWriter.finish")]
)
def test_a_cache_on_a_full_disk(place, may_mount, start, overrides, tmp_path):
    """Binarized text, and outputs of a teacher."""
    caches = ["teacher/cache=on", "objective.terms.cos.weight=0", f"data.cache={tmp_path}/disk/cache"]
    done, folder = start("train", place, 1, 0, [*overrides, *caches], mounted=True)
    check(done, folder, f"{tmp_path}/disk/cache")


def test_an_evaluation_on_a_full_disk(may_mount, start, eval_file, bert_teacher):
    overrides = [
        "data=text_files", "data.max_length=32", "data.num_proc=1", f"data.eval_files=[{eval_file}]",
        f"model={bert_teacher}", "benchmark=mlm", "trainer.enable_progress_bar=false",
    ]  # fmt: skip
    done, folder = start("evaluate", ("potstill.runs.evaluate", "write_report"), 1, 0, overrides, mounted=True)
    check(done, folder, "report.html")
