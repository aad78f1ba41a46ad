"""Processes that something else starts: torchrun, SLURM's environment, Ray Train; on this machine, by gloo."""

import json
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from safetensors.torch import load_file

from potstill.config import TrainConfig
from potstill.config.running import TrainerConfig
from potstill.training.trainer import build_trainer

pytestmark = pytest.mark.integration
SCRIPT = Path(__file__).parents[2] / "train.py"
CPU = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]


@pytest.fixture(scope="module")
def overrides(text_file, eval_file, bert_tokenizer):
    student = "+student.config={model_type: bert, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, "
    student += "intermediate_size: 64, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"
    return [
        "objective=mlm", student, f"data.tokenizer={bert_tokenizer}", "data=text_files",
        f"data.train_files=[{text_file}]", f"data.eval_files=[{eval_file}]", "data.max_length=32", "data.num_proc=1",
        "trainer.max_steps=3", "optimizer.lr=1e-3", "trainer.enable_progress_bar=false", "logger=csv",
    ]  # fmt: skip


def same(one, other):
    weights = [load_file(folder / "student" / "model.safetensors") for folder in (one, other)]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=0, atol=1e-5, msg=key)
    figures = [json.loads((folder / "summary.json").read_text()) for folder in (one, other)]
    assert figures[0]["val/loss"] == pytest.approx(figures[1]["val/loss"], rel=1e-4)


@pytest.fixture(scope="module")
def alone(overrides, command, tmp_path_factory):
    """The folder of the run of one process."""
    folder = tmp_path_factory.mktemp("alone") / "one"
    done = command("train.py", *overrides, "data.batch_size=8", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_processes_of_torchrun(alone, overrides, torchrun, tmp_path):
    done = torchrun(SCRIPT, *overrides, "strategy=torchrun", *CPU, "data.batch_size=4", f"hydra.run.dir={tmp_path}/two")
    assert done.returncode == 0, done.stderr[-2000:]
    same(alone, tmp_path / "two")


def test_workers_of_ray(request, overrides, command, tmp_path):
    pytest.importorskip("ray.train", reason="Ray is not installed: pip install 'potstill[ray]'")
    alone = request.getfixturevalue("alone")
    done = command(
        "train.py", *overrides, "strategy=ray", *CPU, "data.batch_size=4", f"hydra.run.dir={tmp_path}/two", timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    same(alone, tmp_path / "two")


def test_the_environment_of_slurm_is_read(compose_config, monkeypatch, tmp_path):
    """Ranks and machines of a job of two machines with two tasks each, as seen by its last task."""
    variables = {
        "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "2", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
        "SLURM_NODELIST": "node[1-2]",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # Lightning sets the rank of the whole process; after this test it is the first again, which alone logs.
    monkeypatch.setattr(rank_zero_only, "rank", rank_zero_only.rank)
    config = compose_config("strategy=slurm", *CPU, "trainer.num_nodes=2")
    trainer = build_trainer(config.trainer, tmp_path, callbacks=[], loggers=False)
    assert (trainer.world_size, trainer.global_rank, trainer.local_rank, trainer.node_rank) == (4, 3, 1, 1)
    assert type(trainer.strategy.cluster_environment).__name__ == "SLURMEnvironment"


def test_a_worker_of_ray_is_a_process_of_ddp():
    from potstill.runs.ray_workers import worker_settings

    config = TrainConfig(trainer=TrainerConfig(strategy="ray", devices=4, num_nodes=2))
    own = worker_settings(config, world=8, local=4).trainer
    assert (own.strategy, own.devices, own.num_nodes) == ("ddp", 4, 2)
    assert config.trainer.strategy == "ray"
