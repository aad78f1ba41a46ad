"""The LightningModule of any pair of modules, whose features adaptors name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from potstill.data.custom import AdaptedStep
from potstill.objectives.custom import AdaptedObjective, agreeing, correct
from potstill.objectives.custom_features import AdaptedFeatures, Reader
from potstill.objectives.terms import TermSums
from potstill.training.student_module import MakeOptimizer, MakeSchedule, StudentModule


class AdaptedDistillation(StudentModule):
    """Any student, and any teacher, under an `AdaptedObjective`, on one device.

    One `training_step` is one optimizer step.

    Args:
        student: trained.
        teacher: frozen, in evaluation mode, absent from checkpoints; None where no term reads it.
        objective: the terms.
        read_student: runs the student and has its adaptor read it.
        read_teacher: the same for the teacher.
        optimizer: makes the optimizer of the student's parameters.
        schedule: makes the learning-rate schedule from the optimizer and the number of steps.
        clip: largest norm of the gradient; None for none.
        shares_every: optimizer steps between measurements of the terms' shares of the gradient; None for none.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        objective: AdaptedObjective,
        read_student: Reader,
        read_teacher: Reader,
        *,
        optimizer: MakeOptimizer | None = None,
        schedule: MakeSchedule | None = None,
        clip: float | None = None,
        shares_every: int | None = None,
    ):
        super().__init__(
            student,
            teacher,
            objective,
            optimizer=optimizer,
            schedule=schedule,
            clip=clip,
            shares_every=shares_every,
        )
        self._read_student, self._read_teacher = read_student, read_teacher
        self._sums: dict[str, list[float]] = {}

    def training_step(self, batch: AdaptedStep, batch_idx: int) -> None:
        """One optimizer step over all micro-batches of `batch`."""
        objective = self.objective.at(self.global_step)

        def share_of(terms: AdaptedObjective, numbered: tuple[Any, int]) -> TermSums:
            micro, size = numbered
            return terms(*self._features(micro), examples=batch.examples, own=size)

        numbered = AdaptedStep(list(zip(batch.micro, batch.sizes, strict=True)), batch.sizes, batch.seed)
        before = {name: buffer.clone() for name, buffer in self._measured_buffers()}
        self.measure_shares(numbered, objective, share_of)
        for name, buffer in self._measured_buffers():  # measuring must not move the statistics of norms
            buffer.copy_(before[name])
        self.optimizer_step_over(numbered, lambda micro: share_of(objective, micro))

    def _measured_buffers(self) -> list[tuple[str, torch.Tensor]]:
        measured = self.shares_every and self.global_step % self.shares_every == 0
        return list(self.student.named_buffers()) if measured else []

    def _features(self, micro: Any) -> tuple[AdaptedFeatures, AdaptedFeatures | None]:
        theirs = None
        if self.teacher is not None:
            with torch.no_grad():
                theirs = self._read_teacher(self.teacher, micro)
        return self._read_student(self.student, micro), theirs

    def on_validation_epoch_start(self) -> None:
        """Forget an earlier pass."""
        self._sums = {}

    def validation_step(self, batch: AdaptedStep, batch_idx: int) -> None:
        """Add up the loss and the predictions of one batch."""
        objective = self.objective.at(self.global_step)
        for micro, size in zip(batch.micro, batch.sizes, strict=True):
            ours, theirs = self._features(micro)
            self._add("loss", float(objective(ours, theirs, examples=1, own=size).loss), size)
            self._add("accuracy", *correct(ours))
            if theirs is not None:
                self._add("agreement", *agreeing(ours, theirs))

    def _add(self, name: str, total: float, count: int) -> None:
        kept = self._sums.setdefault(name, [0.0, 0.0])
        kept[0], kept[1] = kept[0] + total, kept[1] + count

    def on_validation_epoch_end(self) -> None:
        """Logs `val/loss`, the objective's mean over the examples; `val/accuracy`, where there are labels.

        With a teacher also `val/agreement`: the share of the predictions for which both say the same label.
        """
        means = {f"val/{name}": total / count for name, (total, count) in self._sums.items() if count}
        self.log_dict(means, batch_size=1)
        if "val/accuracy" in means:
            self.log("accuracy", means["val/accuracy"], prog_bar=True, logger=False, batch_size=1)
