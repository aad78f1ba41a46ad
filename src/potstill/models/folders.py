"""Folders that appear, or replace an earlier one, in one step, so readers never see an incomplete one. No torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from potstill.runtime import signals
from potstill.runtime.atomic import writing


@contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `folder` at the end of the block, or removed after an error.

    Raises:
        WriteError: the folder cannot be written.
    """
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        with writing(folder):
            fresh.mkdir(parents=True)
            yield fresh
            with signals.held():
                _replace(folder, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _replace(folder: Path, fresh: Path) -> None:
    # A folder cannot be renamed over one with files, so the old one is renamed first.
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        fresh.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
