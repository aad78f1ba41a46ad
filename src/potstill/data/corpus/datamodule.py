"""The data module of language models: binarization, batches of like length, masking on the model's device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from potstill.data.common.batching import IGNORED, derive_seed
from potstill.data.common.steps import BatchSettings, StepDataModule, TrainSteps
from potstill.data.common.swaps import EVALUATION, Exchange, evaluation_exchange, training_exchange
from potstill.data.common.tokenizers import Vocabulary
from potstill.data.corpus.masking import mask_tokens, next_tokens, token_weights
from potstill.data.corpus.retokenise import Retokeniser
from potstill.data.corpus.store import Corpus
from potstill.data.corpus.teacher_rows import (
    SequenceUnits,
    StepUnits,
    Units,
    by_length,
    run_steps,
    token_units,
)
from potstill.interchange.intervene import Swap


@dataclass
class AlignedInputs:
    """The sequences of a micro-batch as a teacher of another tokenizer reads them.

    Attributes:
        input_ids: `(batch, length)` in its own tokens.
        attention_mask: `(batch, length)` int64, 0 at padding.
        student_rows: `(n,)` indices into the micro-batch's flattened tokens, and
        teacher_rows: `(n,)` into the flattened ones of here, behind which both have read the same text.
        swap: nothing is swapped, and
        sources: there are none.
    """

    input_ids: Tensor
    attention_mask: Tensor
    student_rows: Tensor
    teacher_rows: Tensor
    swap: Swap | None = None
    sources: Any = None


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
        units: `(n,)` numbers of these tokens' outputs in the store of a teacher, on the CPU; None without a store.
        teacher: what a teacher of another tokenizer reads; None where it reads the same tokens.
    """

    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    labels: Tensor
    reached: Tensor | None = None
    swap: Swap | None = None
    sources: MicroBatch | None = None
    units: Tensor | None = None
    teacher: AlignedInputs | None = None


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
        sequences: Sequences of the whole step, over all ranks, with the same sources, and
        pairs: the sum of their squared lengths.
        aligned: Positions at which a teacher of another tokenizer has read the same text, over all ranks.
    """

    micro: list[MicroBatch]
    tokens: int
    labelled: int
    seed: int = 0
    reached: int = 0
    reached_labelled: int = 0
    sequences: int = 0
    pairs: int = 0
    aligned: int = 0


class CorpusDataModule(StepDataModule):
    """Batches of a binarized corpus for a masked (`kind="masked"`) or a causal language model.

    `on_after_batch_transfer` masks a step as a whole on the device, and cuts it.
    """

    def __init__(
        self,
        train: Corpus | None,
        evaluation: Corpus | None,
        vocabulary: Vocabulary,
        kind: str,
        settings: BatchSettings,
        retokenise: Retokeniser | None = None,
    ):
        super().__init__(_Items(train, retokenise) if train is not None else None, settings)
        self.retokenise = retokenise
        self.train, self.evaluation, self.vocabulary, self.kind = train, evaluation, vocabulary, kind
        counts = (train or evaluation).token_counts  # type: ignore[union-attr]
        self._weights = token_weights(counts, settings.mlm_smoothing, vocabulary.special_ids)
        self._alike = token_weights(counts, 0.0, vocabulary.special_ids)
        # Where a stored teacher's outputs of training and of evaluation are; None without a store.
        self.train_units: Units | None = None
        self.eval_units: Units | None = None

    def val_dataloader(self) -> DataLoader | list:
        """Evaluation batches of like lengths, in an order that is the same every time."""
        return (
            []
            if self.evaluation is None
            else self.evaluation_loader(_Items(self.evaluation, self.retokenise))
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
        units = self.train_units if training else self.eval_units
        first = None
        if units is not None:
            at = (int(batch["epoch"]), int(batch["step"])) if training else (0, 0)
            first = units.starts(batch["sequences"].cpu().numpy(), lengths, at)

        def cut(rows: NDArray[np.int64]) -> MicroBatch:
            part = pad(inputs, labels, lengths[rows], starts[rows], self.vocabulary.pad_id, reached)
            if first is not None:
                part.units = torch.from_numpy(token_units(first[rows], lengths[rows]))
            return part

        micro = []
        for rows in self.cuts(lengths[:bases], training):
            if not len(rows):
                continue
            part = cut(rows)
            if self.retokenise is not None:
                part.teacher = _aligned(
                    batch["aligned"], rows, part.input_ids.shape[1], self.retokenise.teacher.pad_id
                )
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
        counted = lengths if both else lengths[:bases]
        step.sequences, step.pairs = len(counted), int(np.square(counted.astype(np.int64)).sum())
        if self.retokenise is not None:
            step.aligned = len(batch["aligned"]["row"])
        if reached is not None:
            step.reached = int(reached[used].sum())
            step.reached_labelled = int((reached[used] & labelled).sum())
        return step

    def count_units(self, max_steps: int, max_epochs: int | None, world: int) -> None:
        """Say where a stored teacher's outputs are, from now on.

        Args:
            max_steps: of the run; masks of a masked language model are another in each step. 0 or less: no bound.
            max_epochs: likewise; None: no bound.
            world: number of processes.
        """
        if self.train is not None and self.kind == "causal":
            self.train_units = SequenceUnits(self.train.lengths)
        elif self.train is not None:
            planned = TrainSteps(_Items(self.train), self.settings)
            planned.world = world
            steps = run_steps(len(planned.plan(0)), max_steps=max_steps, max_epochs=max_epochs)
            self.train_units = StepUnits(planned, steps)
        self.eval_units = None if self.evaluation is None else SequenceUnits(self.evaluation.lengths)

    @property
    def covered_steps(self) -> int:
        """Steps that a store of masked training covers; 0 where it holds what is the same in all of them."""
        return self.train_units.covered if isinstance(self.train_units, StepUnits) else 0

    def unit_batches(self, training: bool, device: torch.device) -> Iterator[MicroBatch]:
        """What a teacher reads whose outputs are stored: all that has units, in their order, on a device."""
        size = self.settings.eval_batch_size
        units = self.train_units if training else self.eval_units
        if isinstance(units, StepUnits):
            for item in units.items():
                ids, lengths = item["ids"].long().to(device), item["lengths"].numpy()
                inputs, labels = self._predicted(ids, lengths, item, training=True)
                order, starts = by_length(lengths)[0], np.cumsum(lengths) - lengths
                for rows in np.split(order, range(size, len(order), size)):
                    yield pad(inputs, labels, lengths[rows], starts[rows], self.vocabulary.pad_id)
            return
        corpus = self.train if training else self.evaluation
        assert isinstance(units, SequenceUnits)
        assert corpus is not None
        for sequences in np.split(units.order, range(size, len(units.order), size)):
            found, lengths = corpus.gather(sequences)
            ids, lengths = torch.from_numpy(found).long().to(device), lengths.astype(np.int64)
            read = {"sequences": torch.from_numpy(sequences)}
            inputs, labels = self._predicted(ids, lengths, read, training=False)
            starts = np.cumsum(lengths) - lengths
            yield pad(inputs, labels, lengths, starts, self.vocabulary.pad_id)

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


def _aligned(item: dict[str, Tensor], rows: NDArray[np.int64], width: int, pad_id: int) -> AlignedInputs:
    """Cut what a teacher reads out of flat ids.

    Args:
        item: `ids` and `lengths` of a whole step in the teacher's tokens; `row`, `student` and `teacher` of each
            aligned position.
        rows: `(batch,)` the step's rows in the micro-batch.
        width: that the student's tokens are padded to.
        pad_id: what fills up.
    """
    ids, lengths = item["ids"].long(), item["lengths"].cpu().numpy()
    nothing = torch.zeros_like(ids)
    own = pad(ids, nothing, lengths[rows], (np.cumsum(lengths) - lengths)[rows], pad_id)
    place = np.full(len(lengths), -1)
    place[rows] = np.arange(len(rows))
    at = torch.from_numpy(place).to(ids.device)[item["row"]]
    mine = at >= 0
    at = at[mine]
    return AlignedInputs(
        own.input_ids,
        own.attention_mask,
        at * width + item["student"][mine],
        at * own.input_ids.shape[1] + item["teacher"][mine],
    )


class _Items:
    """A corpus as sequences to be put into steps."""

    def __init__(self, corpus: Corpus, retokenise: Retokeniser | None = None):
        self.corpus, self.retokenise = corpus, retokenise

    @property
    def lengths(self) -> NDArray[np.integer]:
        return self.corpus.lengths

    def item(
        self, bases: NDArray[np.int64], sources: NDArray[np.int64], seed: int, training: bool
    ) -> dict[str, Any]:
        wanted = np.concatenate([bases, sources])
        ids, lengths = self.corpus.gather(wanted)
        further: dict[str, Any] = {}
        if self.retokenise is not None:
            aligned = self.retokenise(np.split(ids, np.cumsum(lengths)[:-1]))
            further["aligned"] = {name: torch.from_numpy(own) for name, own in aligned._asdict().items()}
        return {
            **further,
            "bases": len(bases),
            "ids": torch.from_numpy(ids.astype(np.int32, copy=False)),
            "lengths": torch.from_numpy(lengths.astype(np.int64)),
            "sequences": torch.from_numpy(wanted.astype(np.int64)),
            "seed": seed,
            "training": training,
        }
