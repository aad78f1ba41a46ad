"""Launcher (experimental) that runs the jobs of a sweep as Ray tasks, on this machine or the cluster of RAY_ADDRESS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from potstill.errors import printable


class RayLauncher(Launcher):
    """Runs jobs in parallel.

    Args:
        cpus: per job; fractions share a core.
        gpus: per job.
        init: arguments of `ray.init`.
    """

    def __init__(self, cpus: float, gpus: float, init: DictConfig) -> None:
        self.cpus, self.gpus, self.init = cpus, gpus, init

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the arguments."""
        self.config, self.hydra_context, self.task_function = config, hydra_context, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs, and return their results in order."""
        import ray

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        folder = Path(str(self.config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        if not ray.is_initialized():
            ray.init(**{str(key): value for key, value in self.init.items()})
        job = ray.remote(_run).options(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)
        running = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = number
                config.hydra.sweep.dir = str(folder.absolute())
            print(f"#{number} : {printable(' '.join(filter_overrides(overrides)))}", flush=True)
            running.append(job.remote(self.hydra_context, config, self.task_function, Singleton.get_state()))
        returned: Sequence[JobReturn] = ray.get(running)
        return returned


def _run(context: HydraContext, config: DictConfig, task: TaskFunction, state: Any) -> JobReturn:
    setup_globals()
    Singleton.set_state(state)
    return run_job(
        hydra_context=context,
        task_function=task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
