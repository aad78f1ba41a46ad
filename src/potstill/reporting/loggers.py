"""Loggers: metrics.csv always, and wandb or tensorboard in addition."""

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

from potstill.errors import ConfigError, PackageError
from potstill.reporting.records import flattened
from potstill.reporting.tables import Table, read_rows
from potstill.runtime.atomic import replacing, write_whole, writing
from potstill.runtime.redaction import redact_override, redacted

log = logging.getLogger(__name__)


def wandb_mode(mode: str | None) -> str:
    """The given mode or WANDB_MODE, otherwise online with an API key and offline without; never a login prompt."""
    if mode or os.environ.get("WANDB_MODE"):
        return mode or os.environ["WANDB_MODE"]
    return "online" if os.environ.get("WANDB_API_KEY") or _netrc_key() else "offline"


def _seconds(variable: str, default: float) -> float:
    """A timeout of wandb, from its environment variable."""
    try:
        return float(os.environ[variable])
    except (KeyError, ValueError):
        return default


def _netrc_key() -> bool:
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


@dataclass(frozen=True)
class Resumed:
    """An interrupted run of the same folder that is resumed after `step` steps."""

    step: int


def make_loggers(name: str, folder: Path, resumed: Resumed | None = None, **wandb_settings: Any) -> list[Logger]:
    """The loggers of a run; call `finish` when it ends or fails.

    Args:
        name: wandb, csv or tensorboard.
        folder: output folder of the run.
        resumed: the interrupted run of this folder, whose wandb run and rows of metrics.csv are continued.
        wandb_settings: entity, project, run, group, job_type, tags, mode and config (nested) of a wandb run.

    Raises:
        ConfigError: an unknown logger.
        PackageError: tensorboard is not installed.
    """
    rows = [] if resumed is None else read_rows(folder / "metrics.csv")
    # Rows logged between steps n and n + 1 have at most the number n - 1.
    kept = [row for row in rows if resumed is not None and int(row["step"] or 0) < resumed.step]
    loggers: list[Logger] = [MetricsFile(folder / "metrics.csv", kept)]
    if name == "tensorboard":
        if importlib.util.find_spec("tensorboard") is None:
            raise PackageError("logger=tensorboard: not installed; pip install 'potstill[tensorboard]'")
        loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))
    elif name == "wandb":
        # Only the first rank has a wandb run.
        if getattr(rank_zero_only, "rank", 0) in (0, None):
            loggers.append(_wandb(folder, resumed is not None, **wandb_settings))
    elif name != "csv":
        raise ConfigError(f"logger.name={name}: one of wandb, csv, tensorboard")
    return loggers


class MetricsFile(Logger):
    """metrics.csv: each call writes a row at once, so that a killed run leaves at most half a row.

    Args:
        path: of the file, which is overwritten.
        rows: the first rows.
    """

    def __init__(self, path: Path, rows: Sequence[Mapping[str, Any]] = ()):
        super().__init__()
        self.path = path
        self._columns = sorted({"epoch", "step", *(name for row in rows for name in row)})
        if rank_zero_only.rank in (0, None):  # type: ignore[attr-defined]
            self._write_whole(rows)

    @property
    def name(self) -> str:
        """Empty: the file is in the output folder itself."""
        return ""

    @property
    def version(self) -> str:
        """Empty."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row; columns are sorted, and a new metric adds one."""
        row = {**metrics, "step": step}
        if new := row.keys() - set(self._columns):
            rows = read_rows(self.path)
            self._columns = sorted({*self._columns, *new})
            self._write_whole(rows)
        with writing(self.path), self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Ignored: they are in config.yaml."""

    def _write_whole(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with replacing(self.path) as fresh, fresh.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)


def _wandb(
    folder: Path,
    resumed: bool,
    *,
    entity: str | None,
    project: str,
    run: str | None,
    group: str | None,
    tags: list[str],
    job_type: str,
    mode: str | None,
    config: Mapping[str, Any],
) -> WandbLogger:
    import wandb

    id_file = folder / "wandb_id"
    run_id = id_file.read_text().strip() if resumed and id_file.is_file() else None
    settings: dict[str, Any] = {
        "id": run_id,
        "resume": "allow" if run_id else None,
        "entity": entity,
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
            finish_timeout=_seconds("WANDB_FINISH_TIMEOUT", 600),  # the default waits forever
            finish_timeout_raises=True,
        ),
        "reinit": "create_new",  # one run per job of a sweep
    }
    try:
        with _masked_arguments():
            experiment = wandb.init(**settings, mode=wandb_mode(mode))  # type: ignore[arg-type]
    except wandb.errors.CommError as error:
        log.warning(
            "wandb cannot be reached (%s); the run is logged offline, `wandb sync %s` uploads it later",
            str(error).splitlines()[0],
            folder / "wandb" / "offline-run-*",
        )
        with _masked_arguments():
            experiment = wandb.init(**settings, mode="offline")
    write_whole(id_file, f"{experiment.id}\n")
    experiment.define_metric("trainer/global_step")
    experiment.define_metric("*", step_metric="trainer/global_step")
    return MetricsLogger(experiment=experiment)


@contextmanager
def _masked_arguments() -> Iterator[None]:
    """Mask secrets in sys.argv, which wandb records."""
    arguments = sys.argv
    sys.argv = list(map(redact_override, arguments))
    try:
        yield
    finally:
        sys.argv = arguments


class MetricsLogger(WandbLogger):
    """Defines each metric at its first value, so that the summary has its best and last values.

    wandb's globs do not suffice: the summary of a metric that matches two of them is arbitrary.
    """

    defined: set[str]

    def __init__(self, experiment: Any):
        super().__init__(experiment=experiment)
        self.defined = set()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Define new metrics and log all."""
        for name in metrics:
            better = direction(name)
            if better is not None and name not in self.defined:
                self.defined.add(name)
                self.experiment.define_metric(name, step_metric="trainer/global_step", summary=f"{better},last")
        super().log_metrics(metrics, step)


_LOWER_IS_BETTER = re.compile(r"loss|perplexity|mse|interchange_kl")


def direction(metric: str) -> str | None:
    """Whether a metric such as `val/accuracy` is better at its `min` or `max`; None for neither."""
    part, _, name = metric.partition("/")
    if _LOWER_IS_BETTER.match(name.removeprefix("teacher_")) or name == "step_seconds":
        return "min"
    if part in ("val", "test") or name.endswith("_per_second") or name == "peak_memory_gb":
        return "max"  # for memory the requirement of the run
    return None


def log_summary(loggers: list[Logger], summary: dict[str, Any]) -> None:
    """Add final figures to the summary of the wandb run, except those of logged metrics."""
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
    """Log a table to wandb."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            rows = [list(row) for row in table.rows]
            logger.experiment.log({name: wandb.Table(columns=list(table.columns), data=rows)})


def finish(loggers: list[Logger], *, code: int) -> None:
    """Close every logger; wandb marks a run with another exit code than 0 as failed."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            run = logger.experiment
            try:
                run.finish(exit_code=code)
            except TimeoutError:  # the server is down
                log.warning(
                    "wandb did not upload the whole run in time; `wandb sync %s` uploads it later", Path(run.dir).parent
                )
        else:
            logger.finalize("failed" if code else "success")
