"""Problems of the folders that a run writes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def output_problems() -> list[str]:
    """Hydra has made the output folder, which works on a full disk too."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return []
    return writable("hydra.run.dir", Path(HydraConfig.get().runtime.output_dir))


def writable(key: str, folder: Path) -> list[str]:
    """Why a folder cannot be written; `key` names it."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        return [f"{key}={folder}: {existing} is a file; name a folder"]
    if not os.access(existing, os.W_OK):
        return [f"{key}={folder}: not writable; name a folder that is"]
    if shutil.disk_usage(existing).free < 1 << 20:
        return [f"{key}={folder}: the disk is full; name a folder with free space"]
    return []
