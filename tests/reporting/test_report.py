import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from potstill.errors import DataError
from potstill.reporting.report import (
    Collapsible,
    Curves,
    Points,
    Text,
    read_metrics,
    render,
    write_report,
)
from potstill.reporting.tables import Table, format_cell, print_table

HOSTILE = '<script>alert("&$x^2$")</script>'
VOID = {"meta", "br"}


class Balanced(HTMLParser):
    """Fails where tags do not close in order; keeps what was opened and the attributes that load something."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.seen: set[str] = set()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.loads += [
            v for k, v in attrs if k in ("src", "href", "xlink:href") and v and not v.startswith("#")
        ]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def parse(page: str) -> Balanced:
    parser = Balanced()
    parser.feed(page)
    assert not parser.stack
    return parser


@pytest.fixture
def page(tmp_path: Path) -> str:
    series = {
        HOSTILE: ([0, 1, 2], [3.0, 2.0, math.nan]),
        "_hidden": ([1], [2.0]),
        "never logged": ([], []),
    }
    path = write_report(
        tmp_path / "new",
        title=HOSTILE,
        sections=[
            Text(HOSTILE, HOSTILE),
            Table(HOSTILE, [HOSTILE, "value"], [[HOSTILE, 0.123456], [None, 12345678]], note=HOSTILE),
            Curves(HOSTILE, series, x_label=HOSTILE, y_label=HOSTILE),
            Curves("log", {"a": ([0, 1], [1e-3, 10.0])}, log_y=True),
            Curves("empty", {}),
            Points(HOSTILE, {HOSTILE: (1.0, 0.5), "_small": (0.5, 0.4)}, HOSTILE, HOSTILE, note=HOSTILE),
            Points("none", {}, "x", "y"),
            Collapsible(HOSTILE, HOSTILE),
        ],
    )
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return path.read_text()


def test_opens_without_network_and_escapes_everything(page):
    parsed = parse(page)
    assert "script" not in parsed.seen
    assert not parsed.loads
    assert not re.search(r"url\((?!#)|@import", page)
    assert {"table", "svg", "details", "pre"} <= parsed.seen


def test_plots_take_the_colours_of_the_page(page):
    assert page.count("<svg") == 3
    assert "_small" in page
    assert "currentColor" in page
    assert "prefers-color-scheme: dark" in page
    assert "#ffffff" not in page
    assert "_hidden" in page
    assert "No values." in page


def test_values_are_rounded(page):
    assert "0.1235" in page
    assert "12,345,678" in page


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (True, "True"), (3, "3"), (1234567.8, "1,234,568"), (1e-7, "1e-07"), ("a", "a")],
)
def test_format_cell(value, text):
    assert format_cell(value) == text


def test_a_failed_report_leaves_the_old_one(tmp_path):
    path = write_report(tmp_path, title="old", sections=[])
    with pytest.raises(UnicodeEncodeError):
        write_report(tmp_path, title="new \ud800", sections=[])
    assert "old" in path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_the_same_sections_give_the_same_file(tmp_path):
    sections = [Curves("loss", {"a": ([0, 1], [1.0, 2.0])})]
    first = write_report(tmp_path / "1", title="t", sections=sections).read_bytes()
    assert write_report(tmp_path / "2", title="t", sections=sections).read_bytes() == first


@pytest.mark.parametrize(
    ("low", "between"),
    [(0.3, "0.3 0.4 0.5 0.6 0.7 0.8 0.9"), (0.01, "0.02 0.05 0.2 0.5"), (1e-6, "")],
)
def test_labels_of_an_axis_of_logarithms_stand_apart(low, between):
    drawn = render(Curves("log", {"a": ([0, 1], [low, 1.0])}, log_y=True))
    found = re.findall(r">([^<>]+)</text>", drawn.partition(">step<")[2])[:-1]  # the last is the legend's
    assert [
        label for label in found if float(label) not in (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1)
    ] == between.split()


def test_print_table(capsys):
    print_table(Table("scores", ["task", "accuracy"], [["[bold]sst2", 0.91234]], note="one seed"))
    printed = capsys.readouterr().out
    assert "[bold]sst2" in printed
    assert "0.9123" in printed
    assert "one seed" in printed


def test_a_terminal_that_is_too_narrow_gets_fewer_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    wide = Table(
        "means", ["runs/" + "a" * 30, *(f"val/metric_{i}" for i in range(9))], [["m" * 40] + [0.5] * 9]
    )
    print_table(wide)
    printed = capsys.readouterr().out
    assert "5 more columns" in printed
    assert printed.count("0.5") == 4
    assert max(map(len, printed.splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "200")
    print_table(wide)
    printed = capsys.readouterr().out
    assert "more columns" not in printed
    assert printed.count("0.5") == 9


def test_importing_draws_nothing_in():
    code = "import sys, potstill.reporting.report; print('matplotlib' in sys.modules, 'rich' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_reads_the_metrics_of_the_csv_logger(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, name="", version="")
    logger.log_metrics({"train/loss": 2.0, "epoch": 0}, step=0)
    logger.log_metrics({"val/loss": 3.0, "epoch": 0}, step=1)
    logger.log_metrics({"train/loss": 1.5, "epoch": 1}, step=2)
    logger.save()
    assert read_metrics(tmp_path / "metrics.csv") == {
        "train/loss": ([0, 2], [2.0, 1.5]),
        "val/loss": ([1], [3.0]),
    }


def test_a_cut_last_line_is_read_as_far_as_it_goes(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,epoch,a,b\n0,0,1.0,2.0\n1,0,nan")
    metrics = read_metrics(path)
    assert metrics["b"] == ([0], [2.0])
    assert metrics["a"][0] == [0, 1]


@pytest.mark.parametrize("content", ["epoch,a\n0,1.0\n", "step,a\n0,word\n", "step,a\n,1.0\n"])
def test_broken_metrics(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    with pytest.raises(DataError, match="line 2"):
        read_metrics(path)


def test_missing_metrics(tmp_path):
    with pytest.raises(DataError, match=r"metrics\.csv"):
        read_metrics(tmp_path / "metrics.csv")


def test_no_named_pipe_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.csv")
    with pytest.raises(DataError, match=r"metrics\.csv"):
        read_metrics(tmp_path / "metrics.csv")
