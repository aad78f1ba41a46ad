"""summary.json and config.yaml of a run."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any

import yaml

import potstill
from potstill.config import Command
from potstill.config.typed import as_written
from potstill.runtime.atomic import write_whole
from potstill.runtime.json_text import json_text
from potstill.runtime.redaction import redacted


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write summary.json atomically, as the last of a run's results: if it exists, the others do."""
    write_whole(folder / "summary.json", json_text(redacted(summary), indent=2) + "\n")


def write_config(folder: Path, config: Command) -> None:
    """Write config.yaml atomically."""
    write_whole(folder / "config.yaml", config_text(config))


def config_text(config: Command) -> str:
    """A configuration as YAML, without secrets."""
    return yaml.safe_dump(as_written(config), sort_keys=False, allow_unicode=True)


def provenance(config: Command) -> dict[str, Any]:
    """Seed, commit of the code and package versions."""
    packages = ("torch", "lightning", "transformers", "tokenizers")
    versions = {"potstill": potstill.__version__, **{name: importlib.metadata.version(name) for name in packages}}
    return {
        "seed": config.seed,
        "git_commit": _git_commit(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def _git_commit() -> str | None:
    """The commit of the checkout, with `-dirty` if files were changed; None outside of a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return f"{commit}-dirty" if git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None
