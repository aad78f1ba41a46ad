"""From what Hydra composed to typed options: the one place where a configuration becomes objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from functools import cache
from typing import Any, TypeVar

from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers.oc import env

from potstill.config import Command, StageConfig, TrainConfig
from potstill.config.benchmarks import TaskBenchmarkConfig
from potstill.config.defaults import settle
from potstill.config.models import sizes_of
from potstill.config.overrides import compose_raw, composition_error, quoted
from potstill.errors import ConfigError, KeyNameError
from potstill.runtime.redaction import redacted, remember_references

_Command = TypeVar("_Command", bound=Command)
_Place = tuple[str | int, ...]  # keys and indices of a value within nested dictionaries and lists


def typed(config: DictConfig, schema: type[_Command]) -> _Command:
    """The options of a command as objects, with all references resolved and the defaults of the run in force.

    Args:
        config: composed by Hydra; not changed.
        schema: `TrainConfig` or `EvaluateConfig`.

    Raises:
        KeyNameError: a key that the schema does not have.
        ConfigError: a required key without a value.
        OmegaConfBaseException: a reference that cannot be resolved, or a value of another type.
    """
    known = {own.name for own in fields(schema)}
    if unknown := [str(key) for key in config if key not in known]:  # added by `+key=value`
        raise KeyNameError(f"{unknown[0]}={config[unknown[0]]}: no such key; `--cfg job` shows all keys")
    config = config.copy()
    if schema is TrainConfig and config.student.config_file is not None:
        with open_dict(config):
            config.student.config = {**sizes_of(config.student.config_file), **config.student.config}
    defaults = settle(config) if schema is TrainConfig else {}
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    if missing := [key for key, value in leaves("", resolved) if value == MISSING]:
        raise ConfigError("; ".join(f"{key}=???: required" for key in missing))
    made = OmegaConf.to_object(config)
    assert isinstance(made, schema)
    made.defaults, made.references = defaults, dict(_references(config, resolved))
    if isinstance(made, TrainConfig):  # references in overrides of stages are resolved by the stages
        stages: Any = OmegaConf.to_container(config.stages, resolve=False)
        made.stages = [StageConfig(**stage) for stage in stages]
    return made


def composed(command: str, overrides: Sequence[str], schema: type[_Command]) -> _Command:
    """The options of a command with these overrides.

    Args:
        command: `train` or `evaluate`.
        overrides: as on the command line.
        schema: of the command.

    Raises:
        ConfigError: overrides that cannot be composed; the message names the first one.
    """
    try:
        return typed(compose_raw(command, list(overrides)), schema)
    except (HydraException, OmegaConfBaseException) as error:
        raise composition_error(command, overrides, error) from error


def benchmark_of(name: str | None, options: dict[str, Any], key: str) -> TaskBenchmarkConfig:
    """A task of `benchmark` outside of a configuration.

    Args:
        name: of the option.
        options: replace its keys.
        key: under which both are given, such as `tasks[0]`.

    Raises:
        ConfigError: an unknown option or key, or a benchmark that is no task.
    """
    if name is None:
        raise ConfigError(f"{key}.benchmark=null: an option of `benchmark`, such as sst2")
    try:
        made = OmegaConf.to_object(OmegaConf.merge(_benchmark(name), options))
    except (HydraException, OmegaConfBaseException) as error:
        words = [f"benchmark={quoted(name)}", *(f"benchmark.{own}={quoted(value)}" for own, value in options.items())]
        found = composition_error("train", words, error)
        section, dot, rest = str(found).partition("benchmark.")
        given = f"options.{rest}" if dot and not section else str(found)
        raise type(found)(f"{key}.{given}") from error
    if not isinstance(made, TaskBenchmarkConfig):
        raise ConfigError(f"{key}.benchmark={name}: is of no task; sst2, or another one of conf/benchmark/")
    return made


@cache
def _benchmark(name: str) -> Any:
    """An option of `benchmark` as composed, which takes half a second."""
    return compose_raw("train", [f"benchmark={quoted(name)}"]).benchmark


def as_written(config: Command) -> dict[str, Any]:
    """A configuration for files and logs: resolved, except for environment variables, and with secrets masked.

    `${oc.env:NAME}` is kept for keys of text; numbers from variables are written as numbers, and values that changed
    since the configuration was composed as they are.
    """
    plain = asdict(config)
    for place, (text, value) in config.references.items():
        section: Any = plain
        with suppress(KeyError, IndexError, TypeError):  # the section was replaced
            for part in place[:-1]:
                section = section[part]
            if section[place[-1]] == value:
                section[place[-1]] = text
    return dict(redacted(plain))


def leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Keys and values within nested dictionaries and lists, `data.train.0.folder`.

    Args:
        key: of the whole; empty for a configuration.
        value: nested, or a value.
    """
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(f"{key}.{name!s}" if key else str(name), inner)
    else:
        yield key, value


def _references(config: DictConfig, resolved: Any) -> Iterator[tuple[_Place, tuple[str, str]]]:
    """Texts that environment variables are part of: with the references in place of the values, and resolved."""
    remember_references(OmegaConf.to_yaml(config))
    OmegaConf.register_new_resolver("oc.env", _reference, replace=True)
    try:
        yield from _differing(config, resolved, ())
    finally:
        OmegaConf.register_new_resolver("oc.env", env, replace=True)


def _differing(node: DictConfig | ListConfig, resolved: Any, place: _Place) -> Iterator[tuple[_Place, tuple[str, str]]]:
    for key in list(resolved) if isinstance(node, DictConfig) else range(len(node)):
        with suppress(OmegaConfBaseException):  # the key takes a number
            value = node[key]
            if isinstance(value, DictConfig | ListConfig):
                yield from _differing(value, resolved[key], (*place, key))
            elif isinstance(value, str) and value != resolved[key]:
                yield (*place, key), (value, resolved[key])


def _reference(name: str, *default: Any) -> str:
    return f"${{oc.env:{','.join(map(str, (name, *default)))}}}"
