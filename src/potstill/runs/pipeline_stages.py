"""The stages of a recipe: what each is told, the configuration that it composes, and what was recorded of it.

Nothing here imports torch, so that a faulty recipe is refused at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from potstill.config import TrainConfig
from potstill.config.defaults import settle
from potstill.errors import ConfigError
from potstill.models.specs import ModelSpec
from potstill.reporting.records import as_written, read_yaml
from potstill.runtime.atomic import write_whole
from potstill.validation import validate_evaluate, validate_train
from potstill.validation.models import planned_faults, planned_student
from potstill.validation.resuming import NEUTRAL, within
from potstill.validation.unread import unread_in, unread_keys

TRAIN, EVALUATE = "train", "evaluate"
RECORD = "stages.yaml"  # in the recipe's folder: the configuration that each stage was begun with
# A folder, and what stands around it within the same value.
_REFERENCE = re.compile(r"""([^\s=,:()\[\]{}'"]*)(\$\{stage:([^}]*)\})([^\s=,:()\[\]{}'"$]*)""")
# What an evaluation has of the recipe: the sections that both commands know, and the hardware of one device.
_JUDGED = ("benchmark", "data", "seed", "compile")
_JUDGED_TRAINER = ("accelerator", "precision", "limit_val_batches", "enable_progress_bar")
# Of the recipe's command line, what is no stage's: what `-m` runs through, the recipe's own stages and folder.
_RECIPES_OWN = ("sweep", "stages", "overwrite")


@dataclass(frozen=True)
class Stage:
    """A stage, ready to run.

    Attributes:
        name: of the stage, and of its folder within the recipe's.
        command: `train` or `evaluate`.
        folder: where it writes.
        overrides: its command line, less the output folder.
        config: what that composes.
        needs: the stages whose folders it reads.
    """

    name: str
    command: str
    folder: Path
    overrides: tuple[str, ...]
    config: DictConfig
    needs: tuple[str, ...]

    @property
    def is_done(self) -> bool:
        """Whether it came to its end."""
        return (self.folder / "summary.json").is_file()

    @property
    def is_begun(self) -> bool:
        """Whether it has left something that it would go on from."""
        return self.is_done or (self.folder / "checkpoints" / "last.ckpt").is_file()


def plan(
    config: DictConfig,
    folder: Path,
    typed: Sequence[str],
    choices: Mapping[str, str | None],
    explain: Callable[[Exception], str] = str,
) -> list[Stage]:
    """The stages of a recipe, each composed like a command line of its own.

    That of a training stage is its `defaults`, what was typed for the recipe less the sections in `without` and the
    keys that the stage does not read, and its `overrides`. An evaluation gets the recipe's benchmark, data, seed and
    hardware, and its own two lists.

    Args:
        config: of the recipe.
        folder: of the recipe.
        typed: the overrides of the recipe's command line.
        choices: the option that the recipe chose of each group.
        explain: a fault of composing as one line.

    Raises:
        ConfigError: names that are no folders, or are there twice; a reference to no earlier stage; overrides that do
            not compose.
    """
    entries: list[dict[str, Any]] = OmegaConf.to_container(config.stages, resolve=False)  # type: ignore[assignment]
    _check_entries(entries)
    stages: list[Stage] = []
    unread: list[
        dict[str, str]
    ] = []  # of each training stage, what was typed for the recipe and it does not read
    for entry in entries:
        name, command = entry["name"], entry["command"]
        known = {stage.name: stage.folder for stage in stages}
        own, needs = _referred(entry["overrides"], name, known)
        first, more = _referred(entry["defaults"], name, known)
        try:
            if command == TRAIN:
                handed = _handed_on(typed, entry["without"])
                overrides, faults = _less_unread([*first, *handed, *own, "stages=[]", "resume=auto"], handed)
                unread.append(faults)
            else:
                overrides = [*_judged(config, choices), *first, *own]
            composed = compose(command, overrides)
            if command == TRAIN:
                settle(composed)
        except (HydraException, OmegaConfBaseException) as fault:
            raise ConfigError(f"stage {name}: {explain(fault)}") from fault
        stages.append(Stage(name, command, folder / name, tuple(overrides), composed, needs + more))
    for override, reason in (unread[0] if unread else {}).items():
        if all(override in others for others in unread):
            raise ConfigError(reason)
    return stages


def check(stages: Sequence[Stage], folder: Path, *, anew: bool = False) -> None:
    """Refuse, before any stage runs, what can be seen of all of them.

    Models of stages that are not done yet are known by their sizes alone; what reads them is checked by the stage
    itself, when it begins.

    Args:
        stages: of the recipe.
        folder: of the recipe.
        anew: whether all stages are run, whatever was done.

    Raises:
        ConfigError: a faulty configuration, or one that is not what a stage was begun with.
    """
    recorded = {} if anew else read_record(folder)
    for stage in [] if anew else stages:
        if stage.is_begun and (change := _first_change(recorded.get(stage.name), settings_of(stage))):
            raise ConfigError(
                f"stage {stage.name}: {change}; take another hydra.run.dir, or remove {stage.folder} and those "
                "after it to run it anew"
            )
    done = {stage.name for stage in stages if stage.is_done and not anew}
    planned: dict[str, ModelSpec] = {}
    for stage in stages:
        ready = set(stage.needs) <= done
        try:
            if stage.command == TRAIN:
                validate_train(stage.config, models=ready)
                _check_planned(stage, planned)
            elif ready:
                validate_evaluate(stage.config)
        except (ConfigError, OmegaConfBaseException) as fault:
            raise ConfigError(f"stage {stage.name}: {fault}") from fault


def _check_planned(stage: Stage, planned: dict[str, ModelSpec]) -> None:
    """Compare the sizes of a stage's models, and add its student to those that later stages read.

    Raises:
        ConfigError: a term or a match cannot compare them.
    """
    if stage.config.tasks:
        return
    if faults := planned_faults(stage.config, planned):
        raise ConfigError("; ".join(faults))
    if (student := planned_student(stage.config, planned)) is not None:
        planned[str(stage.folder / "student")] = student


def settings_of(stage: Stage) -> dict[str, Any]:
    """Every key of a stage's configuration with its value."""
    return dict(_leaves(as_written(stage.config)))


def read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """The settings that each stage was begun with; empty in a new folder.

    Raises:
        ConfigError: a record that cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        found = read_yaml(path)
    except (OSError, ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"hydra.run.dir={folder}: {RECORD} cannot be read; take another folder")
    return found


def write_record(folder: Path, stage: Stage) -> None:
    """Record what a stage is begun with: whole, or not at all."""
    record = {**read_record(folder), stage.name: settings_of(stage)}
    write_whole(folder / RECORD, yaml.safe_dump(record, sort_keys=False))


def _check_entries(entries: Sequence[Mapping[str, Any]]) -> None:
    names = [str(entry["name"]) for entry in entries]
    for name, entry in zip(names, entries, strict=True):
        if not re.fullmatch(r"[A-Za-z0-9]\w*", name):
            raise ConfigError(f"stages.name={name}: names a folder; letters, digits and _ only")
        if names.count(name) > 1:
            raise ConfigError(f"stages: two stages have the name {name}; give each its own")
        if entry["command"] not in (TRAIN, EVALUATE):
            raise ConfigError(f"stages.command={entry['command']} of {name}: one of {TRAIN}, {EVALUATE}")


def _referred(
    overrides: Sequence[str], name: str, known: Mapping[str, Path]
) -> tuple[list[str], tuple[str, ...]]:
    """Overrides with folders in the place of `${stage:<name>}`, and the stages that they refer to."""
    needs: dict[str, None] = {}

    def place(found: re.Match[str]) -> str:
        before, reference, wanted, after = found.groups()
        if wanted not in known:
            there = f"one of {', '.join(known)}" if known else "it is the first"
            raise ConfigError(f"stage {name}: {reference}: no earlier stage of this name; {there}")
        needs[wanted] = None
        return written(f"{before}{known[wanted]}{after}")

    return [_REFERENCE.sub(place, override) for override in overrides], tuple(needs)


def _handed_on(typed: Sequence[str], without: Sequence[str]) -> list[str]:
    """What was typed for the recipe, less the keys and sections that are not this stage's."""
    kept_back = [*without, *_RECIPES_OWN]
    return [
        override
        for override in typed
        if not any(f"{_key(override)}.".startswith(f"{section}.") for section in kept_back)
    ]


def _less_unread(overrides: list[str], handed: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The overrides of a training stage less the handed on ones that it does not read, and what is wrong with these."""
    composed = compose(TRAIN, overrides)
    settle(composed)
    faults = {
        override: found[0]
        for override in handed
        if (found := unread_keys(composed, TrainConfig, [_key(override)]))
    }
    return [override for override in overrides if override not in faults], faults


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _judged(config: DictConfig, choices: Mapping[str, str | None]) -> list[str]:
    """The overrides that give an evaluation what the recipe has of it."""
    groups = [f"{group}={choices[group]}" for group in ("benchmark", "data") if choices.get(group)]
    default = compose(EVALUATE, groups)
    wanted = {key: config[key] for key in _JUDGED if config[key] is not None}
    wanted["trainer"] = {key: config.trainer[key] for key in _JUDGED_TRAINER}
    there = dict(_leaves(OmegaConf.to_container(default, resolve=True)))
    unread = tuple(f"{key}." for key, _ in unread_in(default))
    differing = [
        f"++{key}={written(value)}"
        for key, value in _leaves(OmegaConf.to_container(OmegaConf.create(wanted), resolve=True))
        if there.get(key, ...) != value and not f"{key}.".startswith(unread)
    ]
    return [*groups, *differing]


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values of nested dictionaries; lists are values."""
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _leaves(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def written(value: Any) -> str:
    """A value in Hydra's grammar of overrides; strings quoted, so that none of their characters has a meaning."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        # Backslashes count only before a quote.
        inner = re.sub(r"(\\*)'", r"\1\1\\'", value)
        return "'" + re.sub(r"(\\+)$", r"\1\1", inner) + "'"
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(inner)}" for key, inner in value.items()) + "}"
    return repr(value)


def _first_change(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str | None:
    """The first key that differs from what a stage was begun with; None where none does."""
    if before is None:
        return f"{RECORD} does not tell what it was begun with"
    for key in dict.fromkeys([*now, *before]):
        if before.get(key) != now.get(key) and not within(key, NEUTRAL):
            return f"{key}={now.get(key)}, but it was begun with {before.get(key)}"
    return None
