"""The runs of a sweep, read from their folders: options that vary, final metrics, groups over seeds. No torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from potstill.errors import ConfigError
from potstill.reporting.records import flattened, read_yaml
from potstill.runtime.json_text import read_json
from potstill.runtime.small_files import read_small

SEED, BENCHMARK = "seed", "benchmark"
ERROR_FILE = "error.txt"  # in the folder of a failed job: the reason, in one line
JOB_FILES = (".hydra", "config.yaml", "summary.json")
UNFINISHED = "no summary.json: stopped, or still running"


@dataclass(frozen=True)
class Job:
    """A run of a sweep.

    Attributes:
        name: its folder, relative to the sweep's.
        settings: its options as written, by key.
        figures: the numbers of its summary.json.
        error: why it failed; None if it did not.
        benchmark: name of its benchmark; None without one.
    """

    name: str
    settings: Mapping[str, str]
    figures: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    benchmark: str | None = None


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed only.

    Attributes:
        settings: the options that vary in the sweep, without the seed.
        jobs: the successful runs.
        failed: number of failed runs.
    """

    settings: Mapping[str, str]
    jobs: tuple[Job, ...]
    failed: int

    @property
    def label(self) -> str:
        """Its settings in one line; empty if only the seed varies."""
        return " ".join(f"{key}={value}" for key, value in self.settings.items())

    def values(self, metric: str) -> list[float]:
        """The metric of each run that has it."""
        return [job.figures[metric] for job in self.jobs if metric in job.figures]


def read_sweep(folder: Path) -> list[Job]:
    """The jobs in the folder of a multirun, in the order of their numbers.

    A job is a subfolder with `.hydra/`, `config.yaml` or `summary.json`; one without a readable summary.json has an
    error. Settings are the overrides of the command line (`.hydra/overrides.yaml`) if every job has them, otherwise
    all keys of the configurations.

    Raises:
        ConfigError: the folder does not exist or holds no jobs.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"sweep.folder={folder}: does not exist; expected the folder of a multirun, runs/multirun/<date>"
        )
    found = sorted(_job_folders(folder), key=lambda job: _natural_key(job.relative_to(folder).as_posix()))
    if not found:
        raise ConfigError(f"sweep.folder={folder}: holds no runs; expected a multirun, with one folder per job")
    overrides = [_overrides(job / ".hydra" / "overrides.yaml") for job in found]
    configs = [_config(job) for job in found]
    if all(own is not None for own in overrides):
        records = [_read_yaml(job / ".hydra" / "config.yaml") for job in found]
        settings = _with_differences([own or {} for own in overrides], records)
    else:
        settings = _without_implied([_as_text(config) for config in configs])
    jobs = []
    for job, own, config in zip(found, settings, configs, strict=True):
        figures, error = _result(job)
        benchmark = (config.get(BENCHMARK) or {}).get("name")
        jobs.append(Job(job.relative_to(folder).as_posix(), own, figures, error, benchmark))
    seeds = [str(config.get(SEED, job.settings.get(SEED, ""))) for config, job in zip(configs, jobs, strict=True)]
    return _without_repeated(jobs, seeds)


def varying(jobs: Sequence[Job]) -> list[str]:
    """The options that differ between jobs, the seed last."""
    keys = dict.fromkeys(key for job in jobs for key in job.settings)
    found = [key for key in keys if len({job.settings.get(key) for job in jobs}) > 1]
    return sorted(found, key=lambda key: key == SEED)


def grouped(jobs: Sequence[Job], options: Sequence[str]) -> list[Group]:
    """The jobs by their values of `options`, in the order of the first job of each group."""
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        groups.setdefault(tuple(job.settings.get(key, "") for key in options), []).append(job)
    return [
        Group(
            dict(zip(options, values, strict=True)),
            tuple(job for job in own if job.error is None),
            sum(job.error is not None for job in own),
        )
        for values, own in groups.items()
    ]


def metrics_of(jobs: Sequence[Job], wanted: Sequence[str] | None) -> list[str]:
    """The metrics to show: the wanted ones, otherwise validation and test metrics (losses last), otherwise all.

    A metric that equals another one in every run is shown only if wanted.

    Raises:
        ConfigError: no job has a wanted metric.
    """
    known = list(dict.fromkeys(name for job in jobs for name in job.figures))
    if wanted is None:
        evaluated = [name for name in known if name.startswith(("val/", "test/"))]
        evaluated.sort(key=lambda name: "loss" in name)
        distinct = {tuple(job.figures.get(name) for job in jobs): name for name in reversed(evaluated)}
        return [name for name in evaluated if name in distinct.values()] or known
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(
            f"sweep.metrics=[{', '.join(unknown)}]: not a metric of any run; one of {', '.join(known) or '(none)'}"
        )
    return list(wanted)


def _job_folders(folder: Path) -> Iterator[Path]:
    """Job folders below a folder; folders inside of a job (`student/`, `checkpoints/`) do not count."""
    for path in folder.iterdir():
        if not path.is_dir() or path.name.startswith("."):
            continue
        if any((path / name).exists() for name in JOB_FILES):
            yield path
        else:
            yield from _job_folders(path)


def _natural_key(name: str) -> list[tuple[int, str]]:
    """A sort key by which job 10 follows job 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _overrides(path: Path) -> dict[str, str] | None:
    """The overrides of a job; None without a list of them."""
    found = _read_yaml(path)
    if not isinstance(found, list):
        return None
    pairs = [str(override).partition("=") for override in found]
    # trial.* is set by the sweeper.
    return {key.lstrip("+"): value for key, _, value in pairs if not key.startswith("trial.")}


def _config(job: Path) -> dict[str, Any]:
    """The configuration of a job, resolved if its run finished; empty without one."""
    for path in (job / "config.yaml", job / ".hydra" / "config.yaml"):
        if isinstance(found := _read_yaml(path), dict):
            return found
    return {}


def _read_yaml(path: Path) -> Any:
    try:
        return read_yaml(path)
    except (OSError, ValueError, yaml.YAMLError):  # a killed job leaves half a file, or none
        return None


def _as_text(config: Mapping[str, Any]) -> dict[str, str]:
    """Every key of a configuration with its value as text."""
    flat = flattened(config).items()
    return {key: json.dumps(value) if isinstance(value, list) else str(value) for key, value in flat}


def _without_implied(settings: list[dict[str, str]]) -> list[dict[str, str]]:
    """Settings without the keys that follow from an option's name, as `benchmark.labels` from `benchmark.name`."""
    implied = set()
    for key in {key for own in settings for key in own}:
        name = f"{key.partition('.')[0]}.name"
        pairs = {(own.get(name), own.get(key)) for own in settings if own}
        if key != name and len(pairs) > 1 and len({option for option, _ in pairs}) == len(pairs):
            implied.add(key)
    return [{key: value for key, value in own.items() if key not in implied} for own in settings]


def _with_differences(settings: list[dict[str, str]], records: list[Any]) -> list[dict[str, str]]:
    """Settings with the keys that differ between jobs of one command line, as when a file of `conf/` was changed.

    `records` are the unresolved configurations, in which references to the seed are equal.
    """
    same_command: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for number, own in enumerate(settings):
        same_command.setdefault(tuple(sorted((k, v) for k, v in own.items() if k != SEED)), []).append(number)
    found = [dict(own) for own in settings]
    for numbers in same_command.values():
        flat = [_as_text(records[number]) for number in numbers if isinstance(records[number], dict)]
        if len(flat) < len(numbers):
            continue
        for key in sorted(set.intersection(*map(set, flat))):
            if key == SEED or key.startswith(("trial.", "logger.")):
                continue
            if len({config[key] for config in flat}) > 1:
                for number, config in zip(numbers, flat, strict=True):
                    found[number][key] = config[key]
    return found


def _without_repeated(jobs: list[Job], seeds: list[str]) -> list[Job]:
    """The jobs, in which only the last of several runs with the same settings and seed counts."""
    last: dict[tuple[tuple[str, str], ...], Job] = {}
    found = []
    for job, seed in zip(reversed(jobs), reversed(seeds), strict=True):
        identity = tuple(sorted({**job.settings, SEED: seed}.items()))
        if job.error is None and seed and identity in last:
            error = f"same options and seed as {last[identity].name}, which is counted instead"
            job = replace(job, figures={}, error=error)
        elif job.error is None:
            last[identity] = job
        found.append(job)
    return found[::-1]


def _result(job: Path) -> tuple[dict[str, float], str | None]:
    """The figures of a job, or why it failed."""
    if (job / ERROR_FILE).is_file():
        try:
            return {}, read_small(job / ERROR_FILE).strip()
        except (OSError, ValueError):
            return {}, f"{ERROR_FILE}: cannot be read"
    try:
        summary = read_json(job / "summary.json")
    except FileNotFoundError:
        return {}, UNFINISHED
    except (OSError, ValueError):
        return {}, "summary.json: cannot be read"
    if not isinstance(summary, dict):
        return {}, "summary.json: holds no figures"
    return figures_of(summary), None


def figures_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a summary.json, without the seed."""
    return {
        key: value
        for key, value in summary.items()
        if (isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)))
        and not isinstance(value, bool)
        and key != SEED
    }
