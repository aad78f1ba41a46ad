"""A user's own loaders as optimizer steps: their batches are micro-batches.

A loader is an iterable with a length. The random generators of the process are seeded from (seed, epoch, step), so
order and augmentation are a function of them. Every process reads the whole loader, and takes each of its batches in
turn: a step has the same batches on any number of processes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import DistributedSampler

from potstill.data.common.batching import derive_seed
from potstill.data.common.steps import ResumableDataModule
from potstill.errors import ConfigError, DataError

EVALUATION = 2  # random stream


class CustomBatch(NamedTuple):
    """A micro-batch.

    Attributes:
        batch: Unchanged batch of the loader.
        examples: Number of its examples.
    """

    batch: Any
    examples: int


@dataclass
class CustomStep:
    """One optimizer step, or one evaluation batch.

    Attributes:
        micro: Micro-batches of this process.
        seed: Seed of dropout.
        examples: Examples of all micro-batches of all processes, what throughput counts.
        batches: Number of micro-batches of all processes.
    """

    micro: list[CustomBatch]
    seed: int
    examples: int
    batches: int

    @property
    def tokens(self) -> int:
        """The units of throughput."""
        return self.examples


def rank_step(micro: Sequence[CustomBatch], seed: int, rank: int = 0, world: int = 1) -> CustomStep:
    """The share of one of several processes in a step."""
    return CustomStep(list(micro[rank::world]), seed, sum(own.examples for own in micro), len(micro))


def examples_of(batch: Any) -> int | None:
    """The first dimension of the first tensor in dictionaries, lists and tuples; None without tensor."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else None
    inner = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((found for part in inner if (found := examples_of(part)) is not None), None)


class StepLoader:
    """Steps of several batches of a loader, from the current position.

    Batches before the position are loaded and skipped.

    Args:
        loader: Loader of batches.
        batches: Batches per step and process; the last step of an epoch may have fewer. It is dropped if it has none
            for a process.
        seed: Seed of the run.
        done: Returns the number of finished steps; called when iteration begins.
        purpose: Random stream.
        ranks: This process, and their number.
    """

    def __init__(
        self,
        loader: Any,
        batches: int,
        seed: int,
        done: Callable[[], int],
        purpose: int = 1,
        ranks: tuple[int, int] = (0, 1),
    ):
        self.loader, self.batches, self.seed = loader, batches * ranks[1], seed
        self.done, self.purpose, self.ranks = done, purpose, ranks

    def __len__(self) -> int:
        whole, rest = divmod(len(self.loader), self.batches)
        return whole + (rest >= self.ranks[1])

    def __iter__(self) -> Iterator[CustomStep]:
        epoch, start = divmod(self.done(), len(self))
        _seed_all(derive_seed(self.seed, epoch, 0, self.purpose + 2))
        for part in (self.loader, *(getattr(self.loader, name, None) for name in ("sampler", "batch_sampler"))):
            generator = getattr(part, "generator", None)
            if isinstance(generator, torch.Generator):  # its state must not depend on earlier epochs
                generator.manual_seed(derive_seed(self.seed, epoch, 1, self.purpose + 2))
            if callable(set_epoch := getattr(part, "set_epoch", None)):
                set_epoch(epoch)
        batches = iter(self.loader)
        for number in range(len(self)):
            seed = derive_seed(self.seed, epoch, number, self.purpose)
            _seed_all(seed)
            micro = list(islice(batches, self.batches))
            if number >= start and micro:
                yield rank_step([CustomBatch(batch, _size(batch)) for batch in micro], seed, *self.ranks)


class CustomDataModule(ResumableDataModule):
    """A user's loaders as loaders of optimizer steps.

    Args:
        made: A LightningDataModule, or (training loader, validation loader or None).
        seed: Seed of the run.
        accumulate: Batches per optimizer step.

    Raises:
        ConfigError: Another value, or a loader without length.
    """

    def __init__(self, made: Any, *, seed: int, accumulate: int):
        super().__init__()
        self.seed, self.accumulate = seed, accumulate
        self._own = made if isinstance(made, LightningDataModule) else None
        if self._own is not None:
            self._own.prepare_data()
            self._own.setup("fit")
            overridden = type(self._own).val_dataloader is not LightningDataModule.val_dataloader
            train, evaluation = (self._own.train_dataloader(), self._own.val_dataloader() if overridden else None)
        elif isinstance(made, list | tuple) and len(made) == 2:
            train, evaluation = made
        else:
            raise ConfigError(
                f"custom.data: returns a {type(made).__name__}; must be a LightningDataModule, or a function that "
                "returns (training loader, validation loader or None)"
            )
        self._train = _sized("training", train)
        self.evaluation = _sized("validation", evaluation) if evaluation is not None else None

    def first_batch(self) -> Any:
        """A batch of the training loader after the transfer hooks."""
        return next(self.batches(0)).batch

    def batches(self, epoch: int, device: torch.device | None = None) -> Iterator[CustomBatch]:
        """All batches of an epoch of the training loader, on a device, after the transfer hooks."""
        for step in StepLoader(self._train, 1, self.seed, lambda: epoch * len(self._train)):
            moved = self.on_before_batch_transfer(step, 0)
            if device is not None:
                moved = move_data_to_device(moved, device)
            yield self.on_after_batch_transfer(moved, 0).micro[0]

    @property
    def rows(self) -> int | None:
        """Number of examples of the training data; None if its loader does not say it."""
        data = getattr(self._train, "dataset", None)
        return len(data) if isinstance(data, Sized) else None

    def train_dataloader(self) -> StepLoader:
        """Steps from the trainer's position.

        Raises:
            CheckpointError: The checkpoint has another number of steps per epoch.
        """
        self.check_resumed()
        return self._steps()

    def val_dataloader(self) -> Any:
        """This process' evaluation steps of one batch, always the same.

        Raises:
            DataError: There are fewer batches than processes.
        """
        if self.evaluation is None:
            return []
        self._check_batches("validation", self.evaluation)
        return _RankBatches(StepLoader(self.evaluation, 1, self.seed, lambda: 0, EVALUATION), *self._ranks)

    def on_before_batch_transfer(self, batch: CustomStep, dataloader_idx: int) -> CustomStep:
        """Call the data module's own hook for each batch."""
        return self._hooked("on_before_batch_transfer", batch, dataloader_idx)

    def on_after_batch_transfer(self, batch: CustomStep, dataloader_idx: int) -> CustomStep:
        """Call the data module's own hook for each batch."""
        return self._hooked("on_after_batch_transfer", batch, dataloader_idx)

    def _hooked(self, name: str, step: CustomStep, dataloader_idx: int) -> CustomStep:
        if self._own is None:
            return step
        self._own.trainer = self.trainer
        hook = getattr(self._own, name)
        micro = [CustomBatch(hook(own.batch, dataloader_idx), own.examples) for own in step.micro]
        return replace(step, micro=micro)

    def teardown(self, stage: str) -> None:
        """Call the data module's own hook."""
        if self._own is not None:
            self._own.teardown(stage)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        return len(self._steps())

    @property
    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _steps(self) -> StepLoader:
        self._check_batches("training", self._train)
        return StepLoader(self._train, self.accumulate, self.seed, self.done, ranks=self._ranks)

    def _check_batches(self, which: str, loader: Any) -> None:
        world = self._ranks[1]
        if len(loader) < world:
            raise DataError(
                f"trainer.devices={world}: the {which} loader has {len(loader)} batches, fewer than processes; use "
                "fewer devices or smaller batches"
            )

    @property
    def figures(self) -> dict[str, int]:
        """Batches of the loaders."""
        counts = {"train_batches": len(self._train)}
        return counts if self.evaluation is None else {**counts, "eval_batches": len(self.evaluation)}


class _RankBatches:
    """Every `world`-th step of a loader, beginning with that of this process."""

    def __init__(self, steps: StepLoader, rank: int, world: int):
        self.steps, self.rank, self.world = steps, rank, world

    def __len__(self) -> int:
        return len(range(self.rank, len(self.steps), self.world))

    def __iter__(self) -> Iterator[CustomStep]:
        return islice(iter(self.steps), self.rank, None, self.world)


def _sized(which: str, loader: Any) -> Any:
    if isinstance(loader, list | tuple | Mapping):
        raise ConfigError(
            f"custom.data: the {which} loader is a {type(loader).__name__}; must be one loader of batches"
        )
    try:
        length = len(loader) if isinstance(loader, Sized) else 0
    except TypeError:  # torch's loader of an iterable data set
        length = 0
    if not length:
        raise ConfigError(
            f"custom.data: the {which} loader has no batches or no length; must be a DataLoader of a data set with "
            "__len__"
        )
    for name in ("sampler", "batch_sampler"):
        if isinstance(getattr(loader, name, None), DistributedSampler):
            raise ConfigError(
                f"custom.data: the {which} loader has a DistributedSampler; must have all examples, whose batches are "
                "divided among the processes here"
            )
    return loader


def _size(batch: Any) -> int:
    size = examples_of(batch)
    if size is None:
        raise ConfigError(
            "custom.data: a batch has no tensors; must be a tensor, or a dictionary, list or tuple of tensors with "
            "examples in the first dimension"
        )
    return size


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
