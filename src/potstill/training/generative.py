"""The LightningModule of a decoder that learns from completions which it writes itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from potstill.data.common.batching import IGNORED
from potstill.data.common.ragged import starts_of
from potstill.data.corpus.datamodule import MicroBatch, StepBatch, pad
from potstill.evaluation.generation import METRICS, Decode, GenerationEvaluator
from potstill.models.backbone import Backbone
from potstill.models.generation import Prompt, Sampling, Tokens, complete
from potstill.objectives.language import LanguageObjective
from potstill.objectives.terms import TermSums
from potstill.training.language import LanguageDistillation
from potstill.training.student_module import Optimization

LENGTH = "completion_tokens"  # metric: mean tokens of a completion
_POLICY, _ROW = 0, 1  # random streams of a step


@dataclass(frozen=True)
class Generation:
    """What a student writes.

    Attributes:
        sampling: of completions in training.
        tokens: of its tokenizer.
        decode: (tokens,) ids to a text without special tokens.
        on_policy: share of the steps whose completions are sampled.
        max_length: most tokens of a prompt with its completion.
        prompts: prompts of the sequences of the evaluation corpus, by their number.
        evaluator: evaluates completions of these.
        evaluates: whether validation writes and evaluates completions.
    """

    sampling: Sampling
    tokens: Tokens
    decode: Decode
    on_policy: float = 0.0
    max_length: int | None = None
    prompts: Callable[[int], Prompt] | None = None
    evaluator: GenerationEvaluator | None = None
    evaluates: bool = False


@dataclass
class _Sampled(MicroBatch):
    """Sampled completions: all terms but the one on the data's own tokens read them."""


@dataclass
class _Given(MicroBatch):
    """The given completions of a step that has sampled ones, too, for the term on the data's own tokens."""


class GenerativeDistillation(LanguageDistillation):
    """A decoder and its teacher on given completions and on those that the student samples.

    Whether a step has sampled completions is a function of its seed, and so are the random numbers of each of its
    sequences; both do not depend on how the step is cut. Source: Agarwal et al. 2024 (arXiv:2306.13649), algorithm 1.

    Args:
        student: the student.
        teacher: frozen, in evaluation mode, absent from checkpoints; None if no term reads it.
        objective: weighted terms, over completions.
        generation: what the student writes.
        optimization: how the student is optimized.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        objective: LanguageObjective,
        generation: Generation,
        optimization: Optimization | None = None,
    ):
        super().__init__(student, teacher, objective, optimization)
        self.generation = generation
        self.written: dict[int, str] = {}  # completions of the last validation, by the number of the sequence
        self._lengths: list[int] = []
        self._given: int | None = None  # labelled positions of the given completions, in a step with sampled ones

    def is_sampled(self, seed: int) -> bool:
        """Whether the completions of a step are sampled; `seed` is the step's."""
        return bool(np.random.default_rng([seed, _POLICY]).random() < self.generation.on_policy)

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """One optimizer step, on given completions or on sampled ones."""
        self._given = None
        if not self.is_sampled(batch.seed):
            return super().training_step(batch, batch_idx)
        sampled = self._sample(batch)
        super().training_step(batch, batch_idx)
        self.last_step[f"train/{LENGTH}"] = sampled
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log(f"train/{LENGTH}", sampled, on_step=True, on_epoch=False)
        return None

    def denominators_of(self, objective: LanguageObjective, batch: StepBatch) -> Mapping[str, Any]:
        """See `StudentModule`; in a step with sampled completions the hard term is a mean over the given ones."""
        found = dict(super().denominators_of(objective, batch))
        if self._given is not None and objective.hard in found:
            found[objective.hard] = float(max(self._given, 1))
        return found

    def share_of(
        self, objective: LanguageObjective, micro: MicroBatch, denominators: Mapping[str, float], task: str
    ) -> TermSums:
        """See `StudentModule`."""
        if isinstance(micro, _Sampled | _Given):
            given = isinstance(micro, _Given)
            kept = {name: w if (name == objective.hard) == given else 0.0 for name, w in objective.weights.items()}
            objective = replace(objective, weights=kept)
        return super().share_of(objective, micro, denominators, task)

    def _sample(self, batch: StepBatch) -> float:
        """Put sampled completions in the place of the given ones; returns their mean number of tokens."""
        given = list(batch.micro)
        batch.micro, sampled = sample(self._student_backbone, given, self.generation, batch.seed)
        lengths = torch.cat([part.attention_mask.sum(-1) for part in batch.micro])
        labelled = torch.stack([(part.labels != IGNORED).sum() for part in batch.micro]).sum()
        own = torch.tensor([sum(sampled), len(sampled)], device=self.device)
        counts = torch.cat([torch.stack([lengths.sum(), labelled, lengths.square().sum()]), own])
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(counts)
        self._given = batch.labelled
        batch.tokens, batch.labelled, batch.pairs, total, number = counts.tolist()
        if self.objective.weights.get(self.objective.hard):
            batch.micro += [_Given(**{own.name: getattr(part, own.name) for own in fields(part)}) for part in given]
        return float(total / max(number, 1))

    def on_validation_epoch_start(self) -> None:
        """Reset the means and the completions."""
        super().on_validation_epoch_start()
        self.written, self._lengths = {}, []

    def validation_step(self, batch: StepBatch, batch_idx: int) -> None:
        """See `LanguageDistillation`; completes the prompts greedily, too, if rows have answers."""
        super().validation_step(batch, batch_idx)
        evaluator = self.generation.evaluator
        if evaluator is None or not self.generation.evaluates or self.trainer.sanity_checking:
            return
        known = {*evaluator.numbers}
        for part in batch.micro:
            assert part.sequences is not None
            self.written |= self.write([number for number in part.sequences.tolist() if number in known])

    def write(self, numbers: Sequence[int]) -> dict[int, str]:
        """Greedy completions of sequences of the evaluation corpus."""
        own = self.generation
        assert own.prompts is not None
        greedy = replace(own.sampling, temperature=0.0)
        made = complete(
            self._student_backbone,
            [own.prompts(number) for number in numbers],
            greedy,
            own.tokens,
            max_length=own.max_length,
        )
        self._lengths += [len(ids) for ids in made]
        return {number: own.decode(ids).strip() for number, ids in zip(numbers, made, strict=True)}

    def validated_metrics(self) -> set[str]:
        """See `LanguageDistillation`."""
        written = {f"val/{name}" for name in (*METRICS, LENGTH)} if self.generation.evaluates else set()
        return super().validated_metrics() | written

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of `LanguageDistillation`, and `val/exact_match`, `val/rouge_l` of completions."""
        super().on_validation_epoch_end()
        if self.generation.evaluator is None or not self.generation.evaluates or self.trainer.sanity_checking:
            return
        if self.trainer.world_size > 1:
            everything: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(everything, (self.written, self._lengths))
            self.written = {number: text for written, _ in everything for number, text in written.items()}
            self._lengths = [length for _, lengths in everything for length in lengths]
        if not self.written:
            return
        found = self.generation.evaluator.metrics(self.written)
        found[LENGTH] = sum(self._lengths) / len(self._lengths)
        self.log_dict({f"val/{name}": value for name, value in found.items()})


def sample(
    student: Backbone, given: Sequence[MicroBatch], generation: Generation, seed: int
) -> tuple[list[MicroBatch], list[int]]:
    """The micro-batches of a step with completions that the student samples.

    A sequence whose last turn is cut off, or whose prompt leaves no position, keeps its completion.

    Args:
        student: in any mode, which stays.
        given: micro-batches with given completions.
        generation: what the student writes.
        seed: of the step.

    Returns:
        The same sequences in as many micro-batches, and the numbers of tokens of the sampled completions.
    """
    rows = [row for part in given for row in _rows_of(part)]
    wanted = [number for number, row in enumerate(rows) if row.prompt > 0]
    made = complete(
        student,
        [rows[number].ids[: rows[number].prompt] for number in wanted],
        generation.sampling,
        generation.tokens,
        seeds=[[seed, _ROW, rows[number].sequence] for number in wanted],
        max_length=generation.max_length,
    )
    for number, ids in zip(wanted, made, strict=True):
        if len(ids):
            rows[number] = rows[number].completed(ids)
    parts: list[MicroBatch] = []
    for part in given:
        own, rows = rows[: len(part.input_ids)], rows[len(part.input_ids) :]
        parts.append(_micro_batch(own, generation.tokens.pad, part.input_ids.device))
    return parts, [len(ids) for ids in made if len(ids)]


@dataclass(frozen=True)
class _Row:
    """A sequence of a micro-batch, on the CPU.

    Attributes:
        ids: (tokens,).
        labels: (tokens,) next tokens, or -100.
        sequence: its number in the corpus.
        prompt: tokens before its last turn; -1 where that is cut off.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    sequence: int
    prompt: int

    def completed(self, ids: NDArray[np.int64]) -> _Row:
        """The prompt with another completion."""
        whole = np.concatenate([self.ids[: self.prompt], ids])
        labels = np.append(whole[1:], IGNORED)
        labels[: self.prompt - 1] = IGNORED
        return replace(self, ids=whole, labels=labels)


def _rows_of(part: MicroBatch) -> list[_Row]:
    assert part.sequences is not None
    assert part.prompts is not None
    lengths = part.attention_mask.sum(-1).tolist()
    ids, labels = part.input_ids.cpu().numpy(), np.split(part.labels.cpu().numpy(), np.cumsum(lengths)[:-1])
    rows = zip(ids, labels, lengths, part.sequences.tolist(), part.prompts.tolist(), strict=True)
    return [_Row(own[:length], label, number, prompt) for own, label, length, number, prompt in rows]


def _micro_batch(rows: list[_Row], pad_id: int, device: torch.device) -> _Sampled:
    lengths = np.array([len(row.ids) for row in rows], np.int64)
    ids, labels = (np.concatenate(own) for own in ([row.ids for row in rows], [row.labels for row in rows]))
    made = pad(
        torch.from_numpy(ids).to(device), torch.from_numpy(labels).to(device), lengths, starts_of(lengths), pad_id
    )
    return _Sampled(made.input_ids, made.attention_mask, made.positions, made.labels)
