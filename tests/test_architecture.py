"""Imports run the way that docs/architecture.md says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "potstill"
ROW = re.compile(r"^\| (?P<rooms>`.*?) \|.*\| (?P<imports>[^|]*) \|$")
NAME = re.compile(r"`([\w./]+?)(?:\.py|/)?`")
FREE = {
    "__init__",
    "atomic",
    "redaction",
    "errors",
    "jsontext",
    "signals",
    "small_files",
}


def the_map():
    """By room of the table what it may import, those of its own row too; None for everything."""
    allowed = {}
    text = (ROOT / "docs" / "architecture.md").read_text()
    for line in text[: text.index("The arrow runs")].splitlines():
        if row := ROW.match(line):
            everything = re.search("everything|all rooms below", row["imports"])
            own = NAME.findall(row["rooms"])
            for room in own:
                allowed[room] = None if everything else {*own, *NAME.findall(row["imports"])}
    return allowed


def imported(path):
    """Rooms of ours that a file imports, at its top or late, but for types alone."""
    tree, types = ast.parse(path.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            types |= {id(inner) for inner in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "potstill":
            parts = node.module.split(".")[1:]
            found |= {".".join(parts)} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("potstill.") for a in node.names if a.name.startswith("potstill.")}
    return found


def rooms():
    return sorted(
        path.stem if path.is_file() else path.name
        for path in SOURCE.iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and path.stem not in FREE
    )


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_what_the_map_lets_it(room):
    allowed = the_map()
    assert room in allowed, f"docs/architecture.md has no row of {room}"
    if allowed[room] is None:
        return
    home = SOURCE / room
    files = home.rglob("*.py") if home.is_dir() else [home.with_suffix(".py")]
    beyond = {
        f"{path.relative_to(SOURCE)}: {name}"
        for path in files
        for name in imported(path)
        if name.split(".")[0] not in FREE and not covered(name) & allowed[room]
    }
    assert not beyond, f"docs/architecture.md lets {room} import {sorted(allowed[room])}"


def covered(name):
    """`data.tasks.rows` is in `data`, in `data.tasks`, and itself."""
    parts = name.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
