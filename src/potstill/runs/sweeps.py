"""The runs of a sweep, read from their folders: options that vary, final figures, groups over seeds.

Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from potstill.cli.multirun import FAULT_FILE
from potstill.errors import ConfigError
from potstill.reporting.records import read_yaml
from potstill.reporting.sweep_plots import Spread
from potstill.runtime.json_text import read_json
from potstill.small_files import read_small

SEED, BENCHMARK = "seed", "benchmark"
JOB_MARKS = (".hydra", "config.yaml", "summary.json")
UNFINISHED = "no summary.json: it was stopped, or is not at its end yet"


@dataclass(frozen=True)
class Job:
    """A run of a sweep.

    Attributes:
        name: its folder, as seen from the sweep's.
        settings: its options as written, by key.
        figures: the numbers of its summary.json.
        fault: why it failed; None where it did not.
        benchmark: the task it is of, where it has one.
    """

    name: str
    settings: Mapping[str, str]
    figures: Mapping[str, float] = field(default_factory=dict)
    fault: str | None = None
    benchmark: str | None = None


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        settings: the options that vary in the sweep, but for the seed.
        jobs: the runs that did not fail.
        failed: how many did.
    """

    settings: Mapping[str, str]
    jobs: tuple[Job, ...]
    failed: int

    @property
    def label(self) -> str:
        """Its settings in a line; empty where only the seed varies."""
        return " ".join(f"{key}={value}" for key, value in self.settings.items())

    def values(self, metric: str) -> list[float]:
        """The metric of each run that has it."""
        return [job.figures[metric] for job in self.jobs if metric in job.figures]


def read_sweep(folder: Path) -> list[Job]:
    """The jobs of a multirun's folder, in the order of their numbers.

    A job is a folder below it with `.hydra/`, `config.yaml` or `summary.json`; one without a readable summary.json is
    listed with its fault. Options are those of the command line (`.hydra/overrides.yaml`) where every job has them,
    else all keys of the configurations.

    Raises:
        ConfigError: it is no folder, or no job is in it.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"sweep.folder={folder}: no such folder; give that of a multirun, runs/multirun/<date>"
        )
    found = sorted(_job_folders(folder), key=lambda job: _natural(job.relative_to(folder).as_posix()))
    if not found:
        raise ConfigError(
            f"sweep.folder={folder}: no runs in it; give a multirun's folder, which has one for each job"
        )
    overrides = [_overrides(job / ".hydra" / "overrides.yaml") for job in found]
    configs = [_config(job) for job in found]
    if all(own is not None for own in overrides):
        records = [_yaml(job / ".hydra" / "config.yaml") for job in found]
        settings = _with_differences([own or {} for own in overrides], records)
    else:
        settings = _without_consequences([_flat(config) for config in configs])
    jobs = [
        Job(
            job.relative_to(folder).as_posix(), own, *_outcome(job), (config.get(BENCHMARK) or {}).get("name")
        )
        for job, own, config in zip(found, settings, configs, strict=True)
    ]
    seeds = [str(config.get(SEED, own.get(SEED, ""))) for config, own in zip(configs, settings, strict=True)]
    return _once(jobs, seeds)


def varying(jobs: Sequence[Job]) -> list[str]:
    """The options that differ between jobs, the seed last."""
    keys = dict.fromkeys(key for job in jobs for key in job.settings)
    found = [key for key in keys if len({job.settings.get(key) for job in jobs}) > 1]
    return sorted(found, key=lambda key: key == SEED)


def grouped(jobs: Sequence[Job], options: Sequence[str]) -> list[Group]:
    """The jobs by their values of `options`, in the order of the first of each."""
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(tuple(job.settings.get(key, "") for key in options), []).append(job)
    return [
        Group(
            dict(zip(options, values, strict=True)),
            tuple(job for job in own if job.fault is None),
            sum(job.fault is not None for job in own),
        )
        for values, own in groups.items()
    ]


def spread_of(values: Sequence[float], runs: int | None = None) -> Spread | None:
    """The mean and the sample standard deviation (over n - 1) of some values; None of none.

    Args:
        values: of the runs that have one.
        runs: how many runs there are; where some have no value, the cell says so.
    """
    if not values:
        return None
    mean = sum(values) / len(values)
    part = "" if runs in (None, len(values)) else f"{len(values)} of {runs} runs"
    if len(values) == 1:
        return Spread(mean, None, part)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return Spread(mean, deviation, part)


def metrics_of(jobs: Sequence[Job], asked: Sequence[str] | None) -> list[str]:
    """The figures to be shown: those asked for, else what was validated or tested, losses last, else all.

    One that is another in every run is left out unless it is asked for: text accuracy where nothing is an equation.

    Raises:
        ConfigError: one that no job has.
    """
    known = list(dict.fromkeys(name for job in jobs for name in job.figures))
    if asked is None:
        judged = [name for name in known if name.startswith(("val/", "test/"))]
        judged.sort(key=lambda name: "loss" in name)
        different = {tuple(job.figures.get(name) for job in jobs): name for name in reversed(judged)}
        return [name for name in judged if name in different.values()] or known
    if unknown := [name for name in asked if name not in known]:
        raise ConfigError(
            f"sweep.metrics=[{', '.join(unknown)}]: no run has it; some of {', '.join(known) or 'none, all failed'}"
        )
    return list(asked)


def _job_folders(folder: Path) -> Iterator[Path]:
    """The jobs below a folder: what a job has inside (`student/`, `checkpoints/`) is none."""
    for path in folder.iterdir():
        if not path.is_dir() or path.name.startswith("."):
            continue
        if any((path / mark).exists() for mark in JOB_MARKS):
            yield path
        else:
            yield from _job_folders(path)


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that puts job 10 behind job 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _overrides(path: Path) -> dict[str, str] | None:
    """The options of a job's command line; None where there is no list of them."""
    found = _yaml(path)
    if not isinstance(found, list):
        return None
    split = [str(override).partition("=") for override in found]
    # A search tells each job of its trial, which is no option of the job's.
    return {key.lstrip("+"): value for key, _, value in split if not key.startswith("trial.")}


def _config(job: Path) -> dict[str, Any]:
    """A job's configuration, resolved where its run came to an end; empty where there is none."""
    for path in (job / "config.yaml", job / ".hydra" / "config.yaml"):
        if isinstance(found := _yaml(path), dict):
            return found
    return {}


def _yaml(path: Path) -> Any:
    try:
        return read_yaml(path)
    except (OSError, ValueError, yaml.YAMLError):  # a killed job leaves half a file, or none
        return None


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Every key of a configuration with its value as text."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list) else str(value)
    return flat


def _without_consequences(settings: list[dict[str, str]]) -> list[dict[str, str]]:
    """Less the keys that an option decides by its name, as `benchmark.labels` is by `benchmark.name`."""
    dropped = set()
    for key in {key for own in settings for key in own}:
        name = f"{key.partition('.')[0]}.name"
        pairs = {(own.get(name), own.get(key)) for own in settings if own}
        if key != name and len(pairs) > 1 and len({chosen for chosen, _ in pairs}) == len(pairs):
            dropped.add(key)
    return [{key: value for key, value in own.items() if key not in dropped} for own in settings]


def _with_differences(settings: list[dict[str, str]], records: list[Any]) -> list[dict[str, str]]:
    """With the keys that differ between jobs of one command line but for the seed: other files in `conf/`, say.

    Compared is what Hydra composed, in which references to the seed are unresolved.
    """
    alike: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for number, own in enumerate(settings):
        alike.setdefault(tuple(sorted((k, v) for k, v in own.items() if k != SEED)), []).append(number)
    made = [dict(own) for own in settings]
    for numbers in alike.values():
        flat = [_flat(records[number]) for number in numbers if isinstance(records[number], dict)]
        if len(flat) < len(numbers):
            continue
        for key in sorted(set.intersection(*map(set, flat))):
            told = key == SEED or key.startswith(("trial.", "logger."))
            if not told and len({config[key] for config in flat}) > 1:
                for number, config in zip(numbers, flat, strict=True):
                    made[number][key] = config[key]
    return made


def _once(jobs: list[Job], seeds: list[str]) -> list[Job]:
    """The jobs, of which a run that is there twice, with its seed, counts once: the last of them."""
    last: dict[tuple[tuple[str, str], ...], Job] = {}
    made = []
    for job, seed in zip(reversed(jobs), reversed(seeds), strict=True):
        known_by = tuple(sorted({**job.settings, SEED: seed}.items()))
        if job.fault is None and seed and known_by in last:
            fault = f"has the options and the seed of {last[known_by].name}, which is counted in its place"
            made.append(replace(job, figures={}, fault=fault))
            continue
        if job.fault is None:
            last[known_by] = job
        made.append(job)
    return made[::-1]


def _outcome(job: Path) -> tuple[dict[str, float], str | None]:
    """The figures of a job, and why it failed."""
    fault = job / FAULT_FILE
    if fault.is_file():
        with suppress(OSError, ValueError):
            return {}, read_small(fault).strip()
        return {}, f"{FAULT_FILE}: cannot be read"
    try:
        summary = read_json(job / "summary.json")
    except FileNotFoundError:
        return {}, UNFINISHED
    except (OSError, ValueError):
        return {}, "summary.json: cannot be read"
    if not isinstance(summary, dict):
        return {}, "summary.json: holds no figures"
    figures = {
        key: value
        for key, value in summary.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and key != SEED
        and (isinstance(value, int) or math.isfinite(value))
    }
    return figures, None
