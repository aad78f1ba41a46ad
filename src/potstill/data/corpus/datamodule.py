"""The data module of language models: binarization, batches of like length, masking on the model's device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from potstill.data.batching import EpochPlan, StepSampler, derive_seed, micro_batches, plan_epoch
from potstill.data.corpus.masking import IGNORED, mask_tokens, next_tokens, token_weights
from potstill.data.corpus.store import Corpus
from potstill.data.corpus.tokenizers import Vocabulary
from potstill.data.exchange import (
    EVALUATION,
    Exchange,
    Neighbours,
    check_swappable,
    evaluation_exchange,
    training_exchange,
)
from potstill.errors import CheckpointError, DataError
from potstill.interchange.intervene import Swap
from potstill.interchange.plans import PAIR, PlanSettings


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

    @property
    def unit(self) -> int:
        """Sequences that stay together wherever a step is cut: sources in the batch come in pairs."""
        return PAIR if self.interchange is not None and self.interchange.pairing == "in_batch" else 1


@dataclass
class MicroBatch:
    """Padded sequences, what is to be predicted, and what is to be swapped.

    Attributes:
        input_ids: `(batch, length)`, masked where the objective masks.
        attention_mask: `(batch, length)` int64, 0 at padding.
        positions: `(n,)` indices of the real tokens into the flattened `(batch * length)`.
        labels: `(n,)` what is to be predicted at these, or -100.
        reached: `(n,)` whether an intervention can change the prediction there; None without interventions.
        swap: the positions that swap; None without interventions.
        sources: the sources, where they are not in this micro-batch.
    """

    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    labels: Tensor
    reached: Tensor | None = None
    swap: Swap | None = None
    sources: MicroBatch | None = None


@dataclass
class StepBatch:
    """All that one optimizer step reads on this rank.

    Attributes:
        micro: The micro-batches.
        tokens: Real tokens of the whole step, over all ranks; with crossway those of drawn sources too.
        labelled: Positions with a label, of the same tokens.
        seed: Of everything random in this step.
        reached: Positions that an intervention reaches, of the same tokens.
        reached_labelled: Those with a label.
    """

    micro: list[MicroBatch]
    tokens: int
    labelled: int
    seed: int = 0
    reached: int = 0
    reached_labelled: int = 0


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
        return self._loader(self._steps, StepSampler(self.steps_an_epoch, self._done))

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
        """Say what is to be predicted and swapped in the whole step, then cut this rank's micro-batches out of it."""
        ids, lengths = batch["ids"].long(), batch["lengths"].cpu().numpy()
        bases = int(batch["bases"])  # what follows them are sources
        training = bool(batch["training"])
        inputs, labels = self._predicted(ids, lengths, batch, training)
        exchange = self._exchange(lengths, batch, labels)
        reached = None if exchange is None else torch.from_numpy(exchange.reached).to(ids.device)
        starts = np.cumsum(lengths) - lengths

        def cut(rows: NDArray[np.int64]) -> MicroBatch:
            return pad(inputs, labels, lengths[rows], starts[rows], self.vocabulary.pad_id, reached)

        micro = []
        for rows in self._cuts(lengths[:bases], training):
            if not len(rows):
                continue
            part = cut(rows)
            if exchange is not None:
                part.sources = cut(rows + bases) if bases < len(lengths) else None
                source_width = None if part.sources is None else part.sources.input_ids.shape[1]
                part.swap = exchange.cut(rows, part.input_ids.shape[1], ids.device, source_width)
            micro.append(part)
        plan = self.settings.interchange
        both = plan is not None and plan.crossway  # drawn sources are bases too
        used = slice(None) if both else slice(int(lengths[:bases].sum()))
        labelled = labels[used] != IGNORED
        step = StepBatch(micro, len(labelled), int(labelled.sum()), int(batch["seed"]))
        if reached is not None:
            step.reached = int(reached[used].sum())
            step.reached_labelled = int((reached[used] & labelled).sum())
        return step

    def _exchange(self, lengths: NDArray[np.int64], batch: dict[str, Any], labels: Tensor) -> Exchange | None:
        plan, causal = self.settings.interchange, self.kind == "causal"
        if plan is None:
            return None
        masked = None
        if plan.positions == "masked":
            parts = np.split((labels != IGNORED).cpu().numpy(), np.cumsum(lengths)[:-1])
            masked = [np.flatnonzero(part) for part in parts]
        if batch["training"]:
            bases, seed = int(batch["bases"]), int(batch["seed"])
            return training_exchange(plan, lengths, bases, seed, causal=causal, masked=masked)
        sequences = batch["sequences"].cpu().numpy()
        return evaluation_exchange(plan, lengths, sequences, self.settings.seed, causal=causal, masked=masked)

    def _predicted(
        self, ids: Tensor, lengths: NDArray[np.int64], batch: dict[str, Any], training: bool
    ) -> tuple[Tensor, Tensor]:
        """Inputs and labels of all tokens."""
        if self.kind == "causal":
            return ids, next_tokens(ids, torch.from_numpy(np.cumsum(lengths) - 1).to(ids.device))
        if not training:
            return self._mask_each(ids, lengths, batch["sequences"])
        generator = torch.Generator(ids.device).manual_seed(int(batch["seed"]))
        self._weights = self._weights.to(ids.device)
        return self._mask(ids, self._weights, generator)

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
            unit = 1 if s.interchange is None else PAIR
            return micro_batches(
                lengths, sequences=len(lengths), tokens=None, rank=rank, world=world, unit=unit
            )
        return micro_batches(
            lengths, sequences=s.batch_size, tokens=s.max_tokens, rank=rank, world=world, unit=s.unit
        )

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
    inputs: Tensor,
    labels: Tensor,
    lengths: NDArray[np.int64],
    starts: NDArray[np.int64],
    pad_id: int,
    reached: Tensor | None = None,
) -> MicroBatch:
    """Cut sequences out of flat ids into a padded micro-batch.

    Args:
        inputs: `(tokens,)` ids of a whole step.
        labels: `(tokens,)`.
        lengths: `(batch,)` of the wanted sequences.
        starts: `(batch,)` where they start in `inputs`.
        pad_id: What fills up.
        reached: `(tokens,)` what an intervention can change, if there is one.
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
    return MicroBatch(
        input_ids.view(len(lengths), width),
        mask,
        positions,
        labels[source],
        None if reached is None else reached[source],
    )


def _item(
    corpus: Corpus, bases: NDArray[np.int64], sources: NDArray[np.int64], seed: int, training: bool
) -> dict[str, Any]:
    wanted = np.concatenate([bases, sources])
    ids, lengths = corpus.gather(wanted)
    return {
        "bases": len(bases),
        "ids": torch.from_numpy(ids.astype(np.int32, copy=False)),
        "lengths": torch.from_numpy(lengths.astype(np.int64)),
        "sequences": torch.from_numpy(wanted.astype(np.int64)),
        "seed": seed,
        "training": training,
    }


class _TrainSteps(Dataset):
    def __init__(self, corpus: Corpus, settings: BatchSettings):
        self.corpus, self.settings, self.world = corpus, settings, 1
        self.neighbours: Neighbours | None = None
        if settings.interchange is not None:
            check_swappable(settings.interchange, corpus.lengths)
            if settings.interchange.pairing == "dataset":
                self.neighbours = Neighbours(corpus.lengths, settings.seed)
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
                unit=s.unit,
            )
            # A rank would be left without a sequence, or a sequence without a source.
            if plan.bounds[-1] - plan.bounds[-2] < self.world * s.unit:
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
        bases = self.plan(epoch).step(step)
        seed = derive_seed(self.settings.seed, epoch, step)
        near = self.neighbours
        sources = bases[:0] if near is None else near.sources(bases, epoch, step)
        return _item(self.corpus, bases, sources, seed, training=True)


class _EvalSteps(Dataset):
    def __init__(self, corpus: Corpus, settings: BatchSettings):
        self.corpus, self.settings = corpus, settings
        order = np.argsort(corpus.lengths, kind="stable")
        size = settings.eval_batch_size
        if settings.interchange is not None:  # pairs of neighbours in length, whatever the batch size
            size = max(size - size % PAIR, PAIR)
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        # Of all lengths from the first batch on, so that a limited validation is a fair sample.
        shuffled = np.random.default_rng(derive_seed(settings.seed, EVALUATION, 0)).permutation(len(batches))
        self.plan = [batches[i] for i in shuffled]

    def __getitem__(self, index: int) -> dict[str, Any]:
        wanted = self.plan[index]
        seed = derive_seed(self.settings.seed, EVALUATION, index)
        return _item(self.corpus, wanted, wanted[:0], seed, training=False)
