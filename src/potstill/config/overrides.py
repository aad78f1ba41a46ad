"""Hydra overrides: values in their grammar, and the override that a configuration cannot be composed with."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from potstill.config import config_folder

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


def composition_error(script: str, words: Sequence[str], error: Exception, *, multirun: bool = False) -> str:
    """One line for an error of Hydra: the first override that does not fit, and what is valid.

    Args:
        script: `train` or `evaluate`.
        words: the overrides.
        error: raised while Hydra composed them.
        multirun: whether the overrides may have several values.
    """
    if isinstance(error, MissingConfigException):
        return _unknown_option(error)
    try:
        overrides = OverridesParser.create().parse_overrides(list(words))
    except HydraException:
        return message_of(error)
    for override in overrides:
        if override.is_sweep_override() and not multirun:
            return (
                f"{override.input_line}: several values need -m; a list is written key=[a,b], text with commas "
                "\"key='a,b'\""
            )
    groups = [next(_single(own), "") for own in overrides if is_group(own)]
    try:
        config = _compose(script, list(filter(None, groups)))
    except Exception:  # anything that OmegaConf raises while it merges options
        return message_of(error)
    for override in overrides:
        if not is_group(override):
            for line in _single(override):
                if found := _error_of(config, OverridesParser.create().parse_override(line)):
                    return f"{line.lstrip('+')}: {found}"
    return message_of(error)


def is_group(override: Override) -> bool:
    """Whether an override chooses an option of a group."""
    return "/" in override.key_or_group or (config_folder() / override.key_or_group).is_dir()


def message_of(error: Exception) -> str:
    """An error of Hydra or OmegaConf as one line that begins with the key, if it has one."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    lines = dict.fromkeys(str(one).strip().partition("\n")[0] for one in (error, cause))
    text = " ".join(" ".join(lines).split()) or type(error).__name__
    key = getattr(cause, "full_key", None)
    return f"{key}: {text}" if key and key not in text else text


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


def _compose(script: str, overrides: list[str]) -> DictConfig:
    ready = GlobalHydra.instance().is_initialized()
    with nullcontext() if ready else initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose(script, overrides, return_hydra_config=True)


def _error_of(config: DictConfig, override: Override) -> str | None:
    """Why a configuration does not take an override; None if it does."""
    parts = override.key_or_group.split(".")
    node: Any = config
    for depth, part in enumerate(parts):
        section = ".".join(parts[:depth])
        if not isinstance(node, DictConfig):
            return f"no such key; `{section}` has no keys"
        if node._is_none():
            return f"no such key; `{section}` is null, choose an option of `{parts[0]}`"
        if part not in node.keys():  # noqa: SIM118 (`in` is false for missing values)
            if section and OmegaConf.get_type(node) is dict:
                return (
                    None
                    if override.is_add() or override.is_force_add()
                    else f"not in {section}; add it with a +"
                )
            return f"no such key{_closest(override.key_or_group, config)}"
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
