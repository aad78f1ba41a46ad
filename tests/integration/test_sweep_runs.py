"""A sweep over GLUE by the command line: jobs that fail do not end it, and its tables are made of the others."""

import csv
import json
import random

import pytest

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def glue(tmp_path_factory, words):
    """A folder as GLUE's own download, with two of its tasks; texts of the first half of the words are labelled 1."""
    folder, half = tmp_path_factory.mktemp("glue"), len(words) // 2
    draw = random.Random(3)
    for task in ("CoLA", "SST-2"):
        (folder / task).mkdir()
        for part, count in (("train", 64), ("dev", 24)):
            rows = [] if task == "CoLA" else ["sentence\tlabel"]
            for number in range(count):
                own = words[:half] if number % 2 else words[half:]
                text = " ".join(draw.choices(own, k=8))
                rows.append(f"s\t{number % 2}\t\t{text}" if task == "CoLA" else f"{text}\t{number % 2}")
            (folder / task / f"{part}.tsv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, glue, bert_tokenizer, make_bert, command):
    """The finished command, and the folder of its sweep."""
    encoder = make_bert(tmp_path_factory.mktemp("encoder"), bert_tokenizer, layers=1, initializer_range=0.05)
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    done = command(
        "train.py", "objective=finetune", "benchmark=glue", f"benchmark.folder={glue}", f"student.model={encoder}",
        "-m", "seed=1,2", "logger=csv", "trainer.max_steps=4", "data.max_length=16", "data.batch_size=16",
        "optimizer.lr=3e-3", "trainer.enable_progress_bar=false", f"hydra.sweep.dir={folder}",
    )  # fmt: skip
    return done, folder


def test_the_other_jobs_continue_and_each_error_is_reported_once(sweep):
    done, folder = sweep
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(set(errors)) == 7  # of two seeds each
    assert any("has no train" in line and "of mrpc" in line for line in errors)
    assert "Traceback" not in done.stderr
    assert [(folder / str(job) / "summary.json").is_file() for job in range(18)] == [True] * 4 + [False] * 14
    assert "of wnli" in (folder / "17" / "error.txt").read_text()


def test_glue_has_its_table(sweep):
    done, folder = sweep
    with (folder / "glue.csv").open(newline="") as file:
        rows = {row["task"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["cola", "sst2", "average_of_present"]
    own = [json.loads((folder / str(job) / "summary.json").read_text()) for job in range(4)]
    cola = [100 * summary["val/matthews"] for summary in own[:2]]
    sst2 = [100 * summary["val/accuracy"] for summary in own[2:]]
    assert float(rows["cola"]["mean"]) == pytest.approx(sum(cola) / 2)
    assert float(rows["sst2"]["mean"]) == pytest.approx(sum(sst2) / 2)
    assert float(rows["average_of_present"]["mean"]) == pytest.approx((sum(cola) + sum(sst2)) / 4)
    assert [rows[task]["runs"] for task in rows] == ["2", "2", "2"]
    assert "Missing: MRPC" in (folder / "report.html").read_text()
    assert "average of present" in done.stdout


def test_the_sweep_is_tabulated(sweep, command, tmp_path):
    _, folder = sweep
    out = tmp_path / "out"
    done = command("evaluate.py", f"sweep={folder}", f"hydra.run.dir={out}")
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["sweep/jobs"], summary["sweep/failed"]) == (18, 14)
    assert summary["benchmark=sst2/val/accuracy/seeds"] == 2
    assert summary["glue/cola/matthews"] == pytest.approx(100 * summary["benchmark=cola/val/matthews/mean"])
    with (out / "sweep.csv").open(newline="") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["done"] * 4 + ["failed"] * 14
    assert (out / "report.html").is_file()


def test_a_folder_without_a_sweep_is_rejected(command, tmp_path):
    done = command("evaluate.py", f"sweep={tmp_path}/nowhere", f"hydra.run.dir={tmp_path}/out")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: sweep.folder={tmp_path}/nowhere: ")
    assert len(done.stderr.splitlines()) == 1


def test_all_of_glue_in_one_run_is_rejected(command, tmp_path):
    done = command("train.py", "objective=finetune", "benchmark=glue", f"hydra.run.dir={tmp_path}/out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: benchmark=glue: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
