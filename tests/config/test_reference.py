"""The generated reference: current, complete, and right about what it reads."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from potstill.config import EvaluateConfig, TrainConfig, reference
from potstill.runtime.ranges import SHARE, option, within

ROOT = Path(__file__).parents[2]


@dataclass
class Part:
    size: int = within(3, SHARE, "size of a part")
    names: list[str] | None = option(None, "names")


@dataclass
class Parts:
    first: Part = option(Part, "the first part")
    second: Part = option(Part, "the second part")


@dataclass
class Whole:
    parts: Parts = option(Parts, "its parts")
    part: Part | None = None
    more: list[Part] = option([], "more parts")
    settings: dict[str, int] = option({"a": 1}, "settings")


@pytest.mark.parametrize("path", reference.FILES, ids=str)
def test_the_documents_are_current(path):
    text = (ROOT / path).read_text()
    assert reference.generated(text) == text, "stale; run python -m potstill.config.reference"


@pytest.mark.parametrize("schema", [TrainConfig, EvaluateConfig, *reference.classes().values()])
def test_every_key_has_a_help_text(schema):
    assert [row.key for row in reference.rows(schema) if not row.help] == []


def test_every_key_is_in_one_table():
    text = (ROOT / "docs" / "configuration.md").read_text()
    tables = re.findall(r"<!-- keys TrainConfig.*?<!-- end -->", text, re.DOTALL)
    listed = Counter(key for table in tables for key in re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE))
    assert listed == Counter(row.key for row in reference.rows(TrainConfig))
    keys = set(re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE))
    assert {row.key for row in reference.rows(EvaluateConfig)} <= keys


def test_rows_walk_sections_lists_and_sections_of_one_type():
    assert list(reference.rows(Whole)) == [
        reference.Row("parts.first.size", "int, from 0 to 1", "`3`", "the first part"),
        reference.Row("parts.second.size", "int, from 0 to 1", "`3`", "the second part"),
        reference.Row("parts.<part>.names", "list of text, or null", "`null`", "names"),
        reference.Row("part.size", "int, from 0 to 1", "`3`", "size of a part"),
        reference.Row("part.names", "list of text, or null", "`null`", "names"),
        reference.Row("more", "list", "`[]`", "more parts"),
        reference.Row("settings", "dictionary", "`{a: 1}`", "settings"),
    ]


def test_a_table_leaves_out_what_another_names_more_exactly():
    table = reference.table(Whole, ["parts"], ["parts.first", "settings"])
    assert re.findall(r"^\| `([^`]+)`", table, re.MULTILINE) == ["parts.second.size", "parts.<part>.names"]


def test_defaults_of_options_stand_beside_those_of_the_schema():
    table = reference.table(TrainConfig, ["objective.hard_weight"], [])
    assert "| `0.0` (diito: `0.25`, kd: `2.0`) |" in table


def test_a_stale_document_is_reported_and_rewritten(tmp_path, monkeypatch, capsys):
    for path in reference.FILES:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text((ROOT / path).read_text().replace("from 0 to 1 ", "from 0 to 2 "))
    monkeypatch.chdir(tmp_path)
    assert reference.main(["--check"]) == 1
    assert "docs/configuration.md: stale" in capsys.readouterr().err
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0
    assert (tmp_path / "docs" / "configuration.md").read_text() == (ROOT / "docs" / "configuration.md").read_text()
