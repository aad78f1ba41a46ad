"""The migration page is true: each command and key in the right column of its tables composes.

A comment before a table, `<!-- with: train a=b | evaluate c=d -->`, has the commands that the keys below are added to;
the first one in which all keys of a code span exist is taken.
"""

import re
import shlex
from pathlib import Path

import pytest

from potstill.config import EvaluateConfig, TrainConfig, config_folder, value_of
from potstill.errors import ConfigError

PAGE = (Path(__file__).parents[1] / "docs" / "migration.md").read_text()
WORD = re.compile(r"\+{0,2}[a-z][\w./]*(\.\w+)*=.*", re.DOTALL)
SECTIONS = {*TrainConfig.__dataclass_fields__, *EvaluateConfig.__dataclass_fields__}
GROUPS = {path.name for path in config_folder().iterdir() if path.is_dir()} | {"teacher/cache"}


def spans():
    """(commands, code span) of every right column; a table's commands come from the comment before it."""
    bases, found = [], []
    for line in PAGE.splitlines():
        if line.startswith("<!-- with: "):
            bases = [shlex.split(part) for part in line[len("<!-- with: ") : -len(" -->")].split(" | ")]
        elif line.startswith("| ") and not line.startswith("| there"):
            right = re.split(r"(?<!\\) \| ", line.strip("| "))[-1]
            found += [(bases, span) for span in re.findall(r"`([^`]+)`", right)]
    return found


def read(span):
    """The command, the overrides and the bare keys of a code span."""
    filled = re.sub(r"<[^<>]+>", "somewhere", span)
    words = shlex.split(filled) if "'" in filled or " " in filled else [filled]
    if words[:1] == ["python"]:
        assert words[1] in ("train.py", "evaluate.py"), span
        return words[1].removesuffix(".py"), [word for word in words[2:] if word != "-m"], []
    if all(WORD.fullmatch(word) or word == "-m" for word in words):
        return None, [word for word in words if word != "-m"], []
    return None, [], [word for word in words if len(words) == 1 and is_key(word)]


def is_key(text):
    return re.fullmatch(r"[a-z]+(\.\w+)+", text) is not None and text.split(".")[0] in SECTIONS


def joined(base, overrides):
    """A command's overrides with others in place of those of the same key or group; the first job of a sweep."""
    single = [re.sub(r"^([\w.]+=)([^\[{'\"]*?),.*", r"\1\2", word) for word in overrides]
    keys = {word.partition("=")[0].lstrip("+") for word in single}
    return [*(word for word in base if word.partition("=")[0] not in keys), *single]


CASES = [
    (bases, span) for bases, span in dict.fromkeys((tuple(map(tuple, b)), s) for b, s in spans()) if any(read(span))
]


@pytest.mark.parametrize(("bases", "span"), CASES, ids=[span[:70] for _, span in CASES])
def test_a_command_or_key_composes(bases, span, compose_config, monkeypatch):
    monkeypatch.setattr("potstill.config.typed.sizes_of", lambda file: {})
    command, overrides, keys = read(span)
    if command is not None:
        compose_config(*joined([], overrides), name=command)
        return
    errors = []
    for script, *base in bases:
        try:
            config = compose_config(*joined(base, overrides), name=script)
            for key in keys:
                value_of(config, key)
        except (ConfigError, AttributeError, KeyError) as error:
            errors.append(error)
        else:
            return
    raise AssertionError(errors)


def test_every_table_has_commands_and_few_spans_are_prose():
    assert len(CASES) > 200
    prose = {span for _, span in spans() if not any(read(span))}
    unknown = {span for span in prose if span.split(".")[0].split("=")[0] in GROUPS and "=" in span}
    assert not unknown
    assert all(bases for bases, _ in spans())
