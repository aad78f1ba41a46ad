"""A layout for a project's runs on the wandb server.

`python -m potstill.reporting.wandb_workspace <entity>/<project>` saves it.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from potstill.errors import ConfigError, PackageError, PotstillError, printable
from potstill.reporting.loggers import wandb_mode
from potstill.runtime.redaction import redact

NAME = "potstill"
STEP = "trainer/global_step"
# Panels of each section: title and metrics, which depend on the objective and benchmark.
SECTIONS = {
    "Validation": {
        "quality": r"^val/(?!loss|interchange_|teacher_).+",
        "losses": r"^val/loss.*",
        "agreement under interchange": r"^val/interchange_agreement.*",
        "KL under interchange, nats": r"^val/interchange_kl.*",
    },
    "Training": {
        "loss": r"^train/loss$",
        "its terms": r"^train/loss_.+",
        "shares of the gradient": r"^train/gradient_share_.+",
        "gradient norm": r"^train/grad_norm$",
        "learning rate": r"^train/lr$",
    },
    "Speed and memory": {
        "throughput": r"^train/.+_per_second$",
        "seconds per step": r"^train/step_seconds$",
        "peak memory, GB": r"^train/peak_memory_gb$",
    },
}
COLUMNS = ["config:objective.name", "config:benchmark.name", "config:seed", "summary:seconds"]


def layout(entity: str, project: str) -> Any:
    """A `wandb_workspaces` Workspace with `SECTIONS`, each panel over the optimizer steps.

    Args:
        entity: user or team.
        project: `logger.project` of the runs.
    """
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            workspaces.Section(
                name=section,
                panels=[
                    reports.LinePlot(title=title, x=STEP, metric_regex=metrics)  # type: ignore[attr-defined]
                    for title, metrics in panels.items()
                ],
                is_open=True,
            )
            for section, panels in SECTIONS.items()
        ],
        settings=workspaces.WorkspaceSettings(x_axis=STEP, group_by_prefix="first"),
        runset_settings=workspaces.RunsetSettings(pinned_columns=COLUMNS),
    )


def save(path: str) -> str:
    """Save the layout as a view of a project.

    Args:
        path: `<entity>/<project>`.

    Returns:
        Its URL.

    Raises:
        ConfigError: an invalid project, a missing API key, or a server that cannot be reached.
        PackageError: wandb-workspaces is not installed.
    """
    entity, slash, project = path.partition("/")
    if not (entity and slash and project) or "/" in project:
        raise ConfigError(f"{path}: expected <entity>/<project>, with the logger.project of the runs")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise PackageError("wandb-workspaces is not installed; pip install 'potstill[workspaces]'")
    if wandb_mode(None) != "online":
        raise ConfigError("WANDB_API_KEY is not set; set it, or run `wandb login`")
    workspace = layout(entity, project)
    try:
        return str(workspace.save().url)
    except Exception as error:  # wandb raises classes that it does not export
        message = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{path}: the wandb server rejected the layout ({message})") from error


def main(arguments: list[str]) -> int:
    """Save the layout and print its URL; returns the exit code, 2 for user errors."""
    try:
        if len(arguments) != 1:
            raise ConfigError("expected one argument, <entity>/<project>")
        print(save(arguments[0]))
    except PotstillError as error:
        sys.stderr.write(f"error: {printable(redact(str(error)))}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
