"""The stages of a pipeline: overrides, composed configurations, and the record of them. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from potstill.config import SCHEMAS, EvaluateConfig, StageConfig, TrainConfig
from potstill.config.overrides import quoted
from potstill.config.typed import as_written, composed
from potstill.errors import ConfigError
from potstill.models.specs import ModelSpec
from potstill.reporting.records import flattened, read_yaml
from potstill.runs.checks import validate_evaluate, validate_train
from potstill.runtime.atomic import write_whole
from potstill.validation.models import planned_problems, planned_student
from potstill.validation.resuming import NEUTRAL, within
from potstill.validation.unread import unread_in, unread_keys

TRAIN, EVALUATE = "train", "evaluate"
RECORD = "stages.yaml"  # in the pipeline's folder: the configuration that each stage was started with
# A reference to a stage's folder, with the rest of the same value around it.
_REFERENCE = re.compile(r"""([^\s=,:()\[\]{}'"]*)(\$\{stage:([^}]*)\})([^\s=,:()\[\]{}'"$]*)""")
# Sections of the pipeline that an evaluation takes over, and the trainer's keys among them.
_EVALUATED = ("benchmark", "data", "seed", "compile")
_EVALUATED_TRAINER = ("accelerator", "precision", "limit_val_batches", "enable_progress_bar")
_PIPELINE_KEYS = ("sweep", "stages", "overwrite")  # not handed to stages


@dataclass(frozen=True)
class Stage:
    """A stage, ready to run.

    Attributes:
        name: of the stage, and of its folder inside of the pipeline's.
        command: `train` or `evaluate`.
        folder: its output folder.
        overrides: its command line, without the output folder.
        config: composed from the overrides.
        needs: names of the stages whose folders it reads.
    """

    name: str
    command: str
    folder: Path
    overrides: tuple[str, ...]
    config: Any
    needs: tuple[str, ...]

    @property
    def is_done(self) -> bool:
        """Whether it has finished."""
        return (self.folder / "summary.json").is_file()

    @property
    def is_begun(self) -> bool:
        """Whether it has finished or left a checkpoint."""
        return self.is_done or (self.folder / "checkpoints" / "last.ckpt").is_file()


def plan(config: TrainConfig, folder: Path, given: Sequence[str], choices: Mapping[str, str | None]) -> list[Stage]:
    """The stages of a pipeline, each composed from a command line of its own.

    A training stage has its `defaults`, the pipeline's overrides without the sections in `without` and the keys that
    the stage does not read, and its `overrides`. An evaluation has the pipeline's benchmark, data, seed and hardware,
    its `defaults` and its `overrides`.

    Args:
        config: of the pipeline.
        folder: of the pipeline.
        given: the overrides of the pipeline's command line.
        choices: the pipeline's option of each group.

    Raises:
        ConfigError: invalid or repeated names, references to stages that do not come earlier, overrides that do not
            compose.
    """
    _check_entries(config.stages)
    stages: list[Stage] = []
    unread: list[dict[str, str]] = []  # for each training stage: overrides that it does not read, with the reason
    for entry in config.stages:
        name, command = entry.name, entry.command
        known = {stage.name: stage.folder for stage in stages}
        own, needs = _referred(entry.overrides, name, known)
        first, more = _referred(entry.defaults, name, known)
        overrides = [*first, *own]
        try:
            if command == TRAIN:
                handed = _handed_down(given, entry.without)
                overrides = [*first, *handed, *own, "stages=[]", "resume=auto"]
                ignored = _unread(overrides, handed)
                overrides = [override for override in overrides if override not in ignored]
                unread.append(ignored)
            else:
                overrides = [*_evaluation_overrides(config, choices), *overrides]
            own_config = composed(command, overrides, SCHEMAS[command])
        except ConfigError as error:
            raise type(error)(f"stage {name}: {error}") from error
        stages.append(Stage(name, command, folder / name, tuple(overrides), own_config, needs + more))
    for override, reason in (unread[0] if unread else {}).items():
        if all(override in others for others in unread):
            raise ConfigError(reason)
    return stages


def check(stages: Sequence[Stage], folder: Path, *, anew: bool = False) -> None:
    """Validate all stages before any of them runs.

    Models of unfinished stages are known by their sizes only; other checks of them run when their stage starts.

    Args:
        stages: of the pipeline.
        folder: of the pipeline.
        anew: whether finished stages run again.

    Raises:
        ConfigError: an invalid configuration, or one that differs from that which a stage was started with.
    """
    recorded = {} if anew else read_record(folder)
    for stage in [] if anew else stages:
        if stage.is_begun and (change := _first_change(recorded.get(stage.name), settings_of(stage))):
            raise ConfigError(
                f"stage {stage.name}: {change}; use another hydra.run.dir, or remove {stage.folder} and the later ones"
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
        except ConfigError as error:
            raise type(error)(f"stage {stage.name}: {error}") from error


def _check_planned(stage: Stage, planned: dict[str, ModelSpec]) -> None:
    """Check the sizes of a stage's models against its terms, and add its student to the planned models."""
    if stage.config.tasks:
        return
    if errors := planned_problems(stage.config, planned):
        raise ConfigError("; ".join(errors))
    if (student := planned_student(stage.config, planned)) is not None:
        planned[str(stage.folder / "student")] = student


def settings_of(stage: Stage) -> dict[str, Any]:
    """Every key of a stage's configuration with its value."""
    return flattened(as_written(stage.config))


def read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """The settings that each stage was started with; empty in a new folder.

    Raises:
        ConfigError: the record cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        found = read_yaml(path)
    except (OSError, ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"hydra.run.dir={folder}: {RECORD} cannot be read; use another folder")
    return found


def write_record(folder: Path, stage: Stage) -> None:
    """Add the settings of a stage to the record, atomically."""
    record = {**read_record(folder), stage.name: settings_of(stage)}
    write_whole(folder / RECORD, yaml.safe_dump(record, sort_keys=False))


def _check_entries(entries: Sequence[StageConfig]) -> None:
    names = [entry.name for entry in entries]
    for name, entry in zip(names, entries, strict=True):
        if not re.fullmatch(r"[A-Za-z0-9]\w*", name):
            raise ConfigError(f"stages.name={name}: expected letters, digits and _")
        if names.count(name) > 1:
            raise ConfigError(f"stages.name={name}: used twice; names must be unique")
        if entry.command not in SCHEMAS:
            raise ConfigError(f"stages.command={entry.command} of {name}: one of {', '.join(SCHEMAS)}")


def _referred(overrides: Sequence[str], name: str, known: Mapping[str, Path]) -> tuple[list[str], tuple[str, ...]]:
    """Overrides with `${stage:<name>}` replaced by folders, and the stages that they refer to."""
    needs: dict[str, None] = {}

    def replaced(found: re.Match[str]) -> str:
        before, reference, wanted, after = found.groups()
        if wanted not in known:
            valid = f"one of {', '.join(known)}" if known else "this is the first stage"
            raise ConfigError(f"stage {name}: {reference}: not an earlier stage; {valid}")
        needs[wanted] = None
        return quoted(f"{before}{known[wanted]}{after}")

    return [_REFERENCE.sub(replaced, override) for override in overrides], tuple(needs)


def _handed_down(given: Sequence[str], without: Sequence[str]) -> list[str]:
    """The pipeline's overrides, without those of the given sections and the pipeline's own keys."""
    excluded = tuple(f"{section}." for section in (*without, *_PIPELINE_KEYS))
    return [override for override in given if not f"{_key(override)}.".startswith(excluded)]


def _unread(overrides: list[str], handed: Sequence[str]) -> dict[str, str]:
    """The handed-down overrides that a training stage does not read, each with the reason."""
    config = composed(TRAIN, overrides, TrainConfig)
    return {override: found[0] for override in handed if (found := unread_keys(config, [_key(override)]))}


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _evaluation_overrides(config: TrainConfig, choices: Mapping[str, str | None]) -> list[str]:
    """Overrides by which an evaluation has the pipeline's benchmark, data, seed and hardware."""
    groups = [f"{group}={choices[group]}" for group in ("benchmark", "data") if choices.get(group)]
    default, own = composed(EVALUATE, groups, EvaluateConfig), asdict(config)
    present = flattened(asdict(default))
    wanted = flattened(
        {key: own[key] for key in _EVALUATED if own[key] is not None}
        | {"trainer": {key: own["trainer"][key] for key in _EVALUATED_TRAINER}}
    )
    unread = tuple(f"{key}." for key, _ in unread_in(default))
    differing = [
        f"++{key}={quoted(value)}"
        for key, value in wanted.items()
        if present.get(key, ...) != value and not f"{key}.".startswith(unread)
    ]
    return [*groups, *differing]


def _first_change(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str | None:
    """The first key that differs from the record of a stage; None without a difference."""
    if before is None:
        return f"not in {RECORD}"
    for key in dict.fromkeys([*now, *before]):
        if before.get(key) != now.get(key) and not within(key, NEUTRAL):
            return f"{key}={now.get(key)}, but it was started with {before.get(key)}"
    return None
