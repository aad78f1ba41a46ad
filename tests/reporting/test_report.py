import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from potstill.errors import FileError, FormatError
from potstill.reporting.report import Collapsible, Curves, Text, read_metrics, render, write_report
from potstill.reporting.tables import Table, format_cell, print_table

HOSTILE = '<script>alert("&$x^2$")</script>'
VOID = {"meta", "br"}


class Balanced(HTMLParser):
    """Checks that tags are closed in order; collects their names and the URLs that they load."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.seen: set[str] = set()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v and not v.startswith("#")]
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
    series = {HOSTILE: ([0, 1, 2], [3.0, 2.0, math.nan]), "_hidden": ([1], [2.0]), "never logged": ([], [])}
    path = write_report(
        tmp_path / "new",
        title=HOSTILE,
        sections=[
            Text(HOSTILE, HOSTILE),
            Table(HOSTILE, [HOSTILE, "value"], [[HOSTILE, 0.123456], [None, 12345678]], note=HOSTILE),
            Curves(HOSTILE, series, x_label=HOSTILE, y_label=HOSTILE),
            Curves("log", {"a": ([0, 1], [1e-3, 10.0])}, log_y=True),
            Curves("empty", {}),
            Curves(HOSTILE, {HOSTILE: ([1.0], [0.5]), "_small": ([0.5], [0.4])}, HOSTILE, HOSTILE, note=HOSTILE),
            Collapsible(HOSTILE, HOSTILE),
        ],
    )
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return path.read_text()


def test_a_report_loads_nothing_and_escapes_all_text(page):
    parsed = parse(page)
    assert "script" not in parsed.seen
    assert not parsed.loads
    assert not re.search(r"url\((?!#)|@import", page)
    assert {"table", "svg", "details", "pre"} <= parsed.seen


def test_plots_have_the_colours_of_the_page(page):
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
    ("value", "text"), [(None, ""), (True, "True"), (3, "3"), (1234567.8, "1,234,568"), (1e-7, "1e-07"), ("a", "a")]
)
def test_format_cell(value, text):
    assert format_cell(value) == text


def test_a_report_is_written_atomically(tmp_path):
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
    ("low", "between"), [(0.3, "0.3 0.4 0.5 0.6 0.7 0.8 0.9"), (0.01, "0.02 0.05 0.2 0.5"), (1e-6, "")]
)
def test_labels_between_the_powers_of_ten_of_a_logarithmic_axis(low, between):
    drawn = render(Curves("log", {"a": ([0, 1], [low, 1.0])}, log_y=True))
    found = re.findall(r">([^<>]+)</text>", drawn.partition(">step<")[2])[:-1]  # the last is the legend's
    assert [label for label in found if float(label) not in (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1)] == between.split()


def test_print_table(capsys):
    print_table(Table("scores", ["task", "accuracy"], [["[bold]sst2", 0.91234]], note="one seed"))
    printed = capsys.readouterr().out
    assert "[bold]sst2" in printed
    assert "0.9123" in printed
    assert "one seed" in printed


def test_a_narrow_terminal_shows_fewer_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    wide = Table("means", ["runs/" + "a" * 30, *(f"val/metric_{i}" for i in range(9))], [["m" * 40] + [0.5] * 9])
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


def test_importing_a_report_imports_neither_matplotlib_nor_rich():
    code = "import sys, potstill.reporting.report; print('matplotlib' in sys.modules, 'rich' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_metrics_of_lightnings_csv_logger_are_read(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, name="", version="")
    logger.log_metrics({"train/loss": 2.0, "epoch": 0}, step=0)
    logger.log_metrics({"val/loss": 3.0, "epoch": 0}, step=1)
    logger.log_metrics({"train/loss": 1.5, "epoch": 1}, step=2)
    logger.save()
    assert read_metrics(tmp_path / "metrics.csv") == {"train/loss": ([0, 2], [2.0, 1.5]), "val/loss": ([1], [3.0])}


def test_an_incomplete_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,epoch,a,b\n0,0,1.0,2.0\n1,0,nan")
    assert read_metrics(path) == {"a": ([0], [1.0]), "b": ([0], [2.0])}


@pytest.mark.parametrize("content", ["epoch,a\n0,1.0\n", "step,a\n0,word\n", "step,a\n,1.0\n"])
def test_invalid_metrics_are_rejected(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    with pytest.raises(FormatError, match=r"metrics\.csv, line 2"):
        read_metrics(path)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: None])
def test_metrics_that_are_no_regular_file_are_rejected(tmp_path, make):
    make(tmp_path / "metrics.csv")
    with pytest.raises(FileError, match=r"metrics\.csv"):
        read_metrics(tmp_path / "metrics.csv")
