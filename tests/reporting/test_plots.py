"""Tables and plots of many runs: escaping, sorting, positions."""

import json
import math
import re
import shutil
import subprocess

import pytest

from potstill.reporting.plots import Axis, ParallelCoordinates, SpreadPlot
from potstill.reporting.report import render, write_report
from potstill.reporting.tables import Spread, Table, number_of

HOSTILE = '<b onclick="x">&'


def keys(markup):
    return re.findall(r'data-key="([^"]*)"', markup)


def test_cells_are_sorted_by_value():
    row = [1234567, 0.123456, Spread(12345.0, 10.0), None, math.nan, "word", "3e-5"]
    markup = render(Table("t", list("abcdefg"), [row], sortable=True))
    assert keys(markup) == ["1234567", "0.123456", "12345.0", "", "", "word", "3e-5"]
    assert "1,234,567" in markup
    for kind in ("td", 'th scope="col"'):
        assert markup.count(f'<{kind} class="number"') == 5  # the texts and the empty cell are left-aligned


def test_all_text_is_escaped(tmp_path):
    axes = [Axis(HOSTILE, [HOSTILE, "b"]), Axis("loss", [1.0, 2.0])]
    sections = [
        Table(HOSTILE, [HOSTILE], [[HOSTILE]], HOSTILE, sortable=True),
        ParallelCoordinates(HOSTILE, axes, [HOSTILE, "1"], HOSTILE),
        SpreadPlot(HOSTILE, HOSTILE, HOSTILE, {HOSTILE: [(HOSTILE, Spread(1.0, None))]}, HOSTILE),
    ]
    page = write_report(tmp_path, title=HOSTILE, sections=sections).read_text()
    assert "<b" not in page.replace("<body", "").replace("<button", "")


def test_a_spread_as_text():
    assert str(Spread(0.91234, 0.01234)) == "0.9123 ± 0.012"
    assert str(Spread(0.91234, None)) == "0.9123"


@pytest.mark.parametrize(("text", "number"), [("3e-5", 3e-5), ("1", 1.0), ("nan", None), ("[0,1]", None), ("", None)])
def test_number_of(text, number):
    assert number_of(text) == number


def lines(fragment):
    """The y-coordinates of each line's points; 44 is the top of an axis, 240 its bottom."""
    points = re.findall(r'<polyline points="([^"]*)"', render(fragment))
    return [[float(pair.split(",")[1]) for pair in line.split()] for line in points]


def test_positions_in_parallel_coordinates():
    axes = [Axis("kind", ["b", "a", "b"]), Axis("lr", [1e-4, 1e-3, 1e-2]), Axis("accuracy", [0.5, 0.75, 1.0])]
    found = lines(ParallelCoordinates("p", axes, ["0", "1", "2"]))
    assert found == [
        [240.0, 240.0, 240.0],
        [44.0, 142.0, 142.0],
        [240.0, 44.0, 44.0],
    ]  # the learning rates on a logarithmic axis


def test_a_run_without_a_finite_value_has_no_line():
    axes = [Axis("t", [1.0, 2.0, 3.0]), Axis("loss", [1.0, None, math.nan])]
    assert lines(ParallelCoordinates("p", axes, ["0", "1", "2"])) == [[240.0, 142.0]]


def test_options_that_are_not_numbers_are_categories():
    series = {"": [("kd", Spread(1.0, 0.1)), ("diito", Spread(2.0, None))]}
    markup = SpreadPlot("m", "objective", "val/accuracy", series).svg()
    for text in ("kd", "diito", "objective", "val/accuracy", "currentColor"):
        assert text in markup


DOM = """
const cell = key => ({dataset: {key}});
const body = {rows: KEYS.map(key => ({cells: [cell(key)]})), append(...rows) { this.rows = rows }};
const head = {
  attributes: {}, closest: () => ({tBodies: [body]}),
  firstElementChild: {addEventListener: (_, call) => { head.click = call }},
  getAttribute: name => head.attributes[name], setAttribute: (name, value) => { head.attributes[name] = value },
  removeAttribute: name => { delete head.attributes[name] },
};
globalThis.document = {currentScript: {previousElementSibling: {querySelectorAll: () => [head]}}};
SCRIPT
const orders = [];
for (let click = 0; click < 2; click++) {
  head.click();
  orders.push([head.attributes["aria-sort"], ...body.rows.map(row => row.cells[0].dataset.key)]);
}
console.log(JSON.stringify(orders));
"""


@pytest.mark.skipif(not shutil.which("node"), reason="needs node to run the page's script")
@pytest.mark.parametrize(
    ("given", "ascending"), [(["10", "", "9", "-1e-5"], ["-1e-5", "9", "10"]), (["b", "10", "", "a"], ["10", "a", "b"])]
)
def test_a_click_sorts_and_a_second_one_reverses(given, ascending):
    page = render(Table("t", ["a"], [["b"]], sortable=True))
    script = DOM.replace("KEYS", json.dumps(given)).replace(
        "SCRIPT", re.findall(r"<script>(.*)</script>", page, re.DOTALL)[0]
    )
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["ascending", *ascending, ""], ["descending", *ascending[::-1], ""]]
