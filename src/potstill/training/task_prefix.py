"""The LightningModule of a student that learns labels and rationales, as two prefixed tasks or one target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.data.rationales.datamodule import TEST, VALID, WATCHED, RationaleBatch, RationaleStep
from potstill.data.rationales.rows import EXPLAIN, PREDICT
from potstill.data.rationales.sets import allowed_labels
from potstill.evaluation.step_by_step import GeneratedTexts, RationaleEvaluator
from potstill.models.decoder import writer_of
from potstill.objectives.task_prefix import TOTAL, TaskPrefixObjective
from potstill.training.means import Means
from potstill.training.student_module import Optimization, StudentModule

Split = Callable[[Sequence[int]], tuple[list[int], list[int]]]
_LOGGED = {VALID: "val", TEST: "test", WATCHED: "watched"}


@dataclass(frozen=True)
class Decoding:
    """Texts that a student generates in its evaluation.

    Attributes:
        max_tokens: most tokens of an answer, with its end token.
        rationales: whether rationales are generated, in addition to labels.
        restricted: whether the most likely of each row's choices is determined, too.
        separator: tokens between label and rationale in one target; empty if they are targets of their own.
        split: a generated target as label and rationale, without separator and end.
    """

    max_tokens: int = 64
    rationales: bool = False
    restricted: bool = False
    separator: tuple[int, ...] = ()
    split: Split = lambda ids: (list(ids), [])


class TaskPrefix(StudentModule):
    """A student that writes text, under a `TaskPrefixObjective`; one `training_step` is one optimizer step.

    Args:
        student: an encoder-decoder or a decoder-only model.
        objective: the weighted tasks.
        evaluators: evaluators of the parts that the data module has for evaluation.
        decoding: what the student generates in its evaluation.
        optimization: how the student is optimized.
    """

    ranks_run_alike = False  # rows differ in having a rationale, and answers in their length

    def __init__(
        self,
        student: PreTrainedModel,
        objective: TaskPrefixObjective,
        evaluators: Mapping[str, RationaleEvaluator],
        decoding: Decoding,
        optimization: Optimization | None = None,
    ):
        super().__init__(student, None, objective, optimization)
        self.evaluators, self.decoding = dict(evaluators), decoding
        self.written = {part: GeneratedTexts() for part in self.evaluators}
        self._writer = writer_of(student)
        self._means = {part: Means((PREDICT, EXPLAIN)) for part in self.evaluators}
        self._registered = nn.ModuleList(self._means.values())  # so that they move with the module
        self._validated = [
            part for part in (VALID, WATCHED) if part in self.evaluators
        ]  # in the order of their loaders

    def training_step(self, batch: RationaleStep, batch_idx: int) -> None:
        """One optimizer step over all micro-batches of `batch`."""
        self.optimizer_step_over(batch, lambda micro: self.objective(self._writer, micro, batch.targets))

    def on_validation_epoch_start(self) -> None:
        """Reset texts and losses."""
        for part in self._validated:
            self._begin(part)

    def validation_step(self, batch: RationaleStep, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Losses and generated texts of one batch."""
        self._evaluate_part(self._validated[dataloader_idx], batch)

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss_predict`, `val/loss_explain`, `val/loss_total`, `val/loss` and the evaluator's metrics.

        Those of test rows that are watched are `watched/...`.
        """
        for part in self._validated:
            self._end(part)

    def on_test_epoch_start(self) -> None:
        """Reset texts and losses."""
        self._begin(TEST)

    def test_step(self, batch: RationaleStep, batch_idx: int) -> None:
        """As `validation_step`, on the test set."""
        self._evaluate_part(TEST, batch)

    def on_test_epoch_end(self) -> None:
        """Log the metrics of `on_validation_epoch_end` as `test/...`."""
        self._end(TEST)

    def _begin(self, part: str) -> None:
        self.written[part] = GeneratedTexts()
        self._means[part].reset()

    @torch.no_grad()
    def _evaluate_part(self, part: str, step: RationaleStep) -> None:
        for batch in step.micro:
            context = self._writer.context(batch.input_ids, batch.attention_mask)
            self._add_losses(part, batch, context)
            self._write(part, batch, context)

    def _add_losses(self, part: str, batch: RationaleBatch, context: Any) -> None:
        """Add negative log-likelihoods; means are over all target tokens of a part."""
        for task, target_BT in batch.targets.items():
            found_B = self._writer.score(context, batch.rows_of(task), target_BT)
            self._means[part].update(task, -found_B.sum(), target_BT.ge(0).sum())

    def _write(self, part: str, batch: RationaleBatch, context: Any) -> None:
        evaluator, written, decoding = self.evaluators[part], self.written[part], self.decoding
        # One target is written as far as the rationale, which follows the label, unless it is evaluated too.
        stop = () if decoding.rationales else decoding.separator
        for task in (PREDICT, EXPLAIN) if decoding.rationales else (PREDICT,):
            if task not in batch.rows:
                continue
            tokens = self._writer.write(context, batch.rows_of(task), decoding.max_tokens, stop)
            firsts, seconds = zip(*map(decoding.split, tokens.tolist()), strict=True)
            numbers = batch.rows[task].tolist()
            texts = written.labels if task == PREDICT else written.rationales
            texts.update(zip(numbers, evaluator.decode(firsts), strict=True))
            if decoding.rationales and decoding.separator:
                written.rationales.update(zip(numbers, evaluator.decode(seconds), strict=True))
        if decoding.restricted and batch.choices is not None and batch.choice_rows is not None:
            # The rows of prediction come first, so their indices are valid among all rows.
            scores_C = self._writer.score(context, batch.choice_rows, batch.choices)
            self._choose(evaluator, written, batch, scores_C)

    def _choose(
        self, evaluator: RationaleEvaluator, written: GeneratedTexts, batch: RationaleBatch, scores_C: Tensor
    ) -> None:
        """The most likely choice of each row."""
        assert batch.choice_rows is not None
        own: dict[int, list[float]] = {}
        for place, score in zip(batch.choice_rows.tolist(), scores_C.tolist(), strict=True):
            own.setdefault(place, []).append(score)
        numbers = batch.rows[PREDICT].tolist()
        for place, scores in own.items():
            allowed = allowed_labels(evaluator.rows.choices[numbers[place]]) or []
            written.restricted[numbers[place]] = allowed[scores.index(max(scores))]

    def _end(self, part: str) -> None:
        means = self._means[part].compute()
        if not means:
            return
        if self.trainer.world_size > 1:
            self._gather(part)
        weights = {task: weight for task, weight in self.objective.weights.items() if task in means}
        logged = {f"loss_{task}": mean for task, mean in means.items()}
        logged["loss"] = sum(weight * means[task] for task, weight in weights.items())
        logged[f"loss_{TOTAL}"] = logged["loss"]
        logged |= self.evaluators[part].metrics(self.written[part])
        self.log_dict({f"{_LOGGED[part]}/{name}": value for name, value in logged.items()})
        if part == VALID and "accuracy" in logged:
            self.log("accuracy", logged["accuracy"], prog_bar=True, logger=False)

    def _gather(self, part: str) -> None:
        """Gather the texts of all ranks."""
        everything: list[GeneratedTexts | None] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(everything, self.written[part])
        for written in everything:
            if written is not None:
                self.written[part].add(written)
