"""Files that are written whole or not at all: under another name first, which then takes the place of the old one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the name to write under; where that went well it becomes `path`, otherwise nothing of it stays.

    What a killed process left under such a name is removed, so two processes do not write one file at a time.
    """
    for torn in path.parent.glob(f".{path.name}.*.tmp"):
        torn.unlink(missing_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield fresh
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text, in UTF-8."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")
