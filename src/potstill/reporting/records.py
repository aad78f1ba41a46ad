"""Hydra's records of a configuration (`.hydra/`, multirun.yaml) without secrets, and YAML of runs. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback

from potstill.runtime.atomic import write_whole
from potstill.runtime.redaction import redacted
from potstill.runtime.small_files import read_small

MULTIRUN_RECORD = "multirun.yaml"

_sweeps: list[Path] = []  # folders of the sweeps of this process


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their full keys, as on the command line: `{"trainer.max_steps": 10}`.

    Args:
        config: nested; lists stay whole, empty sections are left out.
        prefix: of the keys.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, which could expand to more values than fit in memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not supported")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file in the folder of a run.

    Raises:
        OSError, ValueError: as `read_small`.
        yaml.YAMLError: invalid YAML, or aliases.
    """
    try:
        return _PlainLoader(read_small(path)).get_single_data()
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None


class SweepNoted(Callback):
    """Remembers the folder of a sweep, where Hydra writes a record before the first job."""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Remember the folder."""
        _sweeps.append(Path(str(config.hydra.sweep.dir)))


def mask_record() -> None:
    """Mask secrets in the records of the running job and of its sweep; called inside of the job."""
    hydra = HydraConfig.get()
    if hydra.output_subdir is not None:
        for path in sorted((Path(hydra.runtime.output_dir) / hydra.output_subdir).glob("*.yaml")):
            _mask(path)
    mask_sweep_record()


def mask_sweep_record() -> None:
    """Mask secrets in the record of the sweep, also if it was rejected before its first job."""
    for folder in _sweeps:
        _mask(folder / MULTIRUN_RECORD)


def _mask(path: Path) -> None:
    if not path.is_file():
        return
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if (masked := redacted(content)) != content:
        write_whole(path, yaml.safe_dump(masked, sort_keys=False, allow_unicode=True))
