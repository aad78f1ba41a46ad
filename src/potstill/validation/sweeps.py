"""Errors of `sweep.folder` and `sweep.metrics`."""

from __future__ import annotations

from pathlib import Path

from potstill.config import EvaluateConfig
from potstill.errors import PotstillError
from potstill.reporting.sweeps import metrics_of, read_sweep


def sweep_problems(config: EvaluateConfig, models: list[str]) -> list[str]:
    """Folders without runs, metrics that no run has, and models that are named together with a sweep."""
    folder, errors = config.sweep.folder, []
    if models:
        errors.append(f"model={','.join(models)} with sweep={folder}: give one of the two")
    try:
        metrics_of(read_sweep(Path(str(folder)).expanduser()), config.sweep.metrics)
    except PotstillError as error:
        errors.append(str(error))
    return errors
