import pytest

from potstill.jsontext import parse_json


@pytest.mark.parametrize("text", ['{"a": [1, "é", null]}', b'["\\ud83d\\ude00"]', '"\\\\ud83d"'])
def test_json_is_read(text):
    import json

    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000, '{"a": ["\\ud83d"]}', '{"\\uDE00": 1}', b'["\\ud83d"]'],
    ids=["empty", "cut", "nested", "nested-objects", "half", "half-in-a-key", "half-in-bytes"],
)  # fmt: skip
def test_whatever_is_wrong_is_one_kind_of_error(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)
