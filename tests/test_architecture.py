"""Imports run downwards through the packages, in the order of the table in docs/architecture.md."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "potstill"
ROW = re.compile(r"^\| `(?P<package>\w+)(?:/|\.py)` \|")


def layers():
    """Packages of the table, the highest first."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    return [row["package"] for row in map(ROW.match, text.splitlines()) if row]


def packages():
    return sorted(path.stem for path in SOURCE.iterdir() if path.stem not in ("__init__", "__pycache__", "py"))


def imported(path):
    """Packages of potstill that a file imports, at its top or late, but for types alone."""
    tree, types = ast.parse(path.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            types |= {id(inner) for inner in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("potstill.")}
    return found


def test_every_package_has_a_row():
    assert sorted(layers()) == packages()


@pytest.mark.parametrize("package", packages())
def test_a_package_imports_only_packages_below_it(package):
    order, home = layers(), SOURCE / package
    below = order[order.index(package) :]
    files = home.rglob("*.py") if home.is_dir() else [home.with_suffix(".py")]
    upwards = {
        f"{path.relative_to(SOURCE)}: {name}"
        for path in files
        for name in imported(path)
        if name in order and name not in below
    }
    assert not upwards
