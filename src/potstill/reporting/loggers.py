"""Where metrics go: metrics.csv always, and wandb or tensorboard beside it."""

from __future__ import annotations

import csv
import importlib.util
import logging
import netrc
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from potstill.errors import ConfigError
from potstill.reporting.records import flattened
from potstill.reporting.tables import Table
from potstill.runtime.atomic import replacing, write_whole, writing
from potstill.runtime.redaction import redact_override, redacted

log = logging.getLogger(__name__)


def wandb_mode(asked: str | None) -> str:
    """What was asked for, else online where a key is set, else offline: never a login prompt."""
    if asked or os.environ.get("WANDB_MODE"):
        return asked or os.environ["WANDB_MODE"]
    return "online" if os.environ.get("WANDB_API_KEY") or _netrc_key() else "offline"


def _seconds(variable: str, usual: float) -> float:
    """How long wandb may wait for its server: the usual time, or what wandb's own variable says."""
    try:
        return float(os.environ[variable])
    except (KeyError, ValueError):
        return usual


def _netrc_key() -> bool:
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


@dataclass(frozen=True)
class Resumed:
    """Where an interrupted run of the same folder goes on."""

    step: int
    """How many of its steps are done."""


def make_loggers(
    name: str, folder: Path, resumed: Resumed | None = None, **wandb_settings: Any
) -> list[Logger]:
    """The run's loggers; call `finish` when the run ends, however it ends.

    Args:
        name: wandb, csv or tensorboard.
        folder: the run's output folder.
        resumed: where an interrupted run in this folder goes on; what it logged up to there stays in metrics.csv, and
            its wandb run goes on.
        wandb_settings: project, run, group, job_type, tags, mode and config (nested) of a wandb run.

    Raises:
        ConfigError: an unknown logger, or one whose package is not installed.
    """
    loggers: list[Logger] = [_metrics_file(folder, resumed)]
    if name == "tensorboard":
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError("logger=tensorboard: not installed; pip install 'potstill[tensorboard]'")
        loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))
    elif name == "wandb":
        # The other processes of a distributed run have no run of their own.
        if getattr(rank_zero_only, "rank", 0) in (0, None):
            loggers.append(_wandb(folder, resumed is not None, **wandb_settings))
    elif name != "csv":
        raise ConfigError(f"logger.name={name}: wandb, csv or tensorboard")
    return loggers


class MetricsFile(Logger):
    """metrics.csv: a row for each call, on the disk when that returns; a kill leaves half a row at most.

    Args:
        path: of the file; written anew.
        rows: that it begins with.
    """

    def __init__(self, path: Path, rows: Sequence[Mapping[str, Any]] = ()):
        super().__init__()
        self.path = path
        self._columns = sorted({"epoch", "step", *(name for row in rows for name in row)})
        if rank_zero_only.rank in (0, None):  # type: ignore[attr-defined]
            self._write_whole(rows)

    @property
    def name(self) -> str:
        """None: the file stands in the folder itself."""
        return ""

    @property
    def version(self) -> str:
        """None."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row; a new metric is a new column, in the alphabet's order."""
        row = {**metrics, "step": step}
        if new := row.keys() - set(self._columns):
            rows = read_rows(self.path)
            self._columns = sorted({*self._columns, *new})
            self._write_whole(rows)
        with writing(self.path), self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Nothing: they are in config.yaml."""

    def _write_whole(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with replacing(self.path) as fresh, fresh.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of metrics.csv; empty where there is none."""
    if not path.is_file():
        return []
    whole, newline, _ = path.read_text().rpartition("\n")
    return list(csv.DictReader((whole + newline).splitlines()))


def _metrics_file(folder: Path, resumed: Resumed | None) -> MetricsFile:
    path = folder / "metrics.csv"
    if resumed is None:
        return MetricsFile(path)
    # What is logged after n steps and before the next has the number n - 1, at most.
    return MetricsFile(path, [row for row in read_rows(path) if int(row["step"] or 0) < resumed.step])


def _wandb(
    folder: Path,
    resumed: bool,
    *,
    project: str,
    run: str | None,
    group: str | None,
    tags: list[str],
    job_type: str,
    mode: str | None,
    config: Mapping[str, Any],
) -> WandbLogger:
    import wandb

    remembered = folder / "wandb_id"
    known = remembered.read_text().strip() if resumed and remembered.is_file() else None
    settings: dict[str, Any] = {
        "id": known,
        "resume": "allow" if known else None,
        "project": project,
        "name": run or folder.name,
        "group": group,
        "job_type": job_type,
        "tags": list(dict.fromkeys(tags)),
        "dir": folder,
        "config": flattened(config),
        "settings": wandb.Settings(
            console="off",
            silent=True,
            init_timeout=_seconds("WANDB_INIT_TIMEOUT", 30),
            finish_timeout=_seconds("WANDB_FINISH_TIMEOUT", 600),  # else it would wait for ever
            finish_timeout_raises=True,
        ),
        "reinit": "create_new",  # one run a job: a sweep's next job never goes on in this one
    }
    try:
        with _masked_arguments():
            experiment = wandb.init(**settings, mode=wandb_mode(mode))  # type: ignore[arg-type]
    except wandb.errors.CommError as fault:
        # A run is worth more than its dashboard.
        log.warning(
            "wandb cannot be reached (%s); the run is kept offline, `wandb sync %s` puts it there later",
            str(fault).splitlines()[0],
            folder / "wandb" / "offline-run-*",
        )
        with _masked_arguments():
            experiment = wandb.init(**settings, mode="offline")
    write_whole(remembered, f"{experiment.id}\n")
    experiment.define_metric("trainer/global_step")
    experiment.define_metric("*", step_metric="trainer/global_step")
    return MetricsLogger(experiment=experiment)


@contextmanager
def _masked_arguments() -> Iterator[None]:
    """The command line without secrets, as wandb records it."""
    arguments = sys.argv
    sys.argv = list(map(redact_override, arguments))
    try:
        yield
    finally:
        sys.argv = arguments


class MetricsLogger(WandbLogger):
    """Defines each metric when it first comes: the summary keeps its best value beside its last.

    wandb's own globs do not do it: a metric that two of them fit has the summary of either.
    """

    defined: set[str]

    def __init__(self, experiment: Any):
        super().__init__(experiment=experiment)
        self.defined = set()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """As Lightning's, after defining what is new."""
        for name in metrics:
            better = direction(name)
            if better is not None and name not in self.defined:
                self.defined.add(name)
                self.experiment.define_metric(
                    name, step_metric="trainer/global_step", summary=f"{better},last"
                )
        super().log_metrics(metrics, step)


_LOWER_IS_BETTER = re.compile(r"loss|perplexity|mse|interchange_kl")


def direction(metric: str) -> str | None:
    """`min` or `max`, whichever is better of a metric; None where neither is.

    Args:
        metric: as it is logged, `val/accuracy`.
    """
    part, _, name = metric.partition("/")
    if _LOWER_IS_BETTER.match(name.removeprefix("teacher_")) or name == "step_seconds":
        return "min"
    if part in ("val", "test") or name.endswith("_per_second") or name == "peak_memory_gb":
        return "max"  # of memory: what the run needs
    return None


def log_summary(loggers: list[Logger], summary: dict[str, Any]) -> None:
    """Put the final figures where the dashboard shows them; metrics that were logged have their best and last there."""
    for logger in loggers:
        if isinstance(logger, MetricsLogger):
            logger.experiment.summary.update(
                {
                    name: value
                    for name, value in redacted(summary).items()
                    if isinstance(value, int | float | str) and name not in logger.defined
                }
            )


def log_table(loggers: list[Logger], name: str, table: Table) -> None:
    """Put a table where the dashboard shows it."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            rows = [list(row) for row in table.rows]
            logger.experiment.log({name: wandb.Table(columns=list(table.columns), data=rows)})


def finish(loggers: list[Logger], *, code: int) -> None:
    """Close every logger; a wandb run ends with the process's exit code, and any but 0 marks it as failed."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            run = logger.experiment
            try:
                run.finish(exit_code=code)
            except TimeoutError:  # a server that went down; nothing of the run is lost
                log.warning(
                    "wandb did not take the whole run in time; it is kept, `wandb sync %s` uploads it later",
                    Path(run.dir).parent,
                )
        else:
            logger.finalize("failed" if code else "success")
