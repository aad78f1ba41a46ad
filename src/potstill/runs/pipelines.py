"""Pipelines of several stages: teacher, student, baseline, distillation and their table by one command.

Each stage is a process of its own. The same command again continues: finished stages are skipped, the interrupted one
is resumed. No torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from potstill.config import TrainConfig
from potstill.config.overrides import quoted
from potstill.errors import StageError, StoppedError
from potstill.reporting.report import Collapsible, Section, Table, write_report
from potstill.reporting.sweeps import figures_of
from potstill.runs.folder import begin
from potstill.runs.pipeline_stages import EVALUATE, TRAIN, Stage, check, plan, write_record
from potstill.runs.summary import config_text, provenance, write_summary
from potstill.runtime import signals
from potstill.runtime.json_text import read_json

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
# DDP starts its other processes by the name of the main module, so a training runs as a module.
_COMMANDS = {TRAIN: ("-m", "potstill.cli.main"), EVALUATE: ("-c", "from potstill.cli.main import evaluate; evaluate()")}


def run_pipeline(config: TrainConfig, folder: Path) -> None:
    """Run the unfinished stages; writes summary.json (`<stage>/<metric>`) and report.html.

    Args:
        config: with `stages`, inside of a Hydra job.
        folder: of the pipeline; holds the folders of the stages.

    Raises:
        ConfigError: an invalid pipeline, before any stage runs.
        StageError: a stage failed.
        StoppedError: a signal arrived; it was forwarded to the running stage.
    """
    hydra = HydraConfig.get()
    stages = plan(config, folder, list(hydra.overrides.task), hydra.runtime.choices)
    check(stages, folder, anew=config.overwrite)
    begin(folder, anew=config.overwrite)
    if config.overwrite:
        for stage in stages:
            shutil.rmtree(stage.folder, ignore_errors=True)
    with _ForwardedSignals() as processes:
        for number, stage in enumerate(stages, 1):
            state = "done, in " if stage.is_done else ""
            log.info("stage %s (%d of %d): %s%s", stage.name, number, len(stages), state, stage.folder)
            if not stage.is_done:
                write_record(folder, stage)
                _run(stage, processes)
    summary = {
        f"{stage.name}/{name}": value
        for stage in stages
        for name, value in figures_of(read_json(stage.folder / "summary.json")).items()
    }
    write_summary(folder, {**summary, **provenance(config)})
    _report(folder, str(hydra.runtime.choices.get("experiment") or "stages"), stages, summary)
    log.info("%s", folder / "report.html")


class _ForwardedSignals:
    """Forwards the signals that stop a run to the process of the running stage."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _ForwardedSignals:
        self._before = {number: signal.signal(number, self._forward) for number in signals.heard()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _forward(self, number: int, _: Any) -> None:
        self.received = number
        if self._process is not None:
            self._process.send_signal(number)

    def call(self, command: Sequence[str]) -> int:
        """Run a command; returns its exit code, negative if a signal killed it."""
        # In a session of its own, so that a signal to the whole group reaches it once.
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent
        )
        if self.received is not None:  # between the last stage and this one
            self._process.send_signal(self.received)
        try:
            return self._process.wait()
        finally:
            self._process = None


def _die_with_parent() -> None:
    """Kill the stage with the pipeline: the next command would write into the same folder."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _run(stage: Stage, processes: _ForwardedSignals) -> None:
    folder = f"hydra.run.dir={quoted(str(stage.folder))}"
    code = processes.call([sys.executable, *_COMMANDS[stage.command], *stage.overrides, folder])
    if processes.received is not None:
        name, done = signal.Signals(processes.received).name, code == 0 and stage.is_done
        raise StoppedError(f"stage {stage.name}: {'done, then ' if done else ''}stopped by {name}", processes.received)
    if code < 0:
        killed = signal.Signals(-code).name
        raise StageError(f"stage {stage.name}: killed by {killed}; the same command continues there", 128 - code)
    if code:
        raise StageError(f"stage {stage.name}: exit code {code}; the same command continues there", code)
    if not stage.is_done:
        raise StageError(f"stage {stage.name}: ended without {stage.folder / 'summary.json'}", 1)


def _report(folder: Path, title: str, stages: Sequence[Stage], summary: Mapping[str, float]) -> None:
    sections: list[Section] = [
        _evaluation_table(stage, list(stage.config.names), summary)
        for stage in stages
        if stage.command == EVALUATE and stage.config.names
    ]
    rows = [
        [stage.name, name.removeprefix(f"{stage.name}/"), value]
        for stage in stages
        if stage.command == TRAIN
        for name, value in summary.items()
        if name.startswith(f"{stage.name}/")
    ]
    sections.append(Table("Final figures of the trainings", ["stage", "figure", "value"], rows))
    sections += [Collapsible(f"Configuration of {stage.name}", config_text(stage.config)) for stage in stages]
    write_report(folder, title=title, sections=sections)


def _evaluation_table(stage: Stage, names: Sequence[str], summary: Mapping[str, float]) -> Table:
    """One row per model, one column per figure."""
    prefixes = {name: f"{stage.name}/{name}/" for name in names}
    columns = dict.fromkeys(
        key.removeprefix(prefix) for prefix in prefixes.values() for key in summary if key.startswith(prefix)
    )
    rows = [[name, *(summary.get(f"{prefix}{column}") for column in columns)] for name, prefix in prefixes.items()]
    return Table(stage.name, ["model", *columns], rows, f"Details: {stage.folder / 'report.html'}")
