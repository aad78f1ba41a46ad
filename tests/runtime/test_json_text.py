import ast
import json
from pathlib import Path

import pytest

import potstill
from potstill.runs.summary import write_summary
from potstill.runtime.json_text import json_text, parse_json

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("text", ['{"a": [1, "é", null]}', b'["\\ud83d\\ude00"]', '"\\\\ud83d"'])
def test_json_is_read(text):
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000, '{"a": ["\\ud83d"]}', '{"\\uDE00": 1}', b'["\\ud83d"]'],
    ids=["empty", "cut", "nested", "nested-objects", "half", "half-in-a-key", "half-in-bytes"],
)  # fmt: skip
def test_all_errors_are_value_errors(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def strict(text):
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_nan_and_infinities_are_written_as_null(tmp_path):
    value = {"a": NAN, "b": [1.5, -INF, {"c": INF}], "d": (2, "NaN"), "e": True, "f": 10**400}
    expected = {"a": None, "b": [1.5, None, {"c": None}], "d": [2, "NaN"], "e": True, "f": 10**400}
    assert strict(json_text(value)) == expected
    write_summary(tmp_path, {"val/loss": NAN, "val/perplexity": INF, "val/accuracy": 0.5})
    found = strict((tmp_path / "summary.json").read_text())
    assert found == {"val/loss": None, "val/perplexity": None, "val/accuracy": 0.5}


def test_no_other_module_writes_json():
    for path in Path(potstill.__file__).parent.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(("write_text", "write_whole", "write")):
                assert not any("json.dumps(" in ast.unparse(argument) for argument in call.args), path
        assert "json.dump(" not in path.read_text(), path
