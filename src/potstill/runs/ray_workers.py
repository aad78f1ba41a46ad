"""`strategy=ray` (experimental): Ray Train starts the processes of a run, on this machine or on a Ray cluster."""

from __future__ import annotations

import os
import shutil
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

from potstill.config import TrainConfig
from potstill.errors import ConfigError
from potstill.runtime.ray_cluster import connect

_VALUE_FILE = ".value"  # written by the first worker: the value that a sweep optimizes


def train_on_ray(config: TrainConfig, folder: Path) -> float | None:
    """Train with `trainer.devices` workers on each of `trainer.num_nodes` machines, as `runs.train` does.

    Args:
        config: of the run; the workers get it composed.
        folder: of the run, on a shared disk.

    Returns:
        The value of `runs.train`.

    Raises:
        ConfigError: the cluster has fewer devices than workers, or a worker rejected the run.
    """
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    connect()
    gpu = config.trainer.accelerator in ("gpu", "cuda")
    workers = int(config.trainer.devices) * int(config.trainer.num_nodes)
    kind = "GPU" if gpu else "CPU"
    found = int(ray.cluster_resources().get(kind, 0))
    if workers > found:
        raise ConfigError(f"trainer.devices={workers}: Ray has {found} {kind}s; use at most {found}")
    own = Path(tempfile.mkdtemp(prefix="potstill-ray-"))  # Ray's own files
    try:
        TorchTrainer(
            _worker,
            train_loop_config={"config": config, "folder": str(folder.absolute()), "cwd": str(Path.cwd())},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            run_config=RunConfig(storage_path=str(own), name="run"),
        ).fit()
        file = folder / _VALUE_FILE
        value = float(file.read_text()) if file.exists() else None
        file.unlink(missing_ok=True)
        return value
    finally:
        shutil.rmtree(own, ignore_errors=True)


def worker_settings(config: TrainConfig, world: int, local: int) -> TrainConfig:
    """The configuration of a worker: Lightning's DDP in processes that already exist.

    Args:
        config: of the run.
        world: number of workers.
        local: number of them on this machine.
    """
    own = deepcopy(config)
    own.trainer.strategy, own.trainer.devices, own.trainer.num_nodes = "ddp", local, world // local
    return own


def _worker(settings: dict[str, Any]) -> None:
    """One process of the run; Ray Train sets RANK and so on, which Lightning reads like torchrun's."""
    import ray.train

    from potstill.runs.train import train
    from potstill.runtime.process import prepare

    os.chdir(settings["cwd"])
    os.environ["TORCHELASTIC_RUN_ID"] = "ray"
    prepare()
    context = ray.train.get_context()
    folder = Path(settings["folder"])
    value = train(worker_settings(settings["config"], context.get_world_size(), context.get_local_world_size()), folder)
    if context.get_world_rank() == 0 and value is not None:
        (folder / _VALUE_FILE).write_text(repr(float(value)))
