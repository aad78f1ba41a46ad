"""The layout of a project on a wandb server."""

import json
import re
import sys

import pytest

from potstill.reporting import wandb_workspace
from potstill.reporting.wandb_workspace import SECTIONS, main

pytest.importorskip("wandb_workspaces")

LOGGED = [
    "val/accuracy", "val/perplexity", "val/teacher_perplexity", "val/loss", "val/loss_ce", "val/interchange_agreement",
    "val/interchange_agreement_3-1", "val/interchange_kl", "train/loss", "train/loss_ce", "train/gradient_share_ce",
    "train/grad_norm", "train/lr", "train/tokens_per_second", "train/step_seconds", "train/peak_memory_gb",
]  # fmt: skip


def test_the_layout_is_saved(wandb_server, capsys):
    assert main(["team/potstill"]) == 0
    assert capsys.readouterr().out.strip().endswith("/team/potstill?nw=made")
    view = next(query["variables"] for query in wandb_server.asked if "upsertView" in query["query"])
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("team", "potstill", "potstill")
    found = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    panels = {section["name"]: section["panels"] for section in found if section["panels"]}
    assert {name: len(shown) for name, shown in panels.items()} == {k: len(v) for k, v in SECTIONS.items()}
    quality = next(panel["config"] for panel in panels["Validation"] if panel["config"]["chartTitle"] == "quality")
    assert (quality["xAxis"], quality["metricRegex"]) == (wandb_workspace.STEP, SECTIONS["Validation"]["quality"])


def test_an_error_of_the_server_is_one_line(wandb_server, capsys):
    wandb_server.refused = "upsertView"
    assert main(["team/potstill"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: team/potstill: ")
    assert "permission denied" in line
    assert line.count("\n") == 1


@pytest.mark.parametrize("metric", LOGGED)
def test_each_metric_is_in_one_panel(metric):
    shown = [title for panels in SECTIONS.values() for title, wanted in panels.items() if re.search(wanted, metric)]
    assert len(shown) == (0 if "teacher" in metric else 1)


@pytest.mark.parametrize(
    ("arguments", "key", "installed", "named"),
    [
        (["potstill"], "a" * 40, True, "potstill: "),
        ([], "a" * 40, True, "<entity>/<project>"),
        (["a/b"], "", True, "WANDB_API_KEY"),
        (["a/b"], "a" * 40, False, "pip install 'potstill[workspaces]'"),
    ],
)
def test_errors_are_one_line(arguments, key, installed, named, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    if not installed:
        monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main(arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert named in line
    assert line.count("\n") == 1
