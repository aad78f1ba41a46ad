"""Records of a configuration without secrets: this package's and Hydra's (`.hydra/`, multirun.yaml). No torch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers.oc import env

from potstill.runtime.atomic import write_whole
from potstill.runtime.redaction import redacted, remember_references
from potstill.runtime.small_files import read_small

MULTIRUN_RECORD = "multirun.yaml"

_sweeps: list[Path] = []  # folders of the sweeps of this process


def as_written(config: DictConfig) -> dict[str, Any]:
    """A configuration for files and logs: resolved, except for environment variables, and with secrets masked.

    `${oc.env:NAME}` is kept for keys of text; numbers from variables are written as numbers.
    """
    remember_references(OmegaConf.to_yaml(config))
    resolved = OmegaConf.to_container(config, resolve=True)
    OmegaConf.register_new_resolver("oc.env", _reference, replace=True)
    try:
        kept = _with_references(config, resolved)
    finally:
        OmegaConf.register_new_resolver("oc.env", env, replace=True)
    return dict(redacted(kept))


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


def _reference(name: str, *default: Any) -> str:
    return f"${{oc.env:{','.join(map(str, (name, *default)))}}}"


def _with_references(node: DictConfig | ListConfig, resolved: Any) -> Any:
    """The values of a configuration whose variables resolve to their references, or to their values for numbers."""
    is_list = isinstance(node, ListConfig)
    kept = {}
    for key in range(len(node)) if is_list else list(resolved):
        kept[key] = resolved[key]
        if OmegaConf.is_missing(node, key):
            continue
        with suppress(OmegaConfBaseException):  # the key takes a number
            value = node[key]
            container = isinstance(value, DictConfig | ListConfig)
            kept[key] = _with_references(value, resolved[key]) if container else value
    return list(kept.values()) if is_list else kept


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

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
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
