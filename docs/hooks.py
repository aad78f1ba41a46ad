"""Pages of the site that lie outside `docs/`, and the links between all pages and files of the repository."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "conf/README.md": "options.md",
}
_LINK = re.compile(r"(\]\(|src=\")(?![a-z]+:|#)([^)\s\"#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of `PAGES`."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


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
