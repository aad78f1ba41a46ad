"""Where a run goes: what does not go together, and which command installs what is missing."""

import importlib.util

import pytest
import torch
from omegaconf import OmegaConf

from potstill.config import TrainConfig
from potstill.config.running import TrainerConfig
from potstill.errors import ConfigError
from potstill.runs.checks import validate_train
from potstill.training.trainer import build_trainer


@pytest.fixture
def said(compose_config, kd):
    def error(*overrides, given=kd):
        with pytest.raises(ConfigError) as found:
            validate_train(compose_config(*given, *overrides))
        assert "\n" not in str(found.value)
        return str(found.value)

    return error


def test_what_does_not_go_with_shared_weights(said):
    sharded = ["strategy=fsdp", "objective.gradient_shares_every=2", "trainer.precision=64-true", "compile=true"]
    line = said(*sharded)
    assert "objective.gradient_shares_every=2: null with trainer.strategy=fsdp" in line
    assert "trainer.precision=64-true: 32-true or bf16-mixed" in line
    assert "compile=true: false with trainer.strategy=fsdp" in line
    assert "trainer.precision=bf16-true: 32-true or bf16-mixed" in said(
        "strategy=deepspeed", "trainer.precision=bf16-true"
    )
    line = said(
        "strategy=deepspeed", "trainer.strategy=deepspeed_stage_3", "trainer.nonfinite=skip", "experiment=arithmetic",
        given=[],
    )  # fmt: skip
    assert "trainer.strategy=deepspeed_stage_3: not with objective=step_by_step" in line
    assert "trainer.nonfinite=skip: stop with trainer.strategy=deepspeed_stage_3" in line
    two = "tasks=[{benchmark: sst2, teacher: a}, {benchmark: stsb, teacher: b}]"
    line = said("strategy=deepspeed", "objective=task_kd", two, given=[])
    assert "tasks: not with trainer.strategy=deepspeed_stage_2" in line
    assert "were 0; trainer.strategy=ddp_find_unused_parameters_true" in line
    assert "a step of one task" not in line  # which a strategy of its own says where it is refused for that
    assert "ddp_find_unused_parameters_true" not in said(
        "objective=task_kd", two, "trainer.strategy=ddp_find_unused_parameters_true", "trainer.devices=2", given=[]
    )
    assert "one of deepspeed_stage_2, deepspeed_stage_3" in said("trainer.strategy=deepspeed_stage_1")
    assert "trainer.num_nodes=0" in said("trainer.num_nodes=0")


def test_an_extra_that_is_not_installed_is_named_with_its_command(said, monkeypatch):
    found = importlib.util.find_spec
    missing = ("ray", "deepspeed")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else found(name))
    assert "trainer.strategy=ray: ray is not installed; pip install 'potstill[ray]'" in said("strategy=ray")
    assert "data.engine=ray: ray is not installed; pip install 'potstill[ray]'" in said("data.engine=ray")
    assert "deepspeed is not installed; pip install 'potstill[deepspeed]'" in said("strategy=deepspeed")


def test_who_binarizes(said):
    assert "data.engine=spark: local or ray" in said("data.engine=spark")
    line = said("data.engine=ray", "strategy=ray", "trainer.devices=2")
    assert "data.engine=ray: not with trainer.strategy=ray" in line
    assert "strategy=cpu trainer.max_steps=0" in line


def test_ray_needs_a_number_of_workers(said):
    assert "trainer.devices=auto: with trainer.strategy=ray" in said("strategy=ray", "trainer.devices=auto")


@pytest.mark.parametrize(
    ("count", "overrides", "line"),
    [
        (0, ["strategy=gpu"], "trainer.accelerator=gpu: this machine has no GPU that torch can use; strategy=cpu"),
        (1, ["strategy=ddp", "trainer.devices=4"], "trainer.devices=4: this machine has 1 GPU; trainer.devices=1"),
        (2, ["strategy=fsdp", "trainer.devices=4"], "trainer.devices=4: this machine has 2 GPUs; trainer.devices=2"),
        (1, ["strategy=gpu"], "trainer.precision=bf16-mixed: this GPU has no units for bfloat16"),
    ],
)
def test_what_the_machine_lacks(count, overrides, line, compose_config, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    config = compose_config(*overrides)
    with pytest.raises(ConfigError) as error:
        build_trainer(config.trainer, tmp_path, callbacks=[], loggers=False)
    assert str(error.value).startswith(line)


@pytest.mark.parametrize(
    ("trainer", "launcher", "refused"),
    [
        ({"strategy": "fsdp", "devices": 2}, "hydra._internal.core_plugins.basic_launcher.BasicLauncher", True),
        ({"strategy": "ddp", "devices": 1, "num_nodes": 2}, "BasicLauncher", True),
        ({"strategy": "ddp", "devices": 1}, "BasicLauncher", False),
        ({"strategy": "ddp_spawn", "devices": 2}, "BasicLauncher", False),
        ({"strategy": "ray", "devices": 2}, "BasicLauncher", False),
        ({"strategy": "ddp", "devices": 2}, "hydra_plugins.hydra_submitit_launcher.SlurmLauncher", False),
    ],
)
def test_a_sweep_of_runs_that_start_processes(trainer, launcher, refused, monkeypatch):
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from potstill.validation.launch import launch_problems

    hydra = OmegaConf.create({"launcher": {"_target_": launcher}})
    hydra.mode = RunMode.MULTIRUN
    monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: True))
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: hydra))
    problems = launch_problems(TrainConfig(trainer=TrainerConfig(**trainer)))
    assert bool(problems) is refused
    assert all("hydra/launcher=slurm" in line for line in problems)
