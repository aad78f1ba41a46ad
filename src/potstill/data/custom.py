"""A user's own loaders as optimizer steps: their batches are micro-batches, and a resumed run finds its place in them.

A loader is any iterable of a known length. The random generators of the process are seeded from (seed, epoch, step)
before batches are made, so order and augmentation are a function of these alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor

from potstill.data.common.batching import derive_seed
from potstill.errors import CheckpointError, ConfigError

EVALUATION = 2  # what a derived random stream is for


@dataclass
class AdaptedStep:
    """One optimizer step, or one evaluation batch.

    Attributes:
        micro: the loader's batches, as they are.
        sizes: examples of each.
        seed: of dropout.
    """

    micro: list[Any]
    sizes: list[int]
    seed: int

    @property
    def examples(self) -> int:
        """Of all micro-batches."""
        return sum(self.sizes)

    @property
    def tokens(self) -> int:
        """What throughput counts: examples."""
        return self.examples


def examples_of(batch: Any) -> int | None:
    """The first dimension of the first tensor in dictionaries, lists and tuples; None where there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else None
    inner = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((found for part in inner if (found := examples_of(part)) is not None), None)


class StepLoader:
    """Steps of so many batches of a loader, from where the steps already done lead to.

    Batches before that place are made and left out, as a loader can say no other way what comes next.

    Args:
        loader: of batches.
        batches: of a step; the last step of an epoch may have fewer.
        seed: of the run.
        done: how many steps lie behind; asked for when iteration begins.
        purpose: of the derived random stream.
    """

    def __init__(self, loader: Any, batches: int, seed: int, done: Callable[[], int], purpose: int = 1):
        self.loader, self.batches, self.seed = loader, batches, seed
        self.done, self.purpose = done, purpose

    def __len__(self) -> int:
        return -(-len(self.loader) // self.batches)

    def __iter__(self) -> Iterator[AdaptedStep]:
        epoch, start = divmod(self.done(), len(self))
        _seed_all(derive_seed(self.seed, epoch, 0, self.purpose + 2))
        for part in (
            self.loader,
            *(getattr(self.loader, name, None) for name in ("sampler", "batch_sampler")),
        ):
            generator = getattr(part, "generator", None)
            if isinstance(generator, torch.Generator):  # else its state would be that of the epochs before
                generator.manual_seed(derive_seed(self.seed, epoch, 1, self.purpose + 2))
            if callable(set_epoch := getattr(part, "set_epoch", None)):
                set_epoch(epoch)
        batches = iter(self.loader)
        for number in range(len(self)):
            seed = derive_seed(self.seed, epoch, number, self.purpose)
            _seed_all(seed)
            micro = list(islice(batches, self.batches))
            if number >= start and micro:
                yield AdaptedStep(micro, [_size(batch) for batch in micro], seed)


class AdaptedDataModule(LightningDataModule):
    """Loaders of the user's as loaders of optimizer steps.

    Args:
        made: a LightningDataModule, or (training loader, validation loader or None).
        seed: of the run.
        accumulate: batches of an optimizer step.

    Raises:
        ConfigError: something else, or a loader that does not know its length.
    """

    def __init__(self, made: Any, *, seed: int, accumulate: int):
        super().__init__()
        self.seed, self.accumulate = seed, accumulate
        self._own = made if isinstance(made, LightningDataModule) else None
        if self._own is not None:
            self._own.prepare_data()
            self._own.setup("fit")
            overridden = type(self._own).val_dataloader is not LightningDataModule.val_dataloader
            train, evaluation = (
                self._own.train_dataloader(),
                self._own.val_dataloader() if overridden else None,
            )
        elif isinstance(made, list | tuple) and len(made) == 2:
            train, evaluation = made
        else:
            raise ConfigError(
                f"adapted.data: gives a {type(made).__name__}; a LightningDataModule, or a function that returns "
                "(training loader, validation loader or None)"
            )
        self._train = _sized("training", train)
        self.evaluation = _sized("validation", evaluation) if evaluation is not None else None
        self._resumed_steps_an_epoch: int | None = None

    def first_batch(self) -> Any:
        """A batch of the training loader, as the models get it."""
        step = next(iter(StepLoader(self._train, 1, self.seed, lambda: 0)))
        return self.on_after_batch_transfer(self.on_before_batch_transfer(step, 0), 0).micro[0]

    def train_dataloader(self) -> StepLoader:
        """Steps from the position that the trainer has reached.

        Raises:
            CheckpointError: the run that it goes on from had other epochs.
        """
        steps = StepLoader(self._train, self.accumulate, self.seed, self._done)
        if self._resumed_steps_an_epoch not in (None, len(steps)):
            raise CheckpointError(
                f"ckpt_path: the checkpoint's epochs have {self._resumed_steps_an_epoch} steps, this run's "
                f"{len(steps)}; resume with the same data, batch size and accumulation"
            )
        return steps

    def val_dataloader(self) -> Any:
        """A batch at a time, drawn alike every time."""
        if self.evaluation is None:
            return []
        return StepLoader(self.evaluation, 1, self.seed, lambda: 0, EVALUATION)

    def on_before_batch_transfer(self, batch: AdaptedStep, dataloader_idx: int) -> AdaptedStep:
        """The data module's own hook, a batch at a time."""
        return self._hooked("on_before_batch_transfer", batch, dataloader_idx)

    def on_after_batch_transfer(self, batch: AdaptedStep, dataloader_idx: int) -> AdaptedStep:
        """Likewise."""
        return self._hooked("on_after_batch_transfer", batch, dataloader_idx)

    def _hooked(self, name: str, step: AdaptedStep, dataloader_idx: int) -> AdaptedStep:
        if self._own is None:
            return step
        self._own.trainer = self.trainer
        hook = getattr(self._own, name)
        return AdaptedStep([hook(batch, dataloader_idx) for batch in step.micro], step.sizes, step.seed)

    def teardown(self, stage: str) -> None:
        """The data module's own."""
        if self._own is not None:
            self._own.teardown(stage)

    def state_dict(self) -> dict[str, int]:
        """How long an epoch is: enough to know that a resumed run counts steps alike."""
        return {"steps_an_epoch": len(StepLoader(self._train, self.accumulate, self.seed, self._done))}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Remember the length of the interrupted run's epochs, to be compared with this run's."""
        self._resumed_steps_an_epoch = state_dict.get("steps_an_epoch")

    def _done(self) -> int:
        return self.trainer.global_step if self.trainer else 0

    @property
    def figures(self) -> dict[str, int]:
        """Batches of the loaders."""
        counts = {"train_batches": len(self._train)}
        return counts if self.evaluation is None else {**counts, "eval_batches": len(self.evaluation)}


def _sized(which: str, loader: Any) -> Any:
    if isinstance(loader, list | tuple | Mapping):
        raise ConfigError(
            f"adapted.data: the {which} loader is a {type(loader).__name__}; one loader of batches"
        )
    try:
        length = len(loader) if isinstance(loader, Sized) else 0
    except TypeError:  # torch's loader of an iterable data set
        length = 0
    if not length:
        raise ConfigError(
            f"adapted.data: the {which} loader has no batches, or no length; a DataLoader of a data set with __len__"
        )
    return loader


def _size(batch: Any) -> int:
    size = examples_of(batch)
    if size is None:
        raise ConfigError(
            "adapted.data: a batch without tensors; a tensor, or a dictionary, list or tuple of tensors, examples first"
        )
    return size


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
