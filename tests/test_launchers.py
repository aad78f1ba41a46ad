"""Launchers of Hydra's that are extras: what they compose to, what is said without them, and a sweep in processes."""

import json

import pytest
from hydra import compose, initialize_config_dir

from potstill.cli.commands import config_folder
from potstill.config import register


@pytest.mark.parametrize("name", ["slurm", "local"])
def test_a_launcher_of_submitit_composes(name):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        overrides = [f"hydra/launcher={name}", "hydra.launcher.tasks_per_node=4"]
        config = compose("train", overrides, return_hydra_config=True)
    launcher = config.hydra.launcher
    assert "submitit" in launcher._target_
    assert (launcher.nodes, launcher.tasks_per_node, launcher.timeout_min) == (1, 4, 1440)


@pytest.mark.parametrize(("kind", "name"), [("launcher", "ray"), ("sweeper", "optuna")])
def test_launchers_and_sweepers_of_this_package_compose(kind, name):
    register()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose("train", [f"hydra/{kind}={name}"], return_hydra_config=True)
    assert config.hydra[kind]._target_.startswith("hydra_plugins.potstill.")


@pytest.mark.integration
def test_a_sweep_in_processes(command, text_file, eval_file, tmp_path):
    pytest.importorskip("submitit")
    folder = tmp_path / "sweep"
    done = command(
        "train.py", "-m", "hydra/launcher=local", "data.mlm_share=0.15,7", "objective=mlm", "student=bert_tiny",
        "data=text_files", f"data.train_files=[{text_file}]", f"data.eval_files=[{eval_file}]",
        "data.vocabulary_size=200", "data.max_length=32", "data.num_proc=1", "data.batch_size=8", "logger=csv",
        "trainer.max_steps=1", "trainer.enable_progress_bar=false", f"hydra.sweep.dir={folder}", timeout=500,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert json.loads((folder / "0" / "summary.json").read_text())["train/steps"] == 1
    assert "data.mlm_share=7" in (folder / "1" / "error.txt").read_text()
