"""The folder of a run: files of the user's own, two commands at once, a run over an earlier one."""

import json

import pytest
from filelock import FileLock

from potstill.errors import ConfigError
from potstill.runs import folder as run_folder
from potstill.runs.folder import EVALUATE, LOCK, MARK, TRAIN, begin, claim, release
from potstill.validation.generation import RATIONALES


@pytest.fixture
def config(kd, compose_config):
    return lambda *overrides: compose_config(*kd, *overrides, raw=True)


def files(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def leave_run(folder, config, *, done=True, kind=TRAIN):
    """What a run leaves in a folder."""
    claim(folder, kind, config)
    begin(folder, anew=True)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"state")
    for name in ("metrics.csv", "notes.txt", *(["summary.json"] if done else [])):
        (folder / name).write_text("old")
    if done:
        (folder / "student").mkdir()
    release(folder)


@pytest.mark.parametrize(
    ("own", "script", "overrides"),
    [
        ("student/model.safetensors", "train.py", []),
        ("report.html", "train.py", ["resume=auto"]),
        ("notes.txt", "train.py", ["overwrite=true"]),
        ("config.yaml", "train.py", ["stage=rationales", "generation.model=any"]),
        ("config.yaml", "evaluate.py", ["model=any"]),
        ("config.yaml", "train.py", ["-m", "seed=1"]),
    ],
)
def test_files_of_the_user_are_unchanged(own, script, overrides, command, tmp_path):
    folder = tmp_path / "mine"
    (folder / own).parent.mkdir(parents=True)
    (folder / own).write_text("mine")
    before = files(folder)
    place = "hydra.sweep.dir" if "-m" in overrides else "hydra.run.dir"
    done = command(script, *overrides, f"{place}={folder}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"hydra.run.dir={folder}" in done.stderr
    assert files(folder) == before


def test_a_job_of_a_sweep_keeps_files_of_the_user(command, source, tmp_path):
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / MARK).write_text("{}")
    (folder / "0").mkdir()
    (folder / "0" / "config.yaml").write_text("mine")
    done = command("train.py", "-m", "seed=1", *source, f"hydra.sweep.dir={folder}")
    assert done.returncode == 2
    assert f"hydra.run.dir={folder}/0" in done.stderr
    assert {path.name for path in (folder / "0").iterdir()} == {"config.yaml"}


def test_one_command_at_a_time(command, source, tmp_path):
    folder = tmp_path / "busy"
    folder.mkdir()
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text("running")
    with FileLock(folder / LOCK):
        before = files(folder)
        for script, own in (("train.py", source), ("evaluate.py", ["model=any"])):
            done = command(script, *own, "seed=-1", f"hydra.run.dir={folder}")
            assert done.returncode == 2
            assert f"hydra.run.dir={folder}" in done.stderr
            assert done.stderr.count("\n") == 1
        assert files(folder) == before


@pytest.mark.parametrize("done", [True, False])
def test_a_new_run_over_an_earlier_one_is_rejected(done, config, tmp_path):
    leave_run(tmp_path, config(), done=done)
    before = files(tmp_path)
    with pytest.raises(ConfigError, match=f"hydra.run.dir={tmp_path}: .*resume=auto.*overwrite=true"):
        claim(tmp_path, TRAIN, config())
    with pytest.raises(ConfigError, match="overwrite=true"):
        claim(tmp_path, EVALUATE, config())
    with pytest.raises(ConfigError, match="overwrite=true with resume=auto"):
        claim(tmp_path, TRAIN, config("overwrite=true", "resume=auto"))
    with pytest.raises(ConfigError, match="overwrite=true with ckpt_path="):
        claim(tmp_path, TRAIN, config("overwrite=true", f"ckpt_path={tmp_path}/checkpoints/last.ckpt"))
    with pytest.raises(ConfigError, match="overwrite=true"):
        claim(tmp_path, TRAIN, config(f"ckpt_path={tmp_path}/elsewhere/last.ckpt"))
    assert files(tmp_path) == before


def test_overwriting_removes_the_old_run(config, tmp_path):
    leave_run(tmp_path, config())
    (tmp_path / ".student.123.new").mkdir()
    claim(tmp_path, TRAIN, config("overwrite=true"))
    begin(tmp_path, anew=True)
    release(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} - {LOCK} == {MARK, "notes.txt"}


@pytest.mark.parametrize("how", ["resume=auto", "ckpt_path={}/checkpoints/last.ckpt"])
def test_a_resumed_run_keeps_everything_but_its_summary(how, config, tmp_path):
    leave_run(tmp_path, config())
    for torn in (".student.123.new", ".student.123.old"):
        (tmp_path / torn).mkdir()
    claim(tmp_path, TRAIN, config(how.format(tmp_path)))
    begin(tmp_path, anew=False)
    release(tmp_path)
    left = {path.name for path in tmp_path.iterdir()} - {LOCK}
    assert left == {MARK, "notes.txt", "student", "checkpoints", "metrics.csv"}


@pytest.mark.parametrize("kind", [EVALUATE, RATIONALES])
def test_the_same_command_may_run_again(kind, config, tmp_path):
    leave_run(tmp_path, config(), kind=kind)
    claim(tmp_path, kind, config())
    release(tmp_path)
    with pytest.raises(ConfigError, match="overwrite=true"):
        claim(tmp_path, TRAIN, config())
    if kind == EVALUATE:
        with pytest.raises(ConfigError, match="overwrite=true"):
            claim(tmp_path, kind, config("seed=7"))


def test_the_record_of_a_command_is_the_runs_when_that_begins(config, tmp_path):
    """Hydra has written it elsewhere until then."""

    def stage(text):
        (tmp_path / ".hydra.new").mkdir()
        (tmp_path / ".hydra.new" / "overrides.yaml").write_text(text)

    claim(tmp_path, TRAIN, config())
    stage("first")
    begin(tmp_path, anew=True)
    release(tmp_path)
    claim(tmp_path, TRAIN, config())
    stage("rejected")
    release(tmp_path)
    assert (tmp_path / ".hydra" / "overrides.yaml").read_text() == "first"
    assert not (tmp_path / ".hydra.new").exists()
    assert json.loads((tmp_path / MARK).read_text())["command"] == TRAIN


def test_a_folder_with_nothing_but_a_record_is_free(config, tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "train.log").write_text("")
    (tmp_path / "wandb").mkdir()
    claim(tmp_path, TRAIN, config())
    assert run_folder.is_claimed(tmp_path)
    release(tmp_path)
    assert not run_folder.is_claimed(tmp_path)
