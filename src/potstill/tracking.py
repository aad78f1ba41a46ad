"""Where metrics go: metrics.csv always, and wandb or tensorboard beside it."""

from __future__ import annotations

import importlib.util
import netrc
import os
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from potstill.errors import ConfigError
from potstill.evaluation.report import Table


def wandb_mode(asked: str | None) -> str:
    """What was asked for, else online where a key is set, else offline: never a login prompt."""
    if asked or os.environ.get("WANDB_MODE"):
        return asked or os.environ["WANDB_MODE"]
    return "online" if os.environ.get("WANDB_API_KEY") or _netrc_key() else "offline"


def _netrc_key() -> bool:
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def make_loggers(name: str, folder: Path, **wandb_settings: Any) -> list[Logger]:
    """The run's loggers; call `finish` when the run ends, however it ends.

    Args:
        name: wandb, csv or tensorboard.
        folder: the run's output folder.
        wandb_settings: project, run, group, tags, mode and config of a wandb run.

    Raises:
        ConfigError: an unknown logger, or one whose package is not installed.
    """
    loggers: list[Logger] = [CSVLogger(folder, name="", version="", flush_logs_every_n_steps=50)]
    if name == "tensorboard":
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError("logger=tensorboard: not installed; pip install 'potstill[tensorboard]'")
        loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))
    elif name == "wandb":
        # The other processes of a distributed run have no run of their own.
        if getattr(rank_zero_only, "rank", 0) in (0, None):
            loggers.append(_wandb(folder, **wandb_settings))
    elif name != "csv":
        raise ConfigError(f"logger.name={name}: wandb, csv or tensorboard")
    return loggers


def _wandb(
    folder: Path,
    *,
    project: str,
    run: str | None,
    group: str | None,
    tags: list[str],
    mode: str | None,
    config: Any,
) -> WandbLogger:
    import wandb

    experiment = wandb.init(
        project=project,
        name=run or folder.name,
        group=group,
        tags=tags,
        dir=folder,
        mode=wandb_mode(mode),  # type: ignore[arg-type]
        config=config,
        settings=wandb.Settings(console="off", silent=True),
        reinit="create_new",  # one run a job: a sweep's next job never goes on in this one
    )
    experiment.define_metric("trainer/global_step")
    experiment.define_metric("*", step_metric="trainer/global_step")
    for name in ("val/perplexity", "val/loss"):
        experiment.define_metric(name, step_metric="trainer/global_step", summary="min")
    return WandbLogger(experiment=experiment)


def log_summary(loggers: list[Logger], summary: dict[str, Any]) -> None:
    """Put the final figures where the dashboard shows them."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(
                {k: v for k, v in summary.items() if isinstance(v, int | float | str)}
            )


def log_table(loggers: list[Logger], name: str, table: Table) -> None:
    """Put a table where the dashboard shows it."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            rows = [list(row) for row in table.rows]
            logger.experiment.log({name: wandb.Table(columns=list(table.columns), data=rows)})


def finish(loggers: list[Logger], *, failed: bool) -> None:
    """Close every logger; a failed wandb run is marked as failed."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=1 if failed else 0)
        else:
            logger.finalize("failed" if failed else "success")
