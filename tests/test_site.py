"""The documentation site: its navigation has every page, and it builds without warnings where mkdocs is installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def pages(nav):
    for entry in nav:
        for target in entry.values():
            yield from pages(target) if isinstance(target, list) else [target]


def outside_pages():
    """The table of docs/hooks.py, which imports mkdocs."""
    code = (ROOT / "docs" / "hooks.py").read_text()
    table = code[code.index("PAGES = {") :].partition("}")[0].removeprefix("PAGES = ") + "}"
    return yaml.safe_load(table)


def test_every_page_is_in_the_navigation():
    nav = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert len(nav) == len(set(nav))
    documents = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    outside = outside_pages()
    api = {page for page in nav if page.startswith("api/")}
    assert documents | set(outside.values()) | api == set(nav)
    for source in outside:
        assert (ROOT / source).is_file()


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    for needed in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed; pip install 'potstill[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    # A proxy that refuses every connection: nothing may be fetched.
    env = {**os.environ, "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for page in ("index", "configuration", "api/losses", "guides/tasks"):
        assert (tmp_path / "site" / f"{page}.html").is_file()
    assert 'id="potstill.losses' in (tmp_path / "site" / "api" / "losses.html").read_text()
