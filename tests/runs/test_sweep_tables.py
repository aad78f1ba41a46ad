"""Accuracy against the share of the data: which points a line has, and where they are written."""

import csv
import json
import statistics

import pytest
import yaml

from potstill.reporting.sweeps import grouped, read_sweep
from potstill.runs.sweep_tables import compare, share_curves

MODES, SHARES, SEEDS = ("standard", "task_prefix"), ("0.25", "0.5", "1.0"), (1, 2, 3)


def accuracy(mode, share, seed):
    return 0.3 + 0.4 * float(share) + 0.1 * (mode == "task_prefix") + 0.01 * seed**2


@pytest.fixture
def add_job(tmp_path):
    def add(number, options, summary=None):
        job = tmp_path / "sweep" / str(number)
        (job / ".hydra").mkdir(parents=True)
        (job / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(options))
        if summary is not None:
            (job / "summary.json").write_text(json.dumps(summary))

    return add


@pytest.fixture
def sweep(tmp_path, add_job):
    """Two modes of three shares of three seeds; the last run was killed."""
    jobs = [(mode, share, seed) for mode in MODES for share in SHARES for seed in SEEDS]
    for number, (mode, share, seed) in enumerate(jobs):
        found = accuracy(mode, share, seed)
        figures = {"val/loss": 1.0, "val/accuracy": found + 0.05, "test/accuracy": found}
        options = ["experiment=arithmetic", f"objective.mode={mode}", f"data.share={share}", f"seed={seed}"]
        add_job(number, options, None if number == len(jobs) - 1 else figures)
    return tmp_path / "sweep"


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_line_per_method_in_the_report_and_the_csv(sweep, compose_config, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    compare(compose_config(f"sweep.folder={sweep}", name="evaluate"), out)
    rows = rows_of(out / "share.csv")
    assert len(rows) == 2 * 2 * 3
    assert [row["metric"] for row in rows] == ["test/accuracy"] * 6 + ["val/accuracy"] * 6
    assert [row["share"] for row in rows[:6]] == ["0.25", "0.5", "1.0"] * 2
    for row in rows[:6]:
        seeds = SEEDS if (row["method"], row["share"]) != ("task_prefix", "1.0") else SEEDS[:2]
        values = [accuracy(row["method"], row["share"], seed) for seed in seeds]
        assert float(row["mean"]) == pytest.approx(statistics.mean(values))
        assert float(row["spread"]) == pytest.approx(statistics.stdev(values))
        assert row["runs"] == str(len(seeds))
    page = (out / "report.html").read_text()
    title = "test/accuracy against the share of the data"
    assert page.index(title) < page.index("val/accuracy against the share of the data")
    assert page.index(title) < page.index("Means over seeds")  # ahead of the tables
    drawing = page[page.index(title) :].partition("</svg>")[0]
    assert "share of the training rows" in page
    assert "<svg" in drawing


def test_lines_are_named_by_what_else_varies(tmp_path, add_job):
    jobs = [(mode, share, alpha) for mode in MODES for share in SHARES[:2] for alpha in ("0.3", "0.7")]
    for number, (mode, share, alpha) in enumerate(jobs):
        options = [f"objective.mode={mode}", f"data.share={share}", f"objective.alpha={alpha}"]
        add_job(number, options, {"test/accuracy": 0.5})
    groups = grouped(read_sweep(tmp_path / "sweep"), ["objective.mode", "data.share", "objective.alpha"])
    (section,) = share_curves(groups, ["test/accuracy"], tmp_path)
    assert section.title.startswith("test/accuracy")
    rows = rows_of(tmp_path / "share.csv")
    assert len({row["method"] for row in rows}) == 4
    assert rows[0]["method"] == "objective.mode=standard objective.alpha=0.3"
    assert rows[0]["spread"] == ""


def test_a_sweep_of_other_keys_has_no_share_curve(tmp_path, add_job):
    for number, seed in enumerate(SEEDS):
        add_job(number, ["data.share=0.5", f"seed={seed}"], {"test/accuracy": 0.5})
    groups = grouped(read_sweep(tmp_path / "sweep"), ["data.share"])
    assert share_curves(groups, ["test/accuracy"], tmp_path) == []
    assert not (tmp_path / "share.csv").exists()
