"""The LightningModule of a student that learns labels and rationales as two prefixed tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.data.rationales.datamodule import TEST, VALID, WATCHED, RationaleBatch, RationaleStep
from potstill.data.rationales.rows import EXPLAIN, PREDICT
from potstill.data.rationales.sets import allowed_labels
from potstill.evaluation.step_by_step import GeneratedTexts, RationaleEvaluator
from potstill.models.seq2seq import Seq2Seq
from potstill.objectives.task_prefix import TOTAL, TaskPrefixObjective
from potstill.training.means import Means
from potstill.training.student_module import Optimization, StudentModule

_LOGGED = {VALID: "val", TEST: "test", WATCHED: "watched"}


@dataclass(frozen=True)
class Decoding:
    """Texts that a student generates in its evaluation.

    Attributes:
        max_tokens: most tokens of an answer, with its end token.
        rationales: whether rationales are generated, in addition to labels.
        restricted: whether the most likely of each row's choices is determined, too.
    """

    max_tokens: int = 64
    rationales: bool = False
    restricted: bool = False


class TaskPrefix(StudentModule):
    """An encoder-decoder under a `TaskPrefixObjective` (Hsieh et al. 2023). One `training_step` is one optimizer step.

    Args:
        student: the student.
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
        self._seq2seq = Seq2Seq(student)
        self._means = {part: Means((PREDICT, EXPLAIN)) for part in self.evaluators}
        self._registered = nn.ModuleList(self._means.values())  # so that they move with the module
        self._validated = [
            part for part in (VALID, WATCHED) if part in self.evaluators
        ]  # in the order of their loaders

    def training_step(self, batch: RationaleStep, batch_idx: int) -> None:
        """One optimizer step over all micro-batches of `batch`."""
        self.optimizer_step_over(batch, lambda micro: self.objective(self._seq2seq, micro, batch.targets))

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
            (inputs,) = self._seq2seq.embed([batch.input_ids])
            states_BLD = self._seq2seq.encode(inputs, batch.attention_mask)
            self._add_losses(part, batch, states_BLD)
            self._write(part, batch, states_BLD)

    def _add_losses(self, part: str, batch: RationaleBatch, states_BLD: Tensor) -> None:
        """Add negative log-likelihoods; means are over all target tokens of a part."""
        for task, target_BT in batch.targets.items():
            own = batch.rows_of(task)
            found_B = self._seq2seq.score(target_BT, states_BLD[own], batch.attention_mask[own])
            self._means[part].update(task, -found_B.sum(), target_BT.ge(0).sum())

    def _write(self, part: str, batch: RationaleBatch, states_BLD: Tensor) -> None:
        evaluator, written = self.evaluators[part], self.written[part]
        targets = {PREDICT: written.labels, **({EXPLAIN: written.rationales} if self.decoding.rationales else {})}
        for task, texts in targets.items():
            if task not in batch.rows:
                continue
            own = batch.rows_of(task)
            tokens = self._seq2seq.write(states_BLD[own], batch.attention_mask[own], self.decoding.max_tokens)
            texts.update(zip(batch.rows[task].tolist(), evaluator.decode(tokens.tolist()), strict=True))
        if self.decoding.restricted and batch.choices is not None and batch.choice_rows is not None:
            # The rows of prediction come first, so their indices are valid among all rows.
            scores_C = self._seq2seq.score(
                batch.choices, states_BLD[batch.choice_rows], batch.attention_mask[batch.choice_rows]
            )
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
