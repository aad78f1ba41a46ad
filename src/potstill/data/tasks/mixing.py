"""Training steps of several tasks; the task of a step is a function of (seed, epoch, step)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from potstill.data.common.batching import Ints, derive_seed
from potstill.data.common.steps import BatchSettings, StepDataModule, TrainSteps
from potstill.data.tasks.datamodule import TaskDataModule, TaskStep
from potstill.errors import CheckpointError

_MIXING = 4  # random stream, beside those of order, masks, swaps and sources


def task_shares(sizes: Mapping[str, int], exponent: float) -> NDArray[np.float64]:
    """Sampling probabilities of tasks: size to the power `exponent`, normalized.

    Args:
        sizes: Training examples by task.
        exponent: 1 for proportional to the size, 0 for uniform.

    Source: Yang et al. 2020 (TextBrewer, arXiv:2002.12620), multi-task distillation.
    """
    logs = exponent * np.log(np.array(list(sizes.values()), dtype=np.float64))
    shares = np.exp(logs - logs.max())  # so that no power overflows
    return shares / shares.sum()


class MixedSteps(Dataset):
    """(epoch, step) -> the item of a training step of one task.

    An epoch has as many steps as the epochs of all tasks together. The task of each step is drawn. Each task runs
    through its own epochs, independently of those of the run.

    Args:
        tasks: Steps by task.
        sizes: Training examples by task.
        exponent: See `task_shares`.
        seed: Seed of the draws.
    """

    def __init__(self, tasks: Mapping[str, TrainSteps], sizes: Mapping[str, int], exponent: float, seed: int):
        self.tasks, self.seed = dict(tasks), seed
        self.shares = task_shares(sizes, exponent)
        self._lengths: tuple[int, Ints] | None = None
        self._planned: tuple[tuple[int, int], Ints] | None = None
        self._world = 1

    @property
    def world(self) -> int:
        """Number of processes."""
        return self._world

    @world.setter
    def world(self, processes: int) -> None:
        self._world = processes
        for steps in self.tasks.values():
            steps.world = processes

    @property
    def lengths(self) -> Ints:
        """`(tasks,)` steps per epoch."""
        if self._lengths is None or self._lengths[0] != self.world:
            own = np.array([len(steps.plan(0)) for steps in self.tasks.values()], dtype=np.int64)
            self._lengths = (self.world, own)
        return self._lengths[1]

    def plan(self, epoch: int) -> Ints:
        """`(steps, 3)`: number of the task, epoch of the task, and step in it."""
        if self._planned is None or self._planned[0] != (epoch, self.world):
            before = np.zeros(len(self.tasks), np.int64)
            for earlier in range(epoch):  # drawing an epoch takes microseconds
                before += np.bincount(self._drawn(earlier), minlength=len(before))
            drawn = self._drawn(epoch)
            plan = np.empty((len(drawn), 3), np.int64)
            plan[:, 0] = drawn
            for task, length in enumerate(self.lengths):
                mine = drawn == task
                plan[mine, 1], plan[mine, 2] = np.divmod(before[task] + np.arange(mine.sum()), length)
            self._planned = ((epoch, self.world), plan)
        return self._planned[1]

    def _drawn(self, epoch: int) -> Ints:
        rng = np.random.default_rng(derive_seed(self.seed, epoch, 0, _MIXING))
        return rng.choice(len(self.tasks), size=int(self.lengths.sum()), p=self.shares)

    def __getitem__(self, at: tuple[int, int]) -> dict[str, Any]:
        epoch, step = at
        task, own_epoch, own_step = (int(number) for number in self.plan(epoch)[step])
        name = list(self.tasks)[task]
        return {**self.tasks[name][own_epoch, own_step], "task": name}


class MixedDataModule(StepDataModule):
    """Training steps and evaluation sets of several tasks.

    Args:
        tasks: Data modules by name, with seeds of their own.
        exponent: See `task_shares`.
        settings: Settings of the run; its seed draws the tasks.
    """

    def __init__(self, tasks: Mapping[str, TaskDataModule], exponent: float, settings: BatchSettings):
        super().__init__(None, settings)
        self.tasks, self.exponent = dict(tasks), exponent
        self.sizes = {name: len(part.train) for name, part in tasks.items() if part.train is not None}
        steps = {name: part.train_steps for name, part in tasks.items()}
        self._steps = MixedSteps(steps, self.sizes, exponent, settings.seed)
        # Task and evaluation set of each loader.
        self.evaluation = [(name, part) for name, own in tasks.items() for part in own.evaluation]
        self._resumed_mixture: dict[str, Any] | None = None

    def train_dataloader(self) -> DataLoader:
        """Steps from the trainer's position.

        Raises:
            CheckpointError: The checkpoint has other tasks or sampling probabilities.
        """
        if self._resumed_mixture not in (None, self.mixture):
            raise CheckpointError(
                f"ckpt_path: the checkpoint has the mixture {self._resumed_mixture}, this run {self.mixture}; "
                "resume with the same tasks and mixing.exponent"
            )
        return super().train_dataloader()

    @property
    def mixture(self) -> dict[str, Any]:
        """Settings that determine the task of each step, besides the seed."""
        return {"examples": dict(self.sizes), "exponent": self.exponent}

    def val_dataloader(self) -> list[DataLoader]:
        """One loader per evaluation set of each task, in the order of `evaluation`."""
        return [loader for part in self.tasks.values() for loader in part.val_dataloader()]

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> TaskStep:
        """Cut a step with the data module of its task."""
        name = batch["task"] if batch["training"] else self.evaluation[dataloader_idx][0]
        part = self.tasks[name]
        part.trainer = self.trainer  # for the rank
        step = part.on_after_batch_transfer(batch, 0)
        step.task = name
        return step

    def state_dict(self) -> dict[str, Any]:
        """Steps per epoch, and the mixture."""
        return {**super().state_dict(), "mixture": self.mixture}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the values of the interrupted run for comparison."""
        super().load_state_dict(state_dict)
        self._resumed_mixture = state_dict.get("mixture")
