"""Each row of docs/faults.md names a test that is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_tests_of_the_table_exist():
    rows = [line for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if line.startswith("| ")][
        1:
    ]
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row)
        assert named, row
        for path, name in named:
            assert f"\ndef {name}(" in (ROOT / path).read_text(), f"{path}::{name}"
