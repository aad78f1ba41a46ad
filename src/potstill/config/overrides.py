"""Hydra overrides: values in their grammar, and the override that a configuration cannot be composed with."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from potstill.config import OPTIONS, config_folder, options_of
from potstill.errors import ConfigError, KeyNameError

_NO_KEY = "no such key"
TYPES = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def quoted(value: Any) -> str:
    """A value in Hydra's grammar of overrides; strings are quoted, so that all of their characters are literal."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        # Backslashes count only before a quote.
        inner = re.sub(r"(\\*)'", r"\1\1\\'", value)
        return "'" + re.sub(r"(\\+)$", r"\1\1", inner) + "'"
    if isinstance(value, list):
        return f"[{','.join(map(quoted, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{quoted(inner)}" for key, inner in value.items()) + "}"
    return repr(value)


def composition_error(script: str, words: Sequence[str], error: Exception, *, multirun: bool = False) -> ConfigError:
    """The user error for one of Hydra: the first override that does not fit, and what is valid.

    Args:
        script: `train` or `evaluate`.
        words: the overrides.
        error: raised while Hydra composed them.
        multirun: whether the overrides may have several values.
    """
    if isinstance(error, MissingConfigException):
        return KeyNameError(_unknown_option(error))
    try:
        overrides = OverridesParser.create().parse_overrides(list(words))
    except HydraException:
        return ConfigError(message_of(error))
    for override in overrides:
        if override.is_sweep_override() and not multirun:
            return ConfigError(
                f"{override.input_line}: several values need -m; a list is written key=[a,b], text with commas "
                "\"key='a,b'\""
            )
    groups = [next(_single(own), "") for own in overrides if _chooses(own)]
    try:
        config = compose_raw(script, list(filter(None, groups)), hydra=True)
    except Exception as clash:  # anything that OmegaConf raises while it merges options
        return _unknown_key(clash) or _clash(clash, groups) or ConfigError(message_of(error))
    for override in overrides:
        if not _chooses(override):
            for line in _single(override):
                if found := _error_of(config, OverridesParser.create().parse_override(line)):
                    kind = KeyNameError if found.startswith(_NO_KEY) else ConfigError
                    return kind(f"{line.lstrip('+')}: {found}")
    return ConfigError(message_of(error))


def is_group(override: Override) -> bool:
    """Whether an override chooses an option of a group."""
    return "/" in override.key_or_group or (config_folder() / override.key_or_group).is_dir()


def _chooses(override: Override) -> bool:
    """Whether an override chooses an option, or where options are found."""
    return is_group(override) or override.key_or_group == "hydra.searchpath"


def message_of(error: Exception) -> str:
    """An error of Hydra or OmegaConf as one line that begins with the key, if it has one."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    lines = dict.fromkeys(str(one).strip().partition("\n")[0] for one in (error, cause))
    text = " ".join(" ".join(lines).split()) or type(error).__name__
    key = getattr(cause, "full_key", None)
    return f"{key}: {text}" if key and key not in text else text


def _clash(error: Exception, groups: Sequence[str]) -> ConfigError | None:
    """The error of a recipe that sets a key which a chosen option does not have."""
    key, recipe = getattr(error.__context__, "full_key", None), re.match(r"In '([^']+)/([^']+)'", str(error))
    if not (key and recipe and isinstance(error.__context__, ConfigKeyError)):
        return None
    chosen = [own for own in groups if own.startswith(f"{key.partition('.')[0]}=")]
    line = f"{recipe[1]}={recipe[2]} sets {key}, which the option does not have"
    return KeyNameError(f"{chosen[-1]}: {line}" if chosen else line)


def _unknown_key(error: Exception) -> KeyNameError | None:
    """The error of an option of the user's own that sets a key which its schema does not have."""
    found = re.match(r"In '(\w+)/([^']+)': ConfigKeyError raised while composing config:\s*([^\n]*)", str(error))
    if found is None or found[1] not in OPTIONS:
        return None
    group, option, reason = found.groups()
    known = ", ".join(f"/schema/{group}/{name}@_here_" for name in OPTIONS[group])
    return KeyNameError(
        f"{group}={option}: {reason}; `defaults` of its file names the schema that has it, one of {known}"
    )


def _unknown_option(error: MissingConfigException) -> str:
    """Hydra's own message lists its search path instead of the options."""
    if (error.missing_cfg_file or "").startswith("hydra/launcher/submitit_"):
        return "hydra/launcher: hydra_submitit_launcher is not installed; pip install 'potstill[submitit]'"
    if not error.missing_cfg_file or not error.options:
        return " ".join(str(error).partition("Config search path")[0].split())
    group, _, option = error.missing_cfg_file.rpartition("/")
    close = difflib.get_close_matches(option, error.options, n=1)
    guess = f"; did you mean `{group}={close[0]}`?" if close else ""
    return f"{group}={option}: no such option; one of {', '.join(error.options)}{guess}"


def _single(override: Override) -> Iterator[str]:
    """An override, or one for each value of a sweep; none for intervals."""
    if not override.is_sweep_override():
        yield str(override.input_line)
    elif not isinstance(override.value(), IntervalSweep):
        key = str(override.input_line).partition("=")[0]
        yield from (f"{key}={value}" for value in override.sweep_string_iterator())


def compose_raw(script: str, overrides: list[str], *, hydra: bool = False) -> DictConfig:
    """What Hydra composes, within an application of Hydra or without one; `hydra`: with its own keys."""
    ready = GlobalHydra.instance().is_initialized()
    with nullcontext() if ready else initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose(script, overrides, return_hydra_config=hydra)


def _error_of(config: DictConfig, override: Override) -> str | None:
    """Why a configuration does not take an override; None if it does."""
    parts = override.key_or_group.split(".")
    node: Any = config
    for depth, part in enumerate(parts):
        section = ".".join(parts[:depth])
        if not isinstance(node, DictConfig):
            return f"{_NO_KEY}; `{section}` has no keys"
        if node._is_none():
            return f"{_NO_KEY}; `{section}` is null, choose an option of `{parts[0]}`"
        if part not in node.keys():  # noqa: SIM118 (`in` is false for missing values)
            if section and OmegaConf.get_type(node) is dict:
                return None if override.is_add() or override.is_force_add() else f"not in {section}; add it with a +"
            return f"{_NO_KEY}{_elsewhere(parts, config) or _closest(override.key_or_group, config)}"
        node = node._get_node(part)
    if override.is_delete():
        return None
    try:
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    except Exception as error:  # OmegaConf raises errors of any type
        return _expected(node, override.value()) or message_of(error)
    return None


def _expected(node: Any, value: Any) -> str | None:
    if value is None:
        return "expected a value, not null"
    if isinstance(node, ListConfig):
        return "expected a list, [a,b]"
    if isinstance(node, DictConfig):
        return "expected a dictionary, {key: value}"
    kind = node._metadata.ref_type
    return f"expected {TYPES[kind]}" if kind in TYPES else None


def _elsewhere(parts: list[str], config: DictConfig) -> str | None:
    """Which other options of a group have a key, by the options of `conf/` that begin with their schemas."""
    group, *inner = parts
    known = options_of(group, [name for name, schema in OPTIONS.get(group, {}).items() if _has(schema, inner)])
    return (
        f" of {group}={config[group].name}; {group}={', '.join(known)} {'have' if known[1:] else 'has'} it"
        if known
        else None
    )


def _has(schema: Any, parts: list[str]) -> bool:
    for part in parts:
        hints = get_type_hints(schema) if is_dataclass(schema) else {}
        if part not in hints:
            return False
        schema = hints[part]
    return True


def _closest(wanted: str, config: DictConfig) -> str:
    known = [*_keys(config), *(path.name for path in config_folder().iterdir() if path.is_dir())]
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.6)
    return f"; did you mean `{close[0]}`?" if close else "; --help lists the groups, `--cfg job` all keys"


def _keys(section: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, section):
        yield f"{prefix}{key}"
        inner = section._get_node(key)
        if isinstance(inner, DictConfig) and not inner._is_none() and not inner._is_missing():
            yield from _keys(inner, f"{prefix}{key}.")
