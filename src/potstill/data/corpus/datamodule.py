"""The data module of language models: binarization, batches of like length, masking on the model's device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from potstill.data.batching import EpochPlan, derive_seed, micro_batches, plan_epoch
from potstill.data.corpus.masking import IGNORED, mask_tokens, next_tokens, token_weights
from potstill.data.corpus.store import Corpus
from potstill.data.corpus.tokenizers import Vocabulary
from potstill.errors import CheckpointError, DataError

EVALUATION = 2**32 - 1  # stands for the epoch where evaluation draws its masks: the same at every time


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


@dataclass
class MicroBatch:
    """Padded sequences and what is to be predicted.

    Attributes:
        input_ids: `(batch, length)`, masked where the objective masks.
        attention_mask: `(batch, length)` int64, 0 at padding.
        positions: `(n,)` indices of the real tokens into the flattened `(batch * length)`.
        labels: `(n,)` what is to be predicted at these, or -100.
    """

    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    labels: Tensor


@dataclass
class StepBatch:
    """All that one optimizer step reads on this rank.

    Attributes:
        micro: The micro-batches.
        tokens: Real tokens of the whole step, over all ranks.
        labelled: Positions with a label of the whole step, over all ranks.
        own_tokens: Real tokens of this rank's micro-batches.
        seed: Of everything random in this step.
    """

    micro: list[MicroBatch]
    tokens: int
    labelled: int
    own_tokens: int
    seed: int = field(default=0)


class CorpusDataModule(LightningDataModule):
    """Batches of a binarized corpus for a masked (`kind="masked"`) or a causal language model.

    One item of the loader is one optimizer step of all micro-batches; `on_after_batch_transfer` masks it as a whole
    on the device and cuts it. The position of a resumed run in its epoch follows from the number of steps done.
    """

    def __init__(
        self,
        train: Corpus | None,
        evaluation: Corpus | None,
        vocabulary: Vocabulary,
        kind: str,
        settings: BatchSettings,
    ):
        super().__init__()
        self.train, self.evaluation, self.vocabulary, self.kind = train, evaluation, vocabulary, kind
        self.settings = settings
        counts = (train or evaluation).token_counts  # type: ignore[union-attr]
        self._steps = _TrainSteps(train, settings) if train is not None else None
        self._weights = token_weights(counts, settings.mlm_smoothing, vocabulary.special_ids)
        self._alike = token_weights(counts, 0.0, vocabulary.special_ids)
        self._resumed_steps_an_epoch: int | None = None

    def train_dataloader(self) -> DataLoader:
        """Steps from the position that the trainer has reached."""
        assert self._steps is not None
        if self._resumed_steps_an_epoch not in (None, self.steps_an_epoch):
            raise CheckpointError(
                f"ckpt_path: the checkpoint's epochs have {self._resumed_steps_an_epoch} steps, this run's "
                f"{self.steps_an_epoch}; resume with the same data, data.batch_size, accumulation and devices"
            )
        return self._loader(self._steps, _StepSampler(self.steps_an_epoch, self._done))

    def val_dataloader(self) -> DataLoader | list:
        """Evaluation batches of like lengths, in an order that is the same every time."""
        if self.evaluation is None:
            return []
        steps = _EvalSteps(self.evaluation, self.settings)
        return self._loader(steps, list(range(len(steps.plan))))

    def _loader(self, steps: Dataset, sampler: Any) -> DataLoader:
        workers = self.settings.num_workers
        return DataLoader(
            steps,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=workers > 0,
        )

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> StepBatch:
        """Say what is to be predicted in the whole step, then cut this rank's micro-batches out of it."""
        ids, lengths = batch["ids"].long(), batch["lengths"].cpu().numpy()
        training = bool(batch["training"])
        ends = np.cumsum(lengths) - 1
        if self.kind == "causal":
            inputs, labels = ids, next_tokens(ids, torch.from_numpy(ends).to(ids.device))
            labelled = len(ids) - len(lengths)
        else:
            if training:
                generator = torch.Generator(ids.device).manual_seed(int(batch["seed"]))
                self._weights = self._weights.to(ids.device)
                inputs, labels = self._mask(ids, self._weights, generator)
            else:
                inputs, labels = self._mask_each(ids, lengths, batch["sequences"])
            labelled = int((labels != IGNORED).sum())
        cuts = self._cuts(lengths, training)
        starts = ends - lengths + 1
        micro = [
            pad(inputs, labels, lengths[cut], starts[cut], self.vocabulary.pad_id) for cut in cuts if len(cut)
        ]
        own = int(sum(lengths[cut].sum() for cut in cuts))
        return StepBatch(micro, len(ids), labelled, own, int(batch["seed"]))

    def _mask(self, ids: Tensor, weights: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        s, mask_id = self.settings, self.vocabulary.mask_id
        assert mask_id is not None
        return mask_tokens(
            ids, weights, share=s.mlm_share, replace=s.mlm_replace, mask_id=mask_id, generator=generator
        )

    def _mask_each(self, ids: Tensor, lengths: NDArray[np.int64], sequences: Tensor) -> tuple[Tensor, Tensor]:
        """Masks of evaluation: of each sequence by itself, on the CPU, all tokens alike.

        So a perplexity depends neither on the batch size, nor on the device, nor on the corpus that a model was
        trained on; smoothing by counts is a device of training.
        """
        masked = []
        for part, sequence in zip(ids.cpu().split(lengths.tolist()), sequences.tolist(), strict=True):
            seed = derive_seed(self.settings.seed, EVALUATION, sequence)
            masked.append(self._mask(part, self._alike, torch.Generator().manual_seed(seed)))
        inputs, labels = (torch.cat(parts).to(ids.device) for parts in zip(*masked, strict=True))
        return inputs, labels

    def _cuts(self, lengths: NDArray[np.int64], training: bool) -> list[NDArray[np.int64]]:
        trainer, s = self.trainer, self.settings
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if not training:
            return micro_batches(lengths, sequences=len(lengths), tokens=None, rank=rank, world=world)
        return micro_batches(lengths, sequences=s.batch_size, tokens=s.max_tokens, rank=rank, world=world)

    def state_dict(self) -> dict[str, int]:
        """How long an epoch is: enough to know that a resumed run counts steps alike."""
        return {"steps_an_epoch": self.steps_an_epoch}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
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


def pad(
    inputs: Tensor, labels: Tensor, lengths: NDArray[np.int64], starts: NDArray[np.int64], pad_id: int
) -> MicroBatch:
    """Cut sequences out of flat ids into a padded micro-batch.

    Args:
        inputs: `(tokens,)` ids of a whole step.
        labels: `(tokens,)`.
        lengths: `(batch,)` of the wanted sequences.
        starts: `(batch,)` where they start in `inputs`.
        pad_id: What fills up.
    """
    width = int(lengths.max()) if len(lengths) else 0
    columns = np.arange(width)
    real = columns < lengths[:, None]
    device = inputs.device
    source = torch.from_numpy((starts[:, None] + columns)[real]).to(device)
    positions = torch.from_numpy(np.flatnonzero(real)).to(device)
    input_ids = torch.full((len(lengths) * width,), pad_id, dtype=torch.long, device=device)
    input_ids[positions] = inputs[source]
    mask = torch.from_numpy(real.astype(np.int64)).to(device)
    return MicroBatch(input_ids.view(len(lengths), width), mask, positions, labels[source])


class _StepSampler(Sampler):
    """(epoch, step) pairs of one epoch, from where the steps already done lead to.

    They are asked for when iteration begins: Lightning may build the loader before it restores a checkpoint.
    """

    def __init__(self, steps: int, done: Callable[[], int]):
        self.steps, self.done = steps, done

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, start = divmod(self.done(), self.steps)
        for step in range(start, self.steps):
            yield epoch, step

    def __len__(self) -> int:
        return self.steps


def _item(corpus: Corpus, wanted: NDArray[np.int64], seed: int, training: bool) -> dict[str, Any]:
    ids, lengths = corpus.gather(wanted)
    return {
        "ids": torch.from_numpy(ids.astype(np.int32, copy=False)),
        "lengths": torch.from_numpy(lengths.astype(np.int64)),
        "sequences": torch.from_numpy(wanted.astype(np.int64)),
        "seed": seed,
        "training": training,
    }


class _TrainSteps(Dataset):
    def __init__(self, corpus: Corpus, settings: BatchSettings):
        self.corpus, self.settings, self.world = corpus, settings, 1
        self._planned: tuple[tuple[int, int], EpochPlan] | None = None

    def plan(self, epoch: int) -> EpochPlan:
        if self._planned is None or self._planned[0] != (epoch, self.world):
            s = self.settings
            times = s.accumulate * self.world
            plan = plan_epoch(
                self.corpus.lengths,
                seed=s.seed,
                epoch=epoch,
                sequences=s.batch_size * times,
                tokens=s.max_tokens * times if s.max_tokens else None,
                group_size=s.group_size,
                length_bin=s.length_bin,
            )
            if plan.bounds[-1] - plan.bounds[-2] < self.world:  # a rank would be left without a sequence
                plan = EpochPlan(plan.order, plan.bounds[:-1])
            if not len(plan):
                raise DataError(
                    f"trainer.devices={self.world}: {len(self.corpus)} sequences are too few to share; "
                    "use fewer devices or more text"
                )
            self._planned = ((epoch, self.world), plan)
        return self._planned[1]

    def __getitem__(self, at: tuple[int, int]) -> dict[str, Any]:
        epoch, step = at
        return _item(
            self.corpus,
            self.plan(epoch).step(step),
            derive_seed(self.settings.seed, epoch, step),
            training=True,
        )


class _EvalSteps(Dataset):
    def __init__(self, corpus: Corpus, settings: BatchSettings):
        self.corpus, self.settings = corpus, settings
        order = np.argsort(corpus.lengths, kind="stable")
        size = settings.eval_batch_size
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        # Of all lengths from the first batch on, so that a limited validation is a fair sample.
        shuffled = np.random.default_rng(derive_seed(settings.seed, EVALUATION, 0)).permutation(len(batches))
        self.plan = [batches[i] for i in shuffled]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _item(
            self.corpus, self.plan[index], derive_seed(self.settings.seed, EVALUATION, index), training=False
        )
