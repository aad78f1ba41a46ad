"""The LightningModule of a student that learns labels and rationales as two prefixed tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics import SumMetric
from transformers import PreTrainedModel

from potstill.data.rationales.datamodule import TEST, VALID, RationaleBatch, RationaleStep
from potstill.data.rationales.rows import EXPLAIN, PREDICT
from potstill.data.rationales.sets import allowed_labels
from potstill.evaluation.step_by_step import StudentJudge, Written
from potstill.models.seq2seq import Seq2Seq
from potstill.objectives.task_prefix import TOTAL, TaskPrefixObjective
from potstill.training.student_module import MakeOptimizer, MakeSchedule, StudentModule

_LOGGED = {VALID: "val", TEST: "test"}


@dataclass(frozen=True)
class Decoding:
    """What a student writes where it is judged.

    Attributes:
        max_tokens: of an answer, its end token counted.
        rationales: rationales too, not only labels.
        restricted: choose the likeliest of each row's choices too.
    """

    max_tokens: int = 64
    rationales: bool = False
    restricted: bool = False


class TaskPrefix(StudentModule):
    """An encoder-decoder under a `TaskPrefixObjective` (Hsieh et al. 2023). One `training_step` is one optimizer step.

    Args:
        student: trained.
        objective: the weighted tasks.
        judges: of the parts that the data module has for evaluation.
        decoding: what is written there.
        optimizer: makes the optimizer of the student's parameters.
        schedule: makes the learning-rate schedule from the optimizer and the number of steps.
        clip: largest norm of the gradient; None for none.
    """

    ranks_run_alike = False  # rows differ in having a rationale, and answers in their length

    def __init__(
        self,
        student: PreTrainedModel,
        objective: TaskPrefixObjective,
        judges: Mapping[str, StudentJudge],
        decoding: Decoding,
        *,
        optimizer: MakeOptimizer | None = None,
        schedule: MakeSchedule | None = None,
        clip: float | None = None,
    ):
        super().__init__(student, None, objective, optimizer=optimizer, schedule=schedule, clip=clip)
        self.judges, self.decoding = dict(judges), decoding
        self.written = {part: Written() for part in self.judges}
        self._seq2seq = Seq2Seq(student)
        self._sums = {task: SumMetric() for task in (PREDICT, EXPLAIN)}
        self._tokens = {task: SumMetric() for task in (PREDICT, EXPLAIN)}
        # So that they move with the module, and are summed over ranks.
        self._registered = nn.ModuleList([*self._sums.values(), *self._tokens.values()])

    def training_step(self, batch: RationaleStep, batch_idx: int) -> None:
        """One optimizer step over all micro-batches of `batch`."""
        self.optimizer_step_over(batch, lambda micro: self.objective(self._seq2seq, micro, batch.targets))

    def on_validation_epoch_start(self) -> None:
        """Forget what an earlier pass wrote."""
        self._begin(VALID)

    def validation_step(self, batch: RationaleStep, batch_idx: int) -> None:
        """Losses of one batch, and what the student writes of it."""
        self._judge(VALID, batch)

    def on_validation_epoch_end(self) -> None:
        """Logs `val/loss_predict`, `val/loss_explain`, `val/loss_total`, `val/loss` and the judge's metrics."""
        self._end(VALID)

    def on_test_epoch_start(self) -> None:
        """Forget what an earlier pass wrote."""
        self._begin(TEST)

    def test_step(self, batch: RationaleStep, batch_idx: int) -> None:
        """As `validation_step`, of what is reported on."""
        self._judge(TEST, batch)

    def on_test_epoch_end(self) -> None:
        """Logs the same as validation, as `test/...`."""
        self._end(TEST)

    def _begin(self, part: str) -> None:
        self.written[part] = Written()
        for metric in (*self._sums.values(), *self._tokens.values()):
            metric.reset()
            metric.update(0.0)  # all ranks sum up all tasks together, also one whose rows have none of a task

    @torch.no_grad()
    def _judge(self, part: str, step: RationaleStep) -> None:
        for batch in step.micro:
            (inputs,) = self._seq2seq.embed([batch.input_ids])
            states_BLD = self._seq2seq.encode(inputs, batch.attention_mask)
            self._add_losses(batch, states_BLD)
            self._write(part, batch, states_BLD)

    def _add_losses(self, batch: RationaleBatch, states_BLD: Tensor) -> None:
        """Negative log-likelihoods of the targets; the means over a part are those of all its target tokens."""
        for task, target_BT in batch.targets.items():
            own = batch.rows_of(task)
            found_B = self._seq2seq.score(target_BT, states_BLD[own], batch.attention_mask[own])
            self._sums[task].update(-found_B.sum())
            self._tokens[task].update(target_BT.ge(0).sum())

    def _write(self, part: str, batch: RationaleBatch, states_BLD: Tensor) -> None:
        judge, written = self.judges[part], self.written[part]
        targets = {
            PREDICT: written.labels,
            **({EXPLAIN: written.rationales} if self.decoding.rationales else {}),
        }
        for task, texts in targets.items():
            if task not in batch.rows:
                continue
            own = batch.rows_of(task)
            tokens = self._seq2seq.write(states_BLD[own], batch.attention_mask[own], self.decoding.max_tokens)
            texts.update(zip(batch.rows[task].tolist(), judge.decode(tokens.tolist()), strict=True))
        if self.decoding.restricted and batch.choices is not None and batch.choice_rows is not None:
            # Those of prediction are the first, so that a place among them is one among all.
            scores_C = self._seq2seq.score(
                batch.choices, states_BLD[batch.choice_rows], batch.attention_mask[batch.choice_rows]
            )
            self._choose(judge, written, batch, scores_C)

    def _choose(self, judge: StudentJudge, written: Written, batch: RationaleBatch, scores_C: Tensor) -> None:
        """The likeliest choice of each row; of equals the first."""
        assert batch.choice_rows is not None
        own: dict[int, list[float]] = {}
        for place, score in zip(batch.choice_rows.tolist(), scores_C.tolist(), strict=True):
            own.setdefault(place, []).append(score)
        numbers = batch.rows[PREDICT].tolist()
        for place, scores in own.items():
            allowed = allowed_labels(judge.rows.choices[numbers[place]]) or []
            written.restricted[numbers[place]] = allowed[scores.index(max(scores))]

    def _end(self, part: str) -> None:
        sums = {task: float(metric.compute()) for task, metric in self._sums.items()}
        tokens = {task: float(metric.compute()) for task, metric in self._tokens.items()}
        if not any(tokens.values()):
            return
        if self.trainer.world_size > 1:
            self._gather(part)
        means = {task: sums[task] / count for task, count in tokens.items() if count}
        weights = {task: weight for task, weight in self.objective.weights.items() if task in means}
        logged = {f"loss_{task}": mean for task, mean in means.items()}
        logged["loss"] = sum(weight * means[task] for task, weight in weights.items())
        logged[f"loss_{TOTAL}"] = logged["loss"]
        logged |= self.judges[part].metrics(self.written[part])
        self.log_dict({f"{_LOGGED[part]}/{name}": value for name, value in logged.items()})
        if part == VALID and "accuracy" in logged:
            self.log("accuracy", logged["accuracy"], prog_bar=True, logger=False)

    def _gather(self, part: str) -> None:
        """Put together what all ranks wrote."""
        everything: list[Written | None] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(everything, self.written[part])
        for written in everything:
            if written is not None:
                self.written[part].add(written)
