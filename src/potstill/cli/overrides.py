"""What is wrong with the words of a command line, before Hydra composes them. No torch."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from potstill.config import EvaluateConfig, TrainConfig, config_folder
from potstill.errors import ConfigError
from potstill.runs.pipeline_stages import written

_KEY = re.compile(r"(?:\+{0,2}|~)[\w$][\w.$/-]*(?:@[\w.$/:-]+)?")
_LONGEST = 100_000  # characters of an override; a command line has little more


def readable(script: str, arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra can read them: text in letters that its grammar lacks is put in quotes.

    `teacher.model=~/models/größer` has one meaning, although Hydra's grammar has neither `~` nor `ö`. A `~/` is the
    user's home, as in a shell.

    Args:
        script: `train` or `evaluate`.
        arguments: of the command line, less the program's name.

    Raises:
        ConfigError: a word that is no override, or the wrong value for a group.
    """
    for word in arguments:
        if any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in word):
            raise ConfigError(f"{_named(word)}: holds bytes that are not UTF-8; write the value in UTF-8")
        if len(word) > _LONGEST:
            raise ConfigError(f"{_named(word)}: longer than {_LONGEST} characters")
    read = {}
    for word in _overrides(arguments):
        read[word] = word if _parsed(word) else _plain_text(word)
        override = _parsed(read[word])
        if override is None or not _KEY.fullmatch(word.partition("=")[0]):
            raise ConfigError(_grammar(word))
        if unfit := _group_fault(script, override):
            raise ConfigError(unfit)
    return [read.get(word, word) for word in arguments]


def _plain_text(word: str) -> str:
    """An override with its text, or each text of its list, in quotes, where nothing in it is Hydra's grammar."""
    key, equals, value = word.partition("=")
    inner = value[1:-1] if value.startswith("[") and value.endswith("]") else None
    if not equals or re.search(r"""[=\[\]{}()'"$\\]""", value if inner is None else inner):
        return word
    if inner is not None:
        return f"{key}=[{','.join(written(_home(text.strip())) for text in inner.split(','))}]"
    return word if "," in value else f"{key}={written(_home(value))}"


def _home(text: str) -> str:
    return os.path.expanduser(text) if text.startswith("~/") else text  # noqa: PTH111 (without a home it stays)


def _overrides(arguments: Sequence[str]) -> list[str]:
    """The words that are no flags of Hydra's, nor values of such."""
    parser = get_args_parser()

    def refuse(message: str) -> None:
        raise ConfigError(f"{message}; --help lists the flags")

    parser.error = refuse  # type: ignore[assignment,method-assign]  # argparse's own prints several lines
    return list(parser.parse_args(list(arguments)).overrides)


def _named(word: str) -> str:
    """The key of an override; the whole word where it has none."""
    return word.partition("=")[0][:200]


def _grammar(word: str) -> str:
    """A word that Hydra cannot read, with its own quotes around the value where they help."""
    key, equals, value = word.partition("=")
    form = f"{word}: not of the form key=value or group=option"
    if not equals or not _KEY.fullmatch(key):
        return form
    for quoted in (_quoted_list(value), written(value)):
        whole = f"{key}={quoted}"
        if quoted is not None and _parsed(whole):
            shown = shlex.quote(whole) if re.search(r'["$`\\!]', whole) else f'"{whole}"'
            return (
                f"{form}; = , [ ] {{ }} ( ) $ and quotes are Hydra's grammar, and text that has them is put in quotes "
                f"inside those of the shell, {shown}"
            )
    return form


def _quoted_list(value: str) -> str | None:
    """A plain list with each of its texts in quotes; None of anything else."""
    if not (value.startswith("[") and value.endswith("]")) or re.search(r"[\[\]{}'\"]", value[1:-1]):
        return None
    return f"[{','.join(written(text.strip()) for text in value[1:-1].split(','))}]"


def _parsed(word: str) -> Override | None:
    """An override as Hydra reads it; None where it cannot."""
    try:
        return OverridesParser.create().parse_override(word)
    except (HydraException, ValueError):  # a ValueError is Python's, of a number with too many digits
        return None


def _group_fault(script: str, override: Override) -> str | None:
    """What is wrong with the value for a group; None where it is an option's name, or the key is none of a group."""
    group = override.key_or_group
    folder = config_folder() / group
    if not folder.is_dir() or override.is_delete() or override.is_sweep_override():
        return None
    value: Any = override.value()
    if (value is None and group in _optional_groups(script)) or (isinstance(value, str) and value):
        return None
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    return f"{override.input_line}: an option of `{group}`, one of {known}"


def _optional_groups(script: str) -> set[str]:
    """The groups of which no option is chosen by default."""
    defaults = yaml.safe_load((config_folder() / f"{script}.yaml").read_text(encoding="utf-8"))["defaults"]
    return {
        group
        for entry in defaults
        if isinstance(entry, dict)
        for group, option in entry.items()
        if option is None
    }


def not_composable(script: str, arguments: Sequence[str], fault: Exception) -> str:
    """The first override that does not fit those before it, where Hydra has raised something without naming it."""
    words = sorted(
        _overrides(arguments), key=lambda word: not (config_folder() / word.partition("=")[0]).is_dir()
    )
    if null := _in_null_section(words):
        return null
    reason = f"{type(fault).__name__}: {' '.join(str(fault).split())[:200]}"
    for last in range(1, len(words) + 1):
        try:
            with initialize_config_dir(str(config_folder()), version_base="1.3"):
                compose(script, words[:last])
        except Exception:
            return f"{words[last - 1]}: does not fit here ({reason}); `--cfg job` shows the keys and their values"
    return f"{' '.join(words)}: cannot be composed ({reason})"


def _in_null_section(overrides: list[str]) -> str | None:
    """What is wrong with the first override of a key whose section is null unless an option fills it."""
    for override in overrides:
        parts = override.partition("=")[0].lstrip("+").split(".")
        for schema in (TrainConfig, EvaluateConfig):
            if section := _null_section(OmegaConf.structured(schema), parts):
                return f"{override}: `{section}` is null here; choose an option of `{parts[0]}` that has it"
    return None


def _null_section(node: DictConfig, parts: list[str]) -> str | None:
    for depth, part in enumerate(parts[:-1], 1):
        inner = node._get_node(part) if part in set(node.keys()) else None
        if not isinstance(inner, DictConfig):
            return None
        if inner._is_none():
            return ".".join(parts[:depth])
        node = inner
    return None
