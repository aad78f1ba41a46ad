"""Faults of the runs that are to be put into one table."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from potstill.errors import PotstillError
from potstill.runs.sweeps import metrics_of, read_sweep


def sweep_faults(config: DictConfig, models: list[str]) -> list[str]:
    """Of a folder that is none or holds no runs, of metrics that no run has, and of models named beside it."""
    folder, faults = config.sweep.folder, []
    if models:
        faults.append(
            f"model={','.join(models)} with sweep={folder}: a sweep's runs are tabulated as they are; leave out one of "
            "the two"
        )
    try:
        metrics_of(read_sweep(Path(folder).expanduser()), config.sweep.metrics)
    except PotstillError as fault:
        faults.append(str(fault))
    return faults
