"""Folders of sweeps: reading, groups over seeds, tables."""

import csv
import json
import math
import statistics
import subprocess
import sys

import pytest
import yaml

from potstill.errors import ConfigError
from potstill.reporting.sweeps import UNFINISHED, grouped, metrics_of, read_sweep, varying
from potstill.reporting.tables import Spread
from potstill.runs.checks import validate_evaluate
from potstill.runs.sweep_tables import compare, write_glue


@pytest.fixture
def add_job(tmp_path):
    """Creates the folder of a job: `add_job("0", ["seed=1"], {"val/accuracy": 0.5})`."""

    def add(name, overrides=None, summary=None, config=None, error=None):
        job = tmp_path / "sweep" / name
        (job / ".hydra").mkdir(parents=True)
        if overrides is not None:
            (job / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
        if config is not None:
            (job / "config.yaml").write_text(yaml.safe_dump(config))
        if summary is not None:
            own = {"seed": 1, "git_commit": None, "versions": "torch 2", "flag": True}
            (job / "summary.json").write_text(json.dumps(summary | own))
        if error is not None:
            (job / "error.txt").write_text(f"{error}\n")
        return job

    return add


@pytest.fixture
def sweep(tmp_path, add_job):
    """Two temperatures with three seeds each; one job failed, one has no summary."""
    for number, (temperature, seed) in enumerate((t, s) for t in (1, 10) for s in (1, 2, 3)):
        options = ["objective=kd", f"objective.temperature={temperature}", f"seed={seed}"]
        summary = {"val/perplexity": 10.0 * temperature + seed, "val/loss": 0.5 * seed, "seconds": 1.0}
        if number == 4:
            add_job(str(number), options, error="data.train_files: gone")
        else:
            add_job(str(number), options, None if number == 5 else summary)
    (tmp_path / "sweep" / "multirun.yaml").write_text("{}\n")
    return tmp_path / "sweep"


def test_jobs_are_read_and_failures_listed(sweep):
    jobs = read_sweep(sweep)
    assert [job.name for job in jobs] == ["0", "1", "2", "3", "4", "5"]
    assert jobs[0].figures == {"val/perplexity": 11.0, "val/loss": 0.5, "seconds": 1.0}
    assert [job.error for job in jobs] == [None] * 4 + ["data.train_files: gone", UNFINISHED]
    assert varying(jobs) == ["objective.temperature", "seed"]


def test_jobs_are_in_numerical_order_and_may_be_nested(tmp_path, add_job):
    for name in ("10", "9", "a/lr=1", "a/lr=1/student"):
        add_job(name, ["seed=1"], {})
    assert [job.name for job in read_sweep(tmp_path / "sweep")] == ["a/lr=1", "9", "10"]


def test_groups_are_over_seeds(sweep):
    one, ten = grouped(read_sweep(sweep), ["objective.temperature"])
    assert one.label == "objective.temperature=1"
    assert one.values("val/perplexity") == [11.0, 12.0, 13.0]
    assert (len(ten.jobs), ten.failed) == (1, 2)


def test_spread_is_the_sample_standard_deviation():
    values = [0.3, 0.7, 0.55, 0.9]
    spread = Spread.of(values)
    assert spread.mean == pytest.approx(statistics.mean(values))
    assert spread.deviation == pytest.approx(statistics.stdev(values))
    assert Spread.of([0.5]).deviation is None
    assert Spread.of([]) is None
    assert math.isnan(Spread.of([1.0, math.nan]).mean)  # a diverged run is visible


def test_without_overrides_the_varying_options_are_those_of_the_configurations(tmp_path, add_job):
    for number, (name, labels, lr) in enumerate([("cola", ["a"], 0.1), ("sst2", ["b"], 0.1), ("sst2", ["b"], 0.2)]):
        config = {"benchmark": {"name": name, "labels": labels}, "optimizer": {"lr": lr}, "seed": 1}
        add_job(str(number), None, {}, config)
    jobs = read_sweep(tmp_path / "sweep")
    assert varying(jobs) == ["benchmark.name", "optimizer.lr"]  # the labels follow from the name
    assert jobs[2].settings["optimizer.lr"] == "0.2"
    assert jobs[2].benchmark == "sst2"


def test_incomplete_files_are_errors_of_their_jobs(tmp_path, add_job):
    job = add_job("0", ["seed=1"])
    (job / "summary.json").write_text('{"val/loss": 1')
    (add_job("1") / ".hydra" / "overrides.yaml").write_text("- 'seed=1\n- [")
    (add_job("2", ["seed=3"]) / "summary.json").write_text("[]")
    jobs = read_sweep(tmp_path / "sweep")
    errors = ["summary.json: cannot be read", UNFINISHED, "summary.json: holds no figures"]
    assert [found.error for found in jobs] == errors


def test_metrics_of(sweep):
    jobs = read_sweep(sweep)
    assert metrics_of(jobs, None) == ["val/perplexity", "val/loss"]
    assert metrics_of(jobs, ["seconds"]) == ["seconds"]
    with pytest.raises(ConfigError, match=r"^sweep.metrics=\[val/f1\]: .*val/perplexity"):
        metrics_of(jobs, ["val/f1"])


def test_a_metric_that_equals_another_in_every_run_is_shown_once(tmp_path, add_job):
    for number, accuracy in enumerate((0.5, 0.75)):
        figures = {"val/text_accuracy": accuracy, "val/loss": 1.0, "val/f1": 0.5, "val/accuracy": accuracy}
        add_job(str(number), [f"seed={number}"], figures)
    jobs = read_sweep(tmp_path / "sweep")
    assert metrics_of(jobs, None) == ["val/text_accuracy", "val/f1", "val/loss"]
    assert metrics_of(jobs, ["val/accuracy"]) == ["val/accuracy"]


@pytest.fixture
def compared(sweep, tmp_path, compose_config):
    config = compose_config(f"sweep.folder={sweep}", name="evaluate")
    validate_evaluate(config)
    out = tmp_path / "out"
    out.mkdir()
    compare(config, out)
    return out


def test_the_summary_is_flat(compared):
    summary = json.loads((compared / "summary.json").read_text())
    assert (summary["sweep/jobs"], summary["sweep/failed"]) == (6, 2)
    assert summary["objective.temperature=1/val/perplexity/mean"] == pytest.approx(12.0)
    assert summary["objective.temperature=1/val/perplexity/spread"] == pytest.approx(1.0)
    assert summary["objective.temperature=1/val/perplexity/seeds"] == 3
    assert summary["objective.temperature=10/val/perplexity/mean"] == pytest.approx(101.0)
    assert summary["objective.temperature=10/val/perplexity/spread"] is None
    assert not any(isinstance(value, dict | list) for value in summary.values())


def test_the_csv_has_every_job(compared):
    with (compared / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == list("012345")
    assert rows[3] == {
        "run": "3", "state": "done", "objective.temperature": "10", "seed": "1", "val/perplexity": "101.0",
        "val/loss": "0.5", "seconds": "1.0", "error": "",
    }  # fmt: skip
    assert (rows[4]["state"], rows[4]["error"]) == ("failed", "data.train_files: gone")
    assert not (compared / "glue.csv").exists()


def test_the_report_and_the_terminal(compared, capsys):
    page = (compared / "report.html").read_text()
    for part in ("data.train_files: gone", "12 ± 1", "<polyline", "val/perplexity against objective.temperature"):
        assert part in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert "src=" not in page


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["sweep.folder={tmp}/nowhere"], ["sweep.folder=", "nowhere"]),
        (["sweep.folder={tmp}/empty"], ["sweep.folder=", "empty"]),
        (["sweep.folder={tmp}/sweep", "model=bert"], ["model=bert", "sweep="]),
        (["sweep.folder={tmp}/sweep", "sweep.metrics=[f1]"], ["sweep.metrics=[f1]", "val/perplexity"]),
    ],
)
def test_errors(overrides, named, sweep, tmp_path, compose_config):
    (tmp_path / "empty").mkdir()
    config = compose_config(*(text.format(tmp=tmp_path) for text in overrides), name="evaluate")
    with pytest.raises(ConfigError) as error:
        validate_evaluate(config)
    assert "\n" not in str(error.value)
    for part in named:
        assert part in str(error.value)


def glue_job(add_job, number, task, seed, figures, error=None):
    summary = {f"val/{name}": value for name, value in figures.items()}
    config = {"benchmark": {"name": task}}
    add_job(str(number), [f"benchmark={task}", f"seed={seed}"], summary, config, error)


def read_glue(folder):
    with (folder / "glue.csv").open(newline="") as file:
        return {(row["task"], row["metric"]): row for row in csv.DictReader(file)}


def test_glue_with_missing_tasks(tmp_path, add_job, capsys):
    glue_job(add_job, 0, "cola", 1, {"matthews": 0.5})
    glue_job(add_job, 1, "cola", 2, {"matthews": 0.6})
    glue_job(add_job, 2, "mrpc", 1, {"f1": 0.9, "accuracy": 0.8})
    glue_job(add_job, 3, "mrpc", 2, {}, error="benchmark.folder: no MRPC")
    write_glue(tmp_path / "sweep")
    rows = read_glue(tmp_path / "sweep")
    assert float(rows["cola", "matthews"]["mean"]) == pytest.approx(55.0)
    assert float(rows["cola", "matthews"]["spread"]) == pytest.approx(100 * statistics.stdev([0.5, 0.6]))
    assert float(rows["mrpc", "score"]["mean"]) == pytest.approx(85.0)
    assert rows["mrpc", "score"]["spread"] == ""
    average = rows["average_of_present", "score"]
    assert float(average["mean"]) == pytest.approx((55.0 + 85.0) / 2)
    assert average["runs"] == "1"  # seed 2 lacks a task
    assert ("average", "score") not in rows
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert "Missing: SST-2, STS-B, QQP, MNLI, QNLI, RTE, WNLI" in page
    assert "benchmark.folder: no MRPC" in page
    assert "average of present" in capsys.readouterr().out


def test_glue_over_seeds(tmp_path, add_job, compose_config):
    from potstill.evaluation.glue import TASKS

    number = 0
    for seed, value in ((1, 0.5), (2, 0.7)):
        for task in TASKS:
            glue_job(add_job, number, task.benchmark, seed, dict.fromkeys(task.metrics, value))
            number += 1
    out = tmp_path / "out"
    out.mkdir()
    compare(compose_config(f"sweep.folder={tmp_path}/sweep", name="evaluate"), out)
    average = read_glue(out)["average", "score"]
    assert float(average["mean"]) == pytest.approx(60.0)
    assert float(average["spread"]) == pytest.approx(100 * statistics.stdev([0.5, 0.7]))
    assert average["runs"] == "2"
    assert json.loads((out / "summary.json").read_text())["glue/average/score"] == pytest.approx(60.0)
    assert "Missing" not in (out / "report.html").read_text()


def test_tables_import_neither_torch_nor_matplotlib():
    code = "import sys, potstill.runs.sweep_tables; print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def record(job, **config):
    (job / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))


def test_runs_with_different_data_are_not_grouped(tmp_path, add_job):
    for number, (seed, file) in enumerate([(1, "a.tsv"), (2, "a.tsv"), (3, "b.tsv")]):
        job = add_job(str(number), ["objective=kd", f"seed={seed}"], {"val/accuracy": 0.1 * seed})
        record(job, seed=seed, data={"train_files": [file], "seed": "${seed}"}, logger={"group": str(number)})
    jobs = read_sweep(tmp_path / "sweep")
    assert varying(jobs) == ["data.train_files", "seed"]
    groups = grouped(jobs, ["data.train_files"])
    assert [len(group.jobs) for group in groups] == [2, 1]


def test_of_repeated_runs_only_the_last_counts(tmp_path, add_job):
    for name, seed, accuracy in (("a/0", 1, 0.1), ("a/1", 2, 0.2), ("b/0", 1, 0.3)):
        add_job(name, ["objective=kd", f"seed={seed}"], {"val/accuracy": accuracy})
    add_job("b/1", ["objective=kd", "seed=2"], error="gone")
    jobs = read_sweep(tmp_path / "sweep")
    (group,) = grouped(jobs, [])
    assert group.values("val/accuracy") == [0.2, 0.3]
    assert "b/0" in jobs[0].error
    assert [job.error is None for job in jobs] == [False, True, True, False]


def test_a_spread_over_some_of_the_runs_names_their_number():
    assert str(Spread.of([0.5, 0.7], 3)).endswith("(2 of 3 runs)")
    assert str(Spread.of([0.5], 3)).endswith("(1 of 3 runs)")
    assert "runs" not in str(Spread.of([0.5, 0.7], 2))


def test_only_finite_figures_are_read(tmp_path, add_job):
    add_job("0", ["seed=1"], {"val/loss": 1.0})
    add_job("1", ["seed=2"], {"val/loss": float("nan")})
    add_job("2", ["seed=3"], {"val/loss": None})
    assert [job.figures.get("val/loss") for job in read_sweep(tmp_path / "sweep")] == [1.0, None, None]
