"""The data module of language models: batches of similar lengths, masking on the model's device."""

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
from potstill.data.common.ragged import flat_indices, padded_indices, starts_of
from potstill.data.common.steps import BatchSettings, StepDataModule, TrainSteps
from potstill.data.common.swaps import EVALUATION, Exchange, evaluation_exchange, training_exchange
from potstill.data.common.tokenizers import Vocabulary
from potstill.data.conversations.encoding import ConversationCorpus
from potstill.data.corpus.masking import mask_tokens, next_tokens, token_weights
from potstill.data.corpus.retokenise import Retokeniser
from potstill.data.corpus.store import Corpus
from potstill.data.corpus.teacher_rows import SequenceUnits, StepUnits, Units, by_length, run_steps
from potstill.interchange.intervene import Swap


@dataclass
class AlignedInputs:
    """The sequences of a micro-batch in the tokens of a teacher with another tokenizer.

    Attributes:
        input_ids: `(batch, length)` in the teacher's tokens.
        attention_mask: `(batch, length)` int64, 0 at padding.
        student_rows: `(n,)` indices of aligned positions in the micro-batch's flattened tokens.
        teacher_rows: `(n,)` indices of the same positions in these flattened tokens.
        swap: Always None.
        sources: Always None.
    """

    input_ids: Tensor
    attention_mask: Tensor
    student_rows: Tensor
    teacher_rows: Tensor
    swap: Swap | None = None
    sources: Any = None


@dataclass
class MicroBatch:
    """Padded sequences, labels and swaps.

    Attributes:
        input_ids: `(batch, length)`, masked for masked language models.
        attention_mask: `(batch, length)` int64, 0 at padding.
        positions: `(n,)` indices of the real tokens in the flattened `(batch * length)`.
        labels: `(n,)` labels of the real tokens, or -100.
        reached: `(n,)` whether an intervention can change the prediction; None without interventions.
        swap: Positions to swap; None without interventions.
        sources: Sources, if they are not in this micro-batch.
        units: `(n,)` items of these tokens in the cache of a teacher, on the CPU; None without a cache.
        teacher: The sequences in the teacher's tokens; None if it shares the tokenizer.
        sequences: `(batch,)` numbers of the sequences in their corpus; None outside of steps.
        prompts: `(batch,)` tokens before the last learned turn, -1 without one; None of other data than conversations.
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
    sequences: NDArray[np.int64] | None = None
    prompts: NDArray[np.int64] | None = None


@dataclass
class StepBatch:
    """One optimizer step of this rank.

    Counts are of the whole step over all ranks; with crossway they include drawn sources.

    Attributes:
        micro: Micro-batches.
        tokens: Real tokens.
        labelled: Positions with a label.
        seed: Seed of everything random in this step.
        reached: Positions that an intervention reaches.
        reached_labelled: Reached positions with a label.
        sequences: Sequences.
        pairs: Sum of their squared lengths.
        aligned: Positions aligned with a teacher of another tokenizer.
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

    `counts`, `(vocabulary,)` occurrences, replaces those of the corpus in masking. `on_after_batch_transfer` masks a
    step as a whole on the device, and cuts it.
    """

    def __init__(
        self,
        train: Corpus | ConversationCorpus | None,
        evaluation: Corpus | ConversationCorpus | None,
        vocabulary: Vocabulary,
        kind: str,
        settings: BatchSettings,
        retokenise: Retokeniser | None = None,
        counts: NDArray[np.int64] | None = None,
    ):
        cut = settings.interchange is not None and settings.interchange.pairing == "shuffled"
        super().__init__(_Items(train, retokenise, cut) if train is not None else None, settings)
        self.retokenise = retokenise
        self.train, self.evaluation, self.vocabulary, self.kind = train, evaluation, vocabulary, kind
        self.counts = counts  # None: those of the corpus
        if counts is None:
            counts = (train or evaluation).token_counts  # type: ignore[union-attr]
        self._weights = token_weights(counts, settings.mlm_smoothing, vocabulary.special_ids)
        self._alike = token_weights(counts, 0.0, vocabulary.special_ids)
        # Items of a cached teacher for training and for evaluation; None without a cache.
        self.train_units: Units | None = None
        self.eval_units: Units | None = None

    def val_dataloader(self) -> DataLoader | list:
        """Evaluation batches of similar lengths, in a fixed order."""
        return [] if self.evaluation is None else self.evaluation_loader(_Items(self.evaluation, self.retokenise))

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> StepBatch:
        """Mask the whole step and draw its swaps, then cut this rank's micro-batches."""
        ids, lengths = batch["ids"].long(), batch["lengths"].cpu().numpy()
        bases = int(batch["bases"])  # followed by sources
        training = bool(batch["training"])
        inputs, labels = self._predicted(ids, lengths, batch)
        exchange = self._exchange(lengths, batch, labels)
        reached = None if exchange is None else torch.from_numpy(exchange.reached).to(ids.device)
        starts = starts_of(lengths)
        units = self.train_units if training else self.eval_units
        first = None
        sequences = batch["sequences"].cpu().numpy()
        prompts = batch["prompts"].cpu().numpy() if "prompts" in batch else None
        if units is not None:
            at = (int(batch["epoch"]), int(batch["step"])) if training else (0, 0)
            first = units.starts(sequences, lengths, at)

        def cut(rows: NDArray[np.int64]) -> MicroBatch:
            part = pad(inputs, labels, lengths[rows], starts[rows], self.vocabulary.pad_id, reached)
            part.sequences, part.prompts = sequences[rows], None if prompts is None else prompts[rows]
            if first is not None:
                part.units = torch.from_numpy(flat_indices(first[rows], lengths[rows]))
            return part

        micro = []
        for rows in self.cuts(lengths[:bases], training):
            if not len(rows):
                continue
            part = cut(rows)
            if self.retokenise is not None:
                part.teacher = _aligned(batch["aligned"], rows, part.input_ids.shape[1], self.retokenise.teacher.pad_id)
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
        """Number the tokens as items of a teacher cache.

        Args:
            max_steps: Steps of the run, each with its own masks; 0 or less for no limit.
            max_epochs: Epochs of the run; None for no limit.
            world: Number of processes.
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
        """Steps covered by the cache of a masked language model; 0 for a causal one."""
        return self.train_units.covered if isinstance(self.train_units, StepUnits) else 0

    def unit_batches(self, training: bool, device: torch.device) -> Iterator[MicroBatch]:
        """Inputs of a cached teacher in the order of its items."""
        size = self.settings.eval_batch_size
        units = self.train_units if training else self.eval_units
        corpus = self.train if training else self.evaluation
        assert isinstance(units, StepUnits | SequenceUnits)
        assert corpus is not None
        if isinstance(units, StepUnits):
            items = units.items()
        else:
            parts = np.split(units.order, range(size, len(units.order), size))
            items = (_Items(corpus).item(part, part[:0], 0, training=False) for part in parts)
        for item in items:
            ids, lengths = item["ids"].long().to(device), item["lengths"].numpy()
            inputs, labels = self._predicted(ids, lengths, item)
            order, starts = by_length(lengths)[0], starts_of(lengths)
            for rows in np.split(order, range(size, len(order), size)):
                yield pad(inputs, labels, lengths[rows], starts[rows], self.vocabulary.pad_id)

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

    def _predicted(self, ids: Tensor, lengths: NDArray[np.int64], batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Inputs and labels of all tokens."""
        if self.kind == "causal":
            labels = next_tokens(ids, torch.from_numpy(np.cumsum(lengths) - 1).to(ids.device))
            if "learned" in batch:  # of the tokens; a label is of the next one
                labels.masked_fill_(~batch["learned"].roll(-1), IGNORED)
            return ids, labels
        if not batch["training"]:
            return self._mask_each(ids, lengths, batch["sequences"])
        generator = torch.Generator(ids.device).manual_seed(int(batch["seed"]))
        self._weights = self._weights.to(ids.device)
        return self._mask(ids, self._weights, generator)

    def _mask(self, ids: Tensor, weights: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        s, mask_id = self.settings, self.vocabulary.mask_id
        assert mask_id is not None
        return mask_tokens(ids, weights, share=s.mlm_share, replace=s.mlm_replace, mask_id=mask_id, generator=generator)

    def _mask_each(self, ids: Tensor, lengths: NDArray[np.int64], sequences: Tensor) -> tuple[Tensor, Tensor]:
        """Masks of evaluation: drawn per sequence, on the CPU, without smoothing by counts.

        So a perplexity does not depend on the batch size, the device or the training corpus.
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
    """Cut sequences from flat ids into a padded micro-batch.

    Args:
        inputs: `(tokens,)` ids of a whole step.
        labels: `(tokens,)` labels.
        lengths: `(batch,)` lengths of the sequences.
        starts: `(batch,)` their starts in `inputs`.
        pad_id: Padding id.
        reached: `(tokens,)` whether an intervention can change a token; None without interventions.
    """
    indices, real = padded_indices(starts, lengths)
    device = inputs.device
    source = torch.from_numpy(indices[real]).to(device)
    positions = torch.from_numpy(np.flatnonzero(real)).to(device)
    input_ids = torch.full((real.size,), pad_id, dtype=torch.long, device=device)
    input_ids[positions] = inputs[source]
    mask = torch.from_numpy(real.astype(np.int64)).to(device)
    return MicroBatch(
        input_ids.view(real.shape), mask, positions, labels[source], None if reached is None else reached[source]
    )


def _aligned(item: dict[str, Tensor], rows: NDArray[np.int64], width: int, pad_id: int) -> AlignedInputs:
    """Cut a teacher's inputs from flat ids.

    Args:
        item: `Aligned` sequences of a whole step.
        rows: `(batch,)` rows of the step in the micro-batch.
        width: Padded length of the student's tokens.
        pad_id: Padding id of the teacher.
    """
    ids, lengths = item["ids"].long(), item["lengths"].cpu().numpy()
    nothing = torch.zeros_like(ids)
    own = pad(ids, nothing, lengths[rows], starts_of(lengths)[rows], pad_id)
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
    """A corpus as `Sequences`.

    Args:
        corpus: Its sequences.
        retokenise: Encodes them for a teacher of another tokenizer.
        cut: Whether a source is cut to the length of its base, so that it is not padded further.
    """

    def __init__(self, corpus: Corpus | ConversationCorpus, retokenise: Retokeniser | None = None, cut: bool = False):
        self.corpus, self.retokenise, self.cut = corpus, retokenise, cut

    @property
    def lengths(self) -> NDArray[np.integer]:
        return self.corpus.lengths

    def item(self, bases: NDArray[np.int64], sources: NDArray[np.int64], seed: int, training: bool) -> dict[str, Any]:
        wanted = np.concatenate([bases, sources])
        ids, lengths = self.corpus.gather(wanted)
        further: dict[str, Any] = {}
        learned = self.corpus.learned(wanted) if isinstance(self.corpus, ConversationCorpus) else None
        if self.cut and len(sources):
            kept = np.minimum(lengths, np.tile(lengths[: len(bases)], 2))
            places, lengths = flat_indices(starts_of(lengths), kept), kept
            ids, learned = ids[places], None if learned is None else learned[places]
        if learned is not None:
            further["learned"] = torch.from_numpy(learned)
        if isinstance(self.corpus, ConversationCorpus):
            further["prompts"] = torch.from_numpy(self.corpus.prompts[wanted].astype(np.int64))
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
