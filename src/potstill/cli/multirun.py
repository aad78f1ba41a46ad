"""Many runs by one command: what the shorthands of the command line stand for, and what becomes of jobs that fail.

Nothing here imports torch.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from potstill.errors import ConfigError, printable
from potstill.evaluation.glue import BENCHMARKS
from potstill.reporting.sweeps import FAULT_FILE
from potstill.runs.folder import is_claimed
from potstill.runtime.atomic import write_whole

GLUE = "glue"
MULTIRUN = ("-m", "--multirun")


def spell_out(script: str, arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra takes them.

    `+experiment=` and the like may have their plus or not: these groups are in the defaults list, so that they compose
    late. In evaluate.py `sweep=<folder>` is the key `sweep.folder`, because a group of that name is train.py's. The
    flag of a sweep comes first: Hydra takes no overrides on both sides of it. `benchmark=glue` is nine benchmarks.

    Args:
        script: `train` or `evaluate`.
        arguments: of the command line, less the program's name.

    Raises:
        ConfigError: GLUE without `-m`, or in evaluate.py.
    """
    spelled = [re.sub(r"^\+(experiment|debug|sweep)=", r"\1=", argument) for argument in arguments]
    if script == "evaluate":
        spelled = [re.sub(r"^sweep=", "sweep.folder=", argument) for argument in spelled]
    sweeping = any(argument in MULTIRUN for argument in spelled)
    spelled = [_tasks_of(argument, script, sweeping) for argument in spelled]
    if sweeping and any(argument.lstrip("+").startswith("benchmark.") for argument in spelled):
        # Hydra first composes a sweep without what is swept. `benchmark` would be null there, and its keys refused;
        # so it gets one of the tasks, which the list behind it replaces in every job.
        spelled = [
            one
            for argument in spelled
            for one in ([f"benchmark={_benchmarks(argument)[0]}"] if len(_benchmarks(argument)) > 1 else [])
            + [argument]
        ]
    return sorted(spelled, key=lambda argument: argument not in MULTIRUN)


def names_glue(arguments: Sequence[str]) -> bool:
    """Whether all of GLUE is asked for, by the arguments as they were typed."""
    return any(GLUE in _benchmarks(argument) for argument in arguments)


class Jobs:
    """The jobs of a command: one, or those of a sweep, which goes on where a job fails."""

    def __init__(self) -> None:
        self.folder: Path | None = None  # of the sweep, once a job of it has begun
        self.faults: list[str] = []
        self._home = os.getpid()

    @property
    def away(self) -> bool:
        """Whether a launcher runs the job in another process, whose sweep learns of a fault as it is raised."""
        return os.getpid() != self._home

    def begin(self) -> None:
        """A job begins; to be called inside it."""
        hydra = HydraConfig.get()
        if hydra.mode == RunMode.MULTIRUN:
            depth = len(Path(hydra.sweep.subdir).parts)
            self.folder = Path(hydra.runtime.output_dir).parents[depth - 1]

    def forget_fault(self) -> None:
        """Remove the reason for which a job failed in this folder before."""
        if self.sweeping:
            (Path(HydraConfig.get().runtime.output_dir) / FAULT_FILE).unlink(missing_ok=True)

    @property
    def sweeping(self) -> bool:
        """Whether the jobs are a sweep's."""
        return self.folder is not None

    def fail(self, line: str, *, told: bool = True) -> None:
        """Leave the reason in the folder of a sweep's job; say it once, however many jobs have it.

        Where there is no room even for that, or the folder is not the job's to write, it is only said.

        Args:
            line: the reason.
            told: whether to print it; a bug is told by its traceback.
        """
        folder, line = Path(HydraConfig.get().runtime.output_dir), printable(line)
        with suppress(OSError):
            if is_claimed(folder):
                write_whole(folder / FAULT_FILE, f"{line}\n")
        if told and line not in self.faults:
            sys.stderr.write(f"error: {line}\n")
            self.faults.append(line)


def group_with_sweep(config: DictConfig, folder: Path | None) -> None:
    """Let a sweep's runs stand together on a dashboard, unless the user has grouped them.

    Args:
        config: of a job, in place; an evaluation has no logger.
        folder: of the sweep; None where the job is alone.
    """
    if folder is not None and "logger" in config and config.logger.group is None:
        config.logger.group = folder.name


def _benchmarks(argument: str) -> list[str]:
    key, equals, value = argument.partition("=")
    return [name.strip() for name in value.split(",")] if equals and key.lstrip("+") == "benchmark" else []


def _tasks_of(argument: str, script: str, sweeping: bool) -> str:
    names = _benchmarks(argument)
    if GLUE not in names:
        return argument
    if script == "evaluate":
        raise ConfigError(
            f"{argument}: a model is of one task, so name it, benchmark=cola; the table of trained tasks is "
            "sweep=<folder of their multirun>"
        )
    if not sweeping:
        raise ConfigError(f"{argument}: nine tasks are nine runs; add -m, train.py -m {argument}")
    tasks = [task for name in names for task in (BENCHMARKS if name == GLUE else (name,))]
    return f"{argument.partition('=')[0]}={','.join(dict.fromkeys(tasks))}"
