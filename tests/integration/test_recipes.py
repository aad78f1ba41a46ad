"""Recipes of several stages by the command line: whole, killed, stopped, failing, changed, swept."""

import json
import random
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.integration

STAGES = ("teacher", "student", "alone", "kd", "table")
SMALL = [
    "data.max_length=16", "data.batch_size=8", "logger=csv", "trainer.enable_progress_bar=false",
    "checkpoint.every_n_steps=1", "trainer.log_every_n_steps=1",
]  # fmt: skip
TIMED = ("seconds", "tokens_per_second", "peak_memory_gb", "latency")


@pytest.fixture(scope="module")
def rows(tmp_path_factory, words):
    """A folder as SST-2's own: texts of the first half of the words are labelled 1."""
    folder, half, draw = tmp_path_factory.mktemp("sst2"), len(words) // 2, random.Random(0)
    for part, count in (("train", 96), ("dev", 40)):
        lines = [
            f"{' '.join(draw.choices(words[:half] if i % 2 else words[half:], k=draw.randint(4, 9)))}\t{i % 2}"
            for i in range(count)
        ]
        (folder / f"{part}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return folder


@pytest.fixture(scope="module")
def recipe(rows, tmp_path_factory, bert_tokenizer, make_bert):
    """The command line of a recipe, less its folder."""
    encoder = make_bert(tmp_path_factory.mktemp("encoder"), bert_tokenizer, initializer_range=0.05)
    return [
        "experiment=textbrewer", "benchmark=sst2", f"benchmark.folder={rows}", f"teacher.model={encoder}", *SMALL,
        "trainer.max_epochs=2", "objective.terms.label.weight=0.5",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(recipe, command, tmp_path_factory):
    """The folder of a recipe that nothing interrupted; its name has what Hydra's grammar gives a meaning."""
    folder = tmp_path_factory.mktemp("whole") / "a=1, it's (b)"
    quoted = str(folder).replace("'", "\\'")
    done = command("train.py", *recipe, f"hydra.run.dir='{quoted}'")
    assert done.returncode == 0, done.stderr
    return folder


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def same_end(one, other):
    ends = [summary_of(folder) for folder in (one, other)]
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        if not any(timed in name for timed in TIMED):
            assert value == ends[1][name], name
    for stage in STAGES[:-1]:
        weights = [load_file(folder / stage / "student" / "model.safetensors") for folder in (one, other)]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0]), stage


@pytest.fixture
def begun(recipe, started_command):
    """Call `begun(folder, mark, *further)`: a recipe's process, once `mark` is in its folder."""

    def start(folder, mark, *further):
        process = started_command("train.py", *recipe, *further, f"hydra.run.dir={folder}")
        until = time.monotonic() + 200
        while not (folder / mark).exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        assert (folder / mark).exists()
        return process

    return start


def test_a_whole_recipe(whole):
    summary = summary_of(whole)
    assert {path.name for path in whole.iterdir() if path.is_dir()} == {*STAGES, ".hydra"}
    for stage in STAGES[:-1]:
        assert (whole / stage / "student" / "model.safetensors").is_file()
        own = summary_of(whole / stage)
        assert summary[f"{stage}/val/accuracy"] == own["val/accuracy"]
        assert summary[f"{stage}/train/steps"] == (0 if stage == "student" else 24)
    for model in ("teacher", "alone", "kd"):
        assert summary[f"table/{model}/test/accuracy"] == pytest.approx(summary[f"{model}/val/accuracy"])
    assert summary["seed"] == 42
    assert summary["table/kd/parameters"] < summary["table/teacher/parameters"]
    assert summary["kd/train/loss_match_hidden_mse_3"] > 0
    assert "alone/train/loss_match_hidden_mse_3" not in summary
    assert "Final figures" in (whole / "report.html").read_text()
    # The baseline and the distilled student begin as the encoder's own first layers.
    config = json.loads((whole / "student" / "student" / "config.json").read_text())
    assert config["num_hidden_layers"] == 3


def test_a_pipeline_killed_in_its_second_training_ends_the_same(whole, recipe, command, begun, tmp_path):
    folder = tmp_path / "killed"
    process = begun(folder, "alone/checkpoints/last.ckpt")
    process.kill()
    process.communicate()
    times = [(folder / stage / "summary.json").stat().st_mtime_ns for stage in STAGES[:2]]
    time.sleep(1)  # the kernel may finish a rename that it had begun when the stage was killed
    step = torch.load(folder / "alone/checkpoints/last.ckpt", weights_only=True)["global_step"]
    time.sleep(1)  # a stage that outlived its recipe would write further checkpoints, or end
    assert not (folder / "alone" / "summary.json").exists()
    assert torch.load(folder / "alone/checkpoints/last.ckpt", weights_only=True)["global_step"] == step
    done = command("train.py", *recipe, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    assert [(folder / stage / "summary.json").stat().st_mtime_ns for stage in STAGES[:2]] == times
    assert "stage teacher (1 of 5): done" in done.stderr
    assert f"resumed from {folder}/alone/checkpoints/last.ckpt" in done.stderr
    same_end(whole, folder)


def test_a_signal_is_passed_on_to_the_stage(begun, tmp_path):
    folder = tmp_path / "stopped"
    process = begun(folder, "teacher/checkpoints/last.ckpt", "trainer.max_epochs=50")
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143, stderr
    assert stderr.splitlines()[-1].startswith("stage teacher: stopped by SIGTERM")
    assert "last.ckpt" in stderr  # of the stage
    assert not (folder / "student").exists()


def test_a_finished_pipeline_is_only_read_and_a_changed_one_rejected(whole, recipe, command):
    quoted = str(whole).replace("'", "\\'")
    folder = f"hydra.run.dir='{quoted}'"
    before = {path: path.stat().st_mtime_ns for stage in STAGES for path in (whole / stage).rglob("*")}
    done = command("train.py", *recipe, folder, "logger.run=other", timeout=60)
    assert done.returncode == 0, done.stderr
    changed = command("train.py", *recipe, folder, "objective.temperature=4")
    assert changed.returncode == 2
    assert changed.stderr.startswith("error: stage kd: objective.temperature=4.0, but it was started with 8.0; ")
    assert changed.stderr.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for stage in STAGES for path in (whole / stage).rglob("*")} == before


def test_a_failing_stage_ends_the_pipeline_and_can_be_corrected(recipe, rows, command, tmp_path):
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "dev.tsv").write_text((rows / "dev.tsv").read_text())
    (torn / "train.tsv").write_text("sentence\tlabel\nthe man\tperhaps\n")
    given = [*recipe, f"benchmark.folder={torn}", f"hydra.run.dir={tmp_path}/run"]
    done = command("train.py", *given)
    assert done.returncode == 2
    *_, reason, last = done.stderr.splitlines()
    assert "perhaps" in reason
    assert last.startswith("error: stage teacher: exit code 2")
    assert not (tmp_path / "run" / "student").exists()
    # It left nothing to go on from, so it is no change of a stage that was begun.
    one = "stages=[{name: teacher, overrides: ['objective=finetune',"
    one += "'student=pretrained','student.model=${teacher.model}','student.layers=null']}]"
    corrected = command("train.py", *recipe, f"hydra.run.dir={tmp_path}/run", one, "trainer.max_steps=1")
    assert corrected.returncode == 0, corrected.stderr
    assert summary_of(tmp_path / "run")["teacher/train/steps"] == 1


def test_a_sweep_of_recipes(recipe, command, tmp_path):
    one = "stages=[{name: student, overrides: ['objective=finetune','trainer.max_steps=0']}]"
    done = command("train.py", *recipe, one, "-m", "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep")
    assert done.returncode == 0, done.stderr
    for job, seed in enumerate((1, 2)):
        assert summary_of(tmp_path / "sweep" / str(job))["seed"] == seed
        assert summary_of(tmp_path / "sweep" / str(job) / "student")["seed"] == seed
    table = command("evaluate.py", f"sweep={tmp_path}/sweep", f"hydra.run.dir={tmp_path}/table")
    assert table.returncode == 0, table.stderr
    assert summary_of(tmp_path / "table")["sweep/jobs"] == 2
