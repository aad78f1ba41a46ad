"""Pages of the site that are not files of `docs/`, and links between pages and files of the repository.

`api/` has one page per public package, with the names of its `__init__.pyi`.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "conf/README.md": "options.md",
}
PUBLIC = ("potstill", "potstill.losses", "potstill.models", "potstill.interchange", "potstill.objectives")
_EXPORTED = re.compile(r"\bimport \(?\s*(\w+) as \1\b")
_LINK = re.compile(r"(\]\(|src=\")(?![a-z]+:|#)([^)\s\"#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of `PAGES` and of the public packages."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for package in PUBLIC:
        page = f"api/{package.rpartition('.')[2]}.md"
        files.append(File.generated(config, page, content=_api_page(package)))
    return files


def _api_page(package: str) -> str:
    folder = ROOT / "src" / package.replace(".", "/")
    stub = folder / "__init__.pyi"
    if not stub.is_file():
        whole = str("." in package).lower()
        return f"# {package}\n\n::: {package}\n    options:\n      show_submodules: {whole}\n"
    names = sorted(_EXPORTED.findall(stub.read_text()))
    return "\n\n".join([f"# {package}", *(f"::: {package}.{name}" for name in names)]) + "\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to files of the repository become links to their pages, or to the repository where they have none."""
    uri = page.file.src_uri
    source = next((one for one, target in PAGES.items() if target == uri), f"docs/{uri}")

    def moved(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[2]))
        inside = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if inside is None or files.get_file_from_path(inside) is None:
            return f"{link[1]}{config.repo_url}/blob/main/{path}"
        return link[1] + os.path.relpath(inside, posixpath.dirname(uri) or ".")

    return _LINK.sub(moved, markdown)


class ExampleSections(griffe.Extension):
    """`Example:` of a docstring is a section of code, as `Examples:` is."""

    def on_object(self, *, obj: griffe.Object, **options: Any) -> None:
        """Rename the section before the docstring is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
