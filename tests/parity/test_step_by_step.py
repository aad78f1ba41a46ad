"""Rationales and labels as the published parsers cut them, and values of equations."""

import json
import os
from pathlib import Path

import pytest

from potstill.data.rationales.parsing import parse
from potstill.evaluation.equations import same_value, value_of

FOLDER = os.environ.get("POTSTILL_PARITY_DIR")
FILE = Path(FOLDER or ".") / "step_by_step.json"
CASES = json.loads(FILE.read_text(encoding="utf-8")) if FOLDER and FILE.is_file() else {}
pytestmark = pytest.mark.skipif(not CASES, reason="POTSTILL_PARITY_DIR is not set, or has no step_by_step.json")
OUTPUTS = [
    (name, flavour, case["output"], case[flavour])
    for name, cases in CASES.get("parse", {}).items()
    for case in cases
    for flavour in ("palm", "gpt")
    if flavour in case
]


@pytest.mark.parametrize(("name", "flavour", "output", "expected"), OUTPUTS)
def test_output(name, flavour, output, expected):
    found = parse(name, output, flavour)
    if "raises" in expected:  # counts as unparsed
        assert not found.whole
        return
    # Only blanks differ: the published parsers return one for a missing part.
    assert (found.rationale or "", found.label or "") == (expected["rationale"].strip(), expected["label"].strip())


@pytest.mark.parametrize("case", CASES.get("equations", []), ids=lambda case: repr(case["equation"]))
def test_equation(case):
    value = value_of(case["equation"])
    assert value is None if case["value"] is None else same_value(value, case["value"])
