"""Recipes of several stages: teacher, student, baseline, distillation and their table by one command.

A stage is a process of its own, so one that crashes leaves the others whole. The same command again goes on: stages
that are done are skipped, the one that was interrupted resumes. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from potstill.errors import StageError, StoppedError
from potstill.reporting.report import Collapsible, Section, Table, write_report
from potstill.runs.folder import begin
from potstill.runs.pipeline_stages import EVALUATE, TRAIN, Stage, check, plan, write_record, written
from potstill.runs.summary import config_text, provenance, write_summary
from potstill.runtime import signals
from potstill.runtime.json_text import read_json

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
# DDP starts its further processes by the name of the main module, so a training is a module; evaluations have none.
_COMMANDS = {
    TRAIN: ("-m", "potstill.cli.main"),
    EVALUATE: ("-c", "from potstill.cli.main import evaluate; evaluate()"),
}


def run_recipe(config: DictConfig, folder: Path, explain: Callable[[Exception], str] = str) -> None:
    """Run the stages that are not done yet; writes summary.json (`<stage>/<metric>`) and report.html.

    Args:
        config: of the recipe, with `stages`; to be called inside Hydra's job.
        folder: of the recipe; a stage's is in it.
        explain: a fault of composing as one line.

    Raises:
        ConfigError: a faulty recipe, before any stage runs.
        StageError: a stage failed.
        StoppedError: a signal has arrived; it was sent on to the stage that ran.
    """
    hydra = HydraConfig.get()
    stages = plan(config, folder, list(hydra.overrides.task), hydra.runtime.choices, explain)
    check(stages, folder, anew=config.overwrite)
    begin(folder, anew=config.overwrite)
    if config.overwrite:
        for stage in stages:
            shutil.rmtree(stage.folder, ignore_errors=True)
    with _Forwarding() as running:
        for number, stage in enumerate(stages, 1):
            if stage.is_done:
                log.info("stage %s (%d of %d): done, in %s", stage.name, number, len(stages), stage.folder)
                continue
            log.info("stage %s (%d of %d): %s", stage.name, number, len(stages), stage.folder)
            write_record(folder, stage)
            _run(stage, running)
    summary = _summary(stages)
    write_summary(folder, {**summary, **provenance(config)})
    _report(folder, str(hydra.runtime.choices.get("experiment") or "stages"), stages, summary)
    log.info("%s", folder / "report.html")


class _Forwarding:
    """Hands the signals that end a run on to the stage that runs."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Forwarding:
        self._before = {number: signal.signal(number, self._note) for number in signals.heard()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        self.received = number
        if self._process is not None:
            self._process.send_signal(number)

    def call(self, command: Sequence[str]) -> int:
        """Run a command to its end; its exit code, negative where a signal killed it."""
        # In a session of its own, so that a signal to the whole group reaches it once, from here.
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
    """A recipe that is killed must not leave a stage running: the next one would write into the same folder."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _run(stage: Stage, running: _Forwarding) -> None:
    place = f"hydra.run.dir={written(str(stage.folder))}"
    code = running.call([sys.executable, *_COMMANDS[stage.command], *stage.overrides, place])
    again = "the same command goes on from there"
    if running.received is not None and not (code == 0 and stage.is_done):
        name = signal.Signals(running.received).name
        raise StoppedError(f"stage {stage.name}: stopped by {name}", running.received)
    if code < 0:
        raise StageError(f"stage {stage.name}: killed by {signal.Signals(-code).name}; {again}", 128 - code)
    if code:
        raise StageError(
            f"stage {stage.name}: failed with exit code {code}, for the reason above; {again}", code
        )
    if not stage.is_done:
        raise StageError(f"stage {stage.name}: ended without {stage.folder / 'summary.json'}", 1)
    if running.received is not None:  # it was at its end already
        name = signal.Signals(running.received).name
        raise StoppedError(f"stage {stage.name}: done when {name} came", running.received)


def _figures(stage: Stage) -> dict[str, float]:
    """The numbers of a stage's summary.json."""
    found: dict[str, Any] = read_json(stage.folder / "summary.json")
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "seed"
    }


def _summary(stages: Sequence[Stage]) -> dict[str, float]:
    return {f"{stage.name}/{name}": value for stage in stages for name, value in _figures(stage).items()}


def _report(folder: Path, title: str, stages: Sequence[Stage], summary: Mapping[str, float]) -> None:
    sections: list[Section] = []
    for stage in stages:
        if stage.command == EVALUATE and stage.config.names:
            sections.append(_table(stage, list(stage.config.names), summary))
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


def _table(stage: Stage, names: Sequence[str], summary: Mapping[str, float]) -> Table:
    """What an evaluation found: a row a model, a column a figure."""
    of = {name: f"{stage.name}/{name}/" for name in names}
    columns = dict.fromkeys(
        key.removeprefix(prefix) for prefix in of.values() for key in summary if key.startswith(prefix)
    )
    rows = [[name, *(summary.get(f"{prefix}{column}") for column in columns)] for name, prefix in of.items()]
    return Table(stage.name, ["model", *columns], rows, f"{stage.folder / 'report.html'} has more.")
