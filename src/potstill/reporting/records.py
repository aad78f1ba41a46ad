"""What is recorded of a configuration, without secrets: by this package, and by Hydra (`.hydra/`, multirun.yaml).

Nothing here imports torch.
"""

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

_sweeps: list[Path] = []  # folders of this process's sweeps


def as_written(config: DictConfig) -> dict[str, Any]:
    """A configuration as it may be written anywhere: references resolved but for variables, secrets masked.

    `${oc.env:NAME}` stays as it is where its key takes text; a number of a variable is written as the number.
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
    """A configuration while variables resolve to their references; where these do not fit, what they resolve to."""
    is_list = isinstance(node, ListConfig)
    kept = {}
    for key in range(len(node)) if is_list else list(resolved):
        kept[key] = resolved[key]
        if OmegaConf.is_missing(node, key):
            continue
        with suppress(OmegaConfBaseException):  # a number is wanted
            value = node[key]
            container = isinstance(value, DictConfig | ListConfig)
            kept[key] = _with_references(value, resolved[key]) if container else value
    return list(kept.values()) if is_list else kept


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, which can stand for more values than any memory holds; no record of a run has one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file of a run's folder.

    Raises:
        OSError: there is none, or it is not a regular file.
        ValueError: it is too long or not UTF-8.
        yaml.YAMLError: it is no YAML, or has aliases.
    """
    try:
        return _PlainLoader(read_small(path)).get_single_data()
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None


class SweepNoted(Callback):
    """Notes the folder of a sweep, which Hydra writes a record into before its first job."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note the folder."""
        _sweeps.append(Path(str(config.hydra.sweep.dir)))


def mask_record() -> None:
    """Mask secrets in the record of the job that runs, and of the sweep; to be called inside Hydra's job."""
    hydra = HydraConfig.get()
    if hydra.output_subdir is not None:
        for path in sorted((Path(hydra.runtime.output_dir) / hydra.output_subdir).glob("*.yaml")):
            _mask(path)
    mask_sweep_record()


def mask_sweep_record() -> None:
    """Mask secrets in the record of the sweep, also of one that was rejected before its first job."""
    for folder in _sweeps:
        _mask(folder / MULTIRUN_RECORD)


def _mask(path: Path) -> None:
    if not path.is_file():
        return
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if (masked := redacted(content)) != content:
        write_whole(path, yaml.safe_dump(masked, sort_keys=False, allow_unicode=True))
