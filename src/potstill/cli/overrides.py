"""Checks and normalization of the command line before Hydra reads it. No torch."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Sequence
from typing import Any, NoReturn

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from potstill.config import config_folder
from potstill.config.overrides import quoted
from potstill.errors import ConfigError

_KEY = re.compile(r"(?:\+{0,2}|~)[\w$][\w.$/-]*(?:@[\w.$/:-]+)?")
MAX_CHARACTERS = 100_000  # of an override; a command line has little more


def command_line(arguments: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Hydra's parser and the parsed flags and overrides.

    Raises:
        ConfigError: an unknown flag.
    """
    parser = get_args_parser()

    def error(message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists the flags")

    parser.error = error  # type: ignore[method-assign]  # argparse's own prints several lines
    parsed = parser.parse_args(list(arguments))
    if parsed.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun: reads a pickle; run the command again instead")
    return parser, parsed


def readable(script: str, arguments: Sequence[str]) -> list[str]:
    """The arguments with text that Hydra's grammar lacks in quotes, and `~/` expanded, as in `model=~/größer`.

    Args:
        script: `train` or `evaluate`.
        arguments: of the command line, without the program's name.

    Raises:
        ConfigError: an argument that is not an override, or an invalid option of a group.
    """
    for word in arguments:
        if any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in word):
            raise ConfigError(f"{_key(word)}: bytes that are not UTF-8; write the value in UTF-8")
        if len(word) > MAX_CHARACTERS:
            raise ConfigError(f"{_key(word)}: longer than {MAX_CHARACTERS} characters")
    read = {}
    for word in command_line(arguments)[1].overrides:
        read[word] = word if _parsed(word) else _quoted_text(word)
        override = _parsed(read[word])
        if override is None or not _KEY.fullmatch(word.partition("=")[0]):
            raise ConfigError(_grammar_error(word))
        if group_error := _group_error(script, override):
            raise ConfigError(group_error)
    return [read.get(word, word) for word in arguments]


def _quoted_text(word: str) -> str:
    """An override with its text, or each text of its list, in quotes, unless parts of it are Hydra's grammar."""
    key, equals, value = word.partition("=")
    inner = value[1:-1] if value.startswith("[") and value.endswith("]") else None
    if not equals or re.search(r"""[=\[\]{}()'"$\\]""", value if inner is None else inner):
        return word
    if inner is not None:
        return f"{key}=[{','.join(quoted(_expanded(text.strip())) for text in inner.split(','))}]"
    return word if "," in value else f"{key}={quoted(_expanded(value))}"


def _expanded(text: str) -> str:
    return os.path.expanduser(text) if text.startswith("~/") else text  # noqa: PTH111 (unchanged without a home)


def _key(word: str) -> str:
    return word.partition("=")[0][:200]


def _grammar_error(word: str) -> str:
    """The error of a word that Hydra cannot read, with quotes around the value if they help."""
    key, equals, value = word.partition("=")
    expected = f"{word}: expected key=value or group=option"
    if not equals or not _KEY.fullmatch(key):
        return expected
    for text in (_quoted_list(value), quoted(value)):
        whole = f"{key}={text}"
        if text is not None and _parsed(whole):
            shown = shlex.quote(whole) if re.search(r'["$`\\!]', whole) else f'"{whole}"'
            return f"{expected}; put text with = , [ ] {{ }} ( ) $ or quotes in quotes inside of the shell's, {shown}"
    return expected


def _quoted_list(value: str) -> str | None:
    """A plain list with each of its texts in quotes; None for anything else."""
    if not (value.startswith("[") and value.endswith("]")) or re.search(r"[\[\]{}'\"]", value[1:-1]):
        return None
    return f"[{','.join(quoted(text.strip()) for text in value[1:-1].split(','))}]"


def _parsed(word: str) -> Override | None:
    """An override as Hydra reads it; None if it cannot."""
    try:
        return OverridesParser.create().parse_override(word)
    except (HydraException, ValueError):  # a ValueError is Python's, for numbers with too many digits
        return None


def _group_error(script: str, override: Override) -> str | None:
    """Error of an invalid value for a group; None for valid ones and for keys."""
    group = override.key_or_group
    folder = config_folder() / group
    if not folder.is_dir() or override.is_delete() or override.is_sweep_override():
        return None
    value: Any = override.value()
    if (value is None and group in _optional_groups(script)) or (isinstance(value, str) and value):
        return None
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    return f"{override.input_line}: expected an option of `{group}`, one of {known}"


def _optional_groups(script: str) -> set[str]:
    """Groups without a default option."""
    defaults = yaml.safe_load((config_folder() / f"{script}.yaml").read_text(encoding="utf-8"))["defaults"]
    entries = [entry for entry in defaults if isinstance(entry, dict)]
    return {group for entry in entries for group, option in entry.items() if option is None}
