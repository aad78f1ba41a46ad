"""F1 and EM of single answers, as the published script of CMRC 2018 has them."""

import json
import os
from pathlib import Path

import pytest

from potstill.evaluation.answer_metrics import answer_scores

FOLDER = os.environ.get("POTSTILL_PARITY_DIR")
FILE = Path(FOLDER or ".") / "cmrc2018.json"
CASES = json.loads(FILE.read_text(encoding="utf-8")) if FOLDER and FILE.is_file() else []
pytestmark = pytest.mark.skipif(not CASES, reason="POTSTILL_PARITY_DIR is not set, or has no cmrc2018.json")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["prediction"])
def test_answer(case):
    scores = answer_scores("cmrc", [case["prediction"]], [case["answers"]])
    assert {name: own.item() for name, own in scores.items()} == {"em": case["em"], "f1": case["f1"]}
