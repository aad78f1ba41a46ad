"""Data sets and data modules whose items are optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from potstill.data.common.batching import EpochPlan, Ints, StepSampler, derive_seed, micro_batches, plan_epoch
from potstill.data.common.swaps import EVALUATION, Sources, check_swappable, sources_of_plan
from potstill.errors import CheckpointError, DataError
from potstill.interchange.plans import PAIR, PlanSettings
from potstill.runtime.workers import SPAWN


@dataclass(frozen=True)
class BatchSettings:
    """Settings of steps, micro-batches and masks; the keys of `data` with the same names."""

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
    # Every rank gets a part of every evaluation batch, as strategies with sharded weights require.
    even: bool = False

    @property
    def unit(self) -> int:
        """Sequences that stay together when a step is cut: pairs, if sources are in the batch."""
        return PAIR if self.interchange is not None and self.interchange.pairing == "in_batch" else 1


class Sequences(Protocol):
    """Sequences of a corpus, or rows of a benchmark."""

    @property
    def lengths(self) -> NDArray[np.integer]:
        """`(sequences,)` tokens of each sequence."""

    def item(self, bases: Ints, sources: Ints, seed: int, training: bool) -> dict[str, Any]:
        """The item of a step: `bases`, followed by their drawn `sources`, if any."""


class TrainSteps(Dataset):
    """(epoch, step) -> the item of a training step, over all micro-batches and ranks.

    Args:
        sequences: Training sequences.
        settings: Settings of steps.
    """

    def __init__(self, sequences: Sequences, settings: BatchSettings):
        self.sequences, self.settings, self.world = sequences, settings, 1
        self._sources: Sources | None = None
        if settings.interchange is not None:
            check_swappable(settings.interchange, sequences.lengths)
            self._sources = sources_of_plan(settings.interchange, sequences.lengths, settings.seed)
        self._planned: tuple[tuple[int, int], EpochPlan] | None = None

    def plan(self, epoch: int) -> EpochPlan:
        """The steps of an epoch.

        Raises:
            DataError: There are too few sequences for the processes.
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
            # Otherwise a rank would have no sequence, or a sequence no source.
            if plan.bounds[-1] - plan.bounds[-2] < self.world * s.unit:
                plan = EpochPlan(plan.order, plan.bounds[:-1])
            if not len(plan):
                raise DataError(
                    f"trainer.devices={self.world}: {len(self.sequences.lengths)} sequences are too few; "
                    "use fewer devices or more text"
                )
            self._planned = ((epoch, self.world), plan)
        return self._planned[1]

    def __getitem__(self, at: tuple[int, int]) -> dict[str, Any]:
        epoch, step = at
        bases, drawn = self.plan(epoch).step(step), self._sources
        sources = bases[:0] if drawn is None else drawn.sources(bases, epoch, step)
        seed = derive_seed(self.settings.seed, epoch, step)
        return {**self.sequences.item(bases, sources, seed, training=True), "epoch": epoch, "step": step}


class EvalSteps(Dataset):
    """Number -> the item of an evaluation batch of similar lengths, in a fixed order.

    Args:
        sequences: Evaluation sequences.
        settings: Settings of batches.
        world: Number of processes that share each batch.

    Raises:
        DataError: There are too few sequences for the processes.
    """

    def __init__(self, sequences: Sequences, settings: BatchSettings, world: int = 1):
        self.sequences, self.seed = sequences, settings.seed
        order = np.argsort(sequences.lengths, kind="stable")
        unit = 1 if settings.interchange is None else PAIR  # the same pairs for any batch size
        least = world * unit if settings.even else unit
        size = max(settings.eval_batch_size - settings.eval_batch_size % unit, least)
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        if settings.even and len(batches) > 1 and len(batches[-1]) < least:
            batches[-2:] = [np.concatenate(batches[-2:])]
        if settings.even and len(batches[-1]) < least:
            raise DataError(
                f"trainer.devices={world}: {len(order)} evaluation sequences are too few; use fewer devices, or "
                "strategy=ddp"
            )
        # Shuffled, so that a limited validation is a fair sample of all lengths.
        shuffled = np.random.default_rng(derive_seed(self.seed, EVALUATION, 0)).permutation(len(batches))
        self.plan = [batches[i] for i in shuffled]

    def __getitem__(self, index: int) -> dict[str, Any]:
        wanted = self.plan[index]
        return self.sequences.item(wanted, wanted[:0], derive_seed(self.seed, EVALUATION, index), training=False)


class ResumableDataModule(LightningDataModule):
    """Base of data modules whose position in a resumed run follows from its number of steps."""

    _resumed_steps_per_epoch: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Steps per epoch, for the comparison with a resumed run."""
        return {"steps_an_epoch": self.steps_per_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the steps per epoch of the interrupted run."""
        self._resumed_steps_per_epoch = state_dict.get("steps_an_epoch")

    def check_resumed(self) -> None:
        """Compare the steps per epoch with those of the interrupted run, if any.

        Raises:
            CheckpointError: They differ.
        """
        if self._resumed_steps_per_epoch not in (None, self.steps_per_epoch):
            raise CheckpointError(
                f"ckpt_path: the checkpoint's epochs have {self._resumed_steps_per_epoch} steps, this run's "
                f"{self.steps_per_epoch}; resume with the same data, batch size, accumulation and devices"
            )

    def done(self) -> int:
        """Number of finished optimizer steps."""
        return self.trainer.global_step if self.trainer else 0


class StepDataModule(ResumableDataModule):
    """Base of data modules whose loaders give one optimizer step per item.

    Args:
        train: Training sequences, if any.
        settings: Settings of steps.
    """

    def __init__(self, train: Sequences | None, settings: BatchSettings):
        super().__init__()
        self.settings = settings
        self._steps: Any = TrainSteps(train, settings) if train is not None else None

    @property
    def train_steps(self) -> TrainSteps:
        """The training steps."""
        assert isinstance(self._steps, TrainSteps)
        return self._steps

    def train_dataloader(self) -> DataLoader:
        """Steps from the trainer's position.

        Raises:
            CheckpointError: The checkpoint has another number of steps per epoch.
        """
        assert self._steps is not None
        self.check_resumed()
        return self._loader(self._steps, StepSampler(self.steps_per_epoch, self.done))

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

    def cuts(self, lengths: Ints, training: bool, times: int = 1) -> list[Ints]:
        """This rank's micro-batches, as indices within the step; `times`: sequences for each of `data.batch_size`."""
        trainer, s = self.trainer, self.settings
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if not training:
            unit = 1 if s.interchange is None else PAIR
            return micro_batches(lengths, sequences=len(lengths), tokens=None, rank=rank, world=world, unit=unit)
        size = s.batch_size * times
        return micro_batches(lengths, sequences=size, tokens=s.max_tokens, rank=rank, world=world, unit=s.unit)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch; 0 without training data."""
        if self._steps is None:
            return 0
        self._steps.world = self.trainer.world_size if self.trainer else 1
        return len(self._steps.plan(0))
