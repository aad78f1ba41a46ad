"""Reports in a browser: no script errors, all plots drawn, no wider than a phone, legible in light and dark mode."""

import html
import json
import re
import shutil
import subprocess

import pytest

from potstill.reporting.plots import Axis, ParallelCoordinates, SpreadPlot
from potstill.reporting.report import Collapsible, Curves, HeatMap, Text, write_report
from potstill.reporting.tables import Spread, Table

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.integration,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium"),
]
PHONE = 375
# Shows the report in a frame as wide as a phone, and writes its measurements as JSON.
MEASURE = """<!DOCTYPE html><body><iframe id="page" style="width:{width}px;height:2000px" srcdoc="{page}"></iframe>
<pre id="found"></pre><script>
document.getElementById("page").onload = () => {{
  const page = document.getElementById("page").contentDocument, root = page.documentElement;
  const colour = name => getComputedStyle(page.body)[name].match(/[0-9.]+/g).slice(0, 3).map(Number);
  const light = ([r, g, b]) => (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
  const drawn = [...page.querySelectorAll("svg")].map(svg => svg.getBoundingClientRect());
  for (const button of page.querySelectorAll("th button")) button.click();
  document.getElementById("found").textContent = JSON.stringify({{
    wide: Math.max(root.scrollWidth, page.body.scrollWidth),
    text: light(colour("color")), page: light(colour("backgroundColor")),
    plots: drawn.map(box => [box.width, box.height]),
    marks: [...page.querySelectorAll("svg path")].filter(path => path.getTotalLength() > 0).length,
    sorted: page.querySelectorAll("th[aria-sort]").length,
    words: page.body.innerText,
  }});
}};
</script></body>"""


def found(report, folder, *, dark):
    """The measurements of a report, and the errors in the console."""
    page = folder / "measure.html"
    page.write_text(MEASURE.format(width=PHONE, page=html.escape(report.read_text(), quote=True)))
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={folder}/profile", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (text,) = re.findall(r'<pre id="found">(.*?)</pre>', result.stdout, flags=re.DOTALL)
    errors = [line for line in result.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(html.unescape(text)), errors


@pytest.fixture
def report(tmp_path):
    """A section of every kind, with many series and a long table."""
    curve = ([0, 10, 20], [3.0, 0.5, 0.02])
    table = Table("Table", ["a rather long column", *"bcdefgh"], [[0.123456] * 8] * 3, "A note.")
    sections = [
        Text("Text", "words " * 50),
        table,
        Curves("Curves", {"one": curve, "two": curve}, log_y=True),
        Curves("Points", {f"model {i}": ([i], [i]) for i in range(12)}, "x", "y"),
        HeatMap("Heat", "t / s", ["1", "2"], ["1", "2"], [[0.1, None], [0.5, 1.0]]),
        Table("Runs", ["name", "value"], [["a", 2.0], ["b", 1.0]], sortable=True),
        ParallelCoordinates("Lines", [Axis("lr", [0.1, 0.2]), Axis("loss", [1.0, 3.0])], ["a", "b"]),
        SpreadPlot("Spread", "lr", "loss", {"kd": [("0.1", Spread(1.0, 0.1)), ("0.2", Spread(3.0, None))]}),
        Collapsible("Settings", "key: " + "x" * 400),
    ]
    return write_report(tmp_path, title="A report", sections=sections)


@pytest.mark.parametrize("dark", [False, True])
def test_a_report_is_legible_on_a_phone_in_light_and_dark_mode(report, tmp_path, dark):
    seen, errors = found(report, tmp_path, dark=dark)
    assert errors == []
    assert seen["wide"] <= PHONE
    assert abs(seen["text"] - seen["page"]) > 0.6
    assert (seen["page"] < seen["text"]) == dark
    assert len(seen["plots"]) == 4
    assert seen["sorted"] == 1
    assert all(width > 200 and height > 80 for width, height in seen["plots"])
    assert seen["marks"] > 20
    assert "$" not in seen["words"]  # no unrendered mathematics
    for word in ("Text", "Heat", "0.1235", "A note.", "model 11"):
        assert word in seen["words"]


def test_script_errors_are_detected(tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text('<!DOCTYPE html><body style="width: 900px"><script>nothing.there()</script></body>')
    seen, errors = found(broken, tmp_path, dark=False)
    assert seen["wide"] > PHONE
    assert "nothing is not defined" in errors[0]
