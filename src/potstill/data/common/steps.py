"""Loaders whose item is one optimizer step: what the data modules of corpora and of tasks do alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from potstill.data.common.batching import EpochPlan, Ints, StepSampler, derive_seed, micro_batches, plan_epoch
from potstill.data.common.swaps import EVALUATION, Neighbours, check_swappable
from potstill.errors import CheckpointError, DataError
from potstill.interchange.plans import PAIR, PlanSettings
from potstill.runtime.signals import SPAWN


@dataclass(frozen=True)
class BatchSettings:
    """How sequences become steps, micro-batches and masks; the keys of `data` with the same names."""

    seed: int
    batch_size: int
    accumulate: int = 1
    max_tokens: int | None = None
    eval_batch_size: int = 32
    group_size: int | None = None
    length_bin: int = 4
    mlm_share: float = 0.15
    mlm_smoothing: float = 0.7
    mlm_replace: tuple[float, ...] = (0.8, 0.1, 0.1)
    num_workers: int = 0
    interchange: PlanSettings | None = None
    # Every rank has a part of every evaluation batch, too, because those that share weights have to run alike.
    even: bool = False

    @property
    def unit(self) -> int:
        """Sequences that stay together wherever a step is cut: sources in the batch come in pairs."""
        return PAIR if self.interchange is not None and self.interchange.pairing == "in_batch" else 1


class Sequences(Protocol):
    """What is put into steps: sequences of a corpus, or rows of a benchmark."""

    @property
    def lengths(self) -> NDArray[np.integer]:
        """`(sequences,)` tokens of each."""

    def item(self, bases: Ints, sources: Ints, seed: int, training: bool) -> dict[str, Any]:
        """A step of `bases`, with their drawn `sources`, if there are any, behind them."""


class TrainSteps(Dataset):
    """(epoch, step) -> the item of a training step, over all micro-batches and ranks.

    Args:
        sequences: what is trained on.
        settings: how it is put into steps.
    """

    def __init__(self, sequences: Sequences, settings: BatchSettings):
        self.sequences, self.settings, self.world = sequences, settings, 1
        self.neighbours: Neighbours | None = None
        if settings.interchange is not None:
            check_swappable(settings.interchange, sequences.lengths)
            if settings.interchange.pairing == "dataset":
                self.neighbours = Neighbours(sequences.lengths, settings.seed)
        self._planned: tuple[tuple[int, int], EpochPlan] | None = None

    def plan(self, epoch: int) -> EpochPlan:
        """The steps of an epoch.

        Raises:
            DataError: there are too few sequences for the processes.
        """
        if self._planned is None or self._planned[0] != (epoch, self.world):
            s = self.settings
            times = s.accumulate * self.world
            plan = plan_epoch(
                self.sequences.lengths,
                seed=s.seed,
                epoch=epoch,
                sequences=s.batch_size * times,
                tokens=s.max_tokens * times if s.max_tokens else None,
                group_size=s.group_size,
                length_bin=s.length_bin,
                unit=s.unit,
            )
            # A rank would be left without a sequence, or a sequence without a source.
            if plan.bounds[-1] - plan.bounds[-2] < self.world * s.unit:
                plan = EpochPlan(plan.order, plan.bounds[:-1])
            if not len(plan):
                raise DataError(
                    f"trainer.devices={self.world}: {len(self.sequences.lengths)} sequences are too few to share; "
                    "use fewer devices or more text"
                )
            self._planned = ((epoch, self.world), plan)
        return self._planned[1]

    def __getitem__(self, at: tuple[int, int]) -> dict[str, Any]:
        epoch, step = at
        bases, near = self.plan(epoch).step(step), self.neighbours
        sources = bases[:0] if near is None else near.sources(bases, epoch, step)
        seed = derive_seed(self.settings.seed, epoch, step)
        return {**self.sequences.item(bases, sources, seed, training=True), "epoch": epoch, "step": step}


class EvalSteps(Dataset):
    """Number -> the item of an evaluation batch, of like lengths, in an order that is the same every time.

    Args:
        sequences: what is evaluated.
        settings: how it is put into batches.
        world: processes that share each batch.

    Raises:
        DataError: there are too few sequences for the processes.
    """

    def __init__(self, sequences: Sequences, settings: BatchSettings, world: int = 1):
        self.sequences, self.seed = sequences, settings.seed
        order = np.argsort(sequences.lengths, kind="stable")
        unit = 1 if settings.interchange is None else PAIR  # neighbours in length, whatever the batch size
        least = world * unit if settings.even else unit
        size = max(settings.eval_batch_size - settings.eval_batch_size % unit, least)
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        if settings.even and len(batches) > 1 and len(batches[-1]) < least:
            batches[-2:] = [np.concatenate(batches[-2:])]
        if settings.even and len(batches[-1]) < least:
            raise DataError(
                f"trainer.devices={world}: {len(order)} sequences of evaluation are too few to share; use fewer "
                "devices, or strategy=ddp"
            )
        # Of all lengths from the first batch on, so that a limited validation is a fair sample.
        shuffled = np.random.default_rng(derive_seed(self.seed, EVALUATION, 0)).permutation(len(batches))
        self.plan = [batches[i] for i in shuffled]

    def __getitem__(self, index: int) -> dict[str, Any]:
        wanted = self.plan[index]
        return self.sequences.item(
            wanted, wanted[:0], derive_seed(self.seed, EVALUATION, index), training=False
        )


class StepDataModule(LightningDataModule):
    """One item of the loader is one optimizer step of all micro-batches.

    The position of a resumed run in its epoch follows from the number of steps done.

    Args:
        train: what is trained on, if anything.
        settings: how it is put into steps.
    """

    def __init__(self, train: Sequences | None, settings: BatchSettings):
        super().__init__()
        self.settings = settings
        self._steps: Any = TrainSteps(train, settings) if train is not None else None
        self._resumed_steps_an_epoch: int | None = None

    @property
    def train_steps(self) -> TrainSteps:
        """The steps of training, of data that has any."""
        assert isinstance(self._steps, TrainSteps)
        return self._steps

    def train_dataloader(self) -> DataLoader:
        """Steps from the position that the trainer has reached."""
        assert self._steps is not None
        if self._resumed_steps_an_epoch not in (None, self.steps_an_epoch):
            raise CheckpointError(
                f"ckpt_path: the checkpoint's epochs have {self._resumed_steps_an_epoch} steps, this run's "
                f"{self.steps_an_epoch}; resume with the same data, data.batch_size, accumulation and devices"
            )
        return self._loader(self._steps, StepSampler(self.steps_an_epoch, self._done))

    def evaluation_loader(self, sequences: Sequences) -> DataLoader:
        """Batches of an evaluation set."""
        steps = EvalSteps(sequences, self.settings, self.trainer.world_size if self.trainer else 1)
        return self._loader(steps, list(range(len(steps.plan))))

    def _loader(self, steps: Dataset, sampler: Any) -> DataLoader:
        workers = self.settings.num_workers
        return DataLoader(
            steps,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            multiprocessing_context=SPAWN if workers else None,
            persistent_workers=workers > 0,
        )

    def cuts(self, lengths: Ints, training: bool) -> list[Ints]:
        """This rank's micro-batches, as positions within the step."""
        trainer, s = self.trainer, self.settings
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if not training:
            unit = 1 if s.interchange is None else PAIR
            return micro_batches(
                lengths, sequences=len(lengths), tokens=None, rank=rank, world=world, unit=unit
            )
        return micro_batches(
            lengths, sequences=s.batch_size, tokens=s.max_tokens, rank=rank, world=world, unit=s.unit
        )

    def state_dict(self) -> dict[str, Any]:
        """How long an epoch is: enough to know that a resumed run counts steps alike."""
        return {"steps_an_epoch": self.steps_an_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the length of the interrupted run's epochs, to be compared with this run's."""
        self._resumed_steps_an_epoch = state_dict.get("steps_an_epoch")

    def _done(self) -> int:
        return self.trainer.global_step if self.trainer else 0

    @property
    def steps_an_epoch(self) -> int:
        """Optimizer steps of an epoch; 0 without training data."""
        if self._steps is None:
            return 0
        self._steps.world = self.trainer.world_size if self.trainer else 1
        return len(self._steps.plan(0))
