"""Sweeps: shorthands of the command line, and jobs that fail while the others continue. No torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from potstill.errors import ConfigError, printable
from potstill.evaluation.glue import BENCHMARKS
from potstill.reporting.sweeps import ERROR_FILE
from potstill.runs.folder import is_claimed
from potstill.runtime.atomic import write_whole

GLUE = "glue"
MULTIRUN = ("-m", "--multirun")
OPTIONAL_PLUS = ("+experiment", "+debug", "+sweep")  # groups of the defaults list, so that they are composed late


def expand(script: str, arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra takes them.

    - `+experiment=` and the like lose their plus.
    - In evaluate.py `sweep=<folder>` is the key `sweep.folder`; in train.py `sweep` is a group.
    - `benchmark=glue` is its nine benchmarks.
    - The flag of a sweep comes first, as Hydra takes overrides on one side of it only.

    Args:
        script: `train` or `evaluate`.
        arguments: of the command line, without the program's name.

    Raises:
        ConfigError: GLUE without `-m`, or in evaluate.py.
    """
    sweeping = any(argument in MULTIRUN for argument in arguments)
    benchmark_keys = any(argument.lstrip("+").startswith("benchmark.") for argument in arguments)
    expanded = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        key = key[1:] if key in OPTIONAL_PLUS else key
        if equals and key == "sweep" and script == "evaluate":
            key = "sweep.folder"
        argument = _expand_glue(f"{key}{equals}{value}", script, sweeping)
        if sweeping and benchmark_keys and len(benchmarks := _benchmarks(argument)) > 1:
            # Hydra first composes a sweep without its swept options: `benchmark` would be null and its keys rejected.
            expanded.append(f"benchmark={benchmarks[0]}")
        expanded.append(argument)
    return sorted(expanded, key=lambda argument: argument not in MULTIRUN)


def names_glue(arguments: Sequence[str]) -> bool:
    """Whether the arguments name all of GLUE."""
    return any(GLUE in _benchmarks(argument) for argument in arguments)


class Jobs:
    """The jobs of a command: one, or those of a sweep, which continues when a job fails.

    Attributes:
        folder: of the sweep, once a job has started; None for a single run.
        errors: lines that were printed.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.errors: list[str] = []
        self._process = os.getpid()

    @property
    def in_other_process(self) -> bool:
        """Whether a launcher runs the job in another process, so that errors reach the sweep by being raised."""
        return os.getpid() != self._process

    @property
    def is_sweep(self) -> bool:
        """Whether the jobs belong to a sweep."""
        return self.folder is not None

    def begin(self) -> None:
        """Start a job; called inside of it."""
        hydra = HydraConfig.get()
        if hydra.mode == RunMode.MULTIRUN:
            depth = len(Path(hydra.sweep.subdir).parts)
            self.folder = Path(hydra.runtime.output_dir).parents[depth - 1]

    def forget_error(self) -> None:
        """Remove the error of an earlier job in this folder."""
        if self.is_sweep:
            (Path(HydraConfig.get().runtime.output_dir) / ERROR_FILE).unlink(missing_ok=True)

    def fail(self, line: str, *, printed: bool = True) -> None:
        """Write the error of a job into its folder, if that is claimed and writable, and print it once per sweep.

        Args:
            line: the error.
            printed: False for internal errors, whose traceback is printed instead.
        """
        folder, line = Path(HydraConfig.get().runtime.output_dir), printable(line)
        with suppress(OSError):
            if is_claimed(folder):
                write_whole(folder / ERROR_FILE, f"{line}\n")
        if printed and line not in self.errors:
            sys.stderr.write(f"error: {line}\n")
            self.errors.append(line)


def group_with_sweep(config: DictConfig, folder: Path | None) -> None:
    """Set `logger.group` of a sweep's job to the name of the sweep's folder, unless the user has set it."""
    if folder is not None and "logger" in config and config.logger.group is None:
        config.logger.group = folder.name


def _benchmarks(argument: str) -> list[str]:
    key, equals, value = argument.partition("=")
    return [name.strip() for name in value.split(",")] if equals and key.lstrip("+") == "benchmark" else []


def _expand_glue(argument: str, script: str, sweeping: bool) -> str:
    names = _benchmarks(argument)
    if GLUE not in names:
        return argument
    if script == "evaluate":
        raise ConfigError(
            f"{argument}: a model has one task, such as benchmark=cola; sweep=<folder of a multirun> tabulates them"
        )
    if not sweeping:
        raise ConfigError(f"{argument}: nine tasks are nine runs; add -m, train.py -m {argument}")
    tasks = [task for name in names for task in (BENCHMARKS if name == GLUE else (name,))]
    return f"{argument.partition('=')[0]}={','.join(dict.fromkeys(tasks))}"
