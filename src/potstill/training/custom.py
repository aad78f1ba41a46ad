"""The LightningModule of a user's own modules, whose features adaptors name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.data.custom import CustomStep
from potstill.objectives.custom import AdaptorReader, agreeing, correct
from potstill.objectives.task import TaskObjective
from potstill.objectives.terms import TermSums
from potstill.training.means import Means
from potstill.training.student_module import Optimization, StudentModule


class CustomDistillation(StudentModule):
    """Any student, and any teacher, under a `TaskObjective`, on one device.

    Args:
        student: reads the student.
        teacher: reads the teacher; None if no term reads it.
        objective: weighted terms.
        optimization: how the student is optimized.
    """

    def __init__(
        self,
        student: AdaptorReader,
        teacher: AdaptorReader | None,
        objective: TaskObjective,
        optimization: Optimization | None = None,
    ):
        super().__init__(student.model, None if teacher is None else teacher.model, objective, optimization)
        self._read_student, self._read_teachers = student, [] if teacher is None else [teacher]
        self._means = Means(("loss", "accuracy", "agreement"))

    def share_of(self, objective: TaskObjective, micro: Any, denominators: Mapping[str, float], task: str) -> TermSums:
        """See `StudentModule`."""
        return objective(self._read_student, self._read_teachers, micro, denominators)

    def on_validation_epoch_start(self) -> None:
        """Reset the means."""
        self._means.reset()

    def validation_step(self, batch: CustomStep, batch_idx: int) -> None:
        """Add the loss and the predictions of one batch."""
        objective = self.now(self.objective)
        for micro in batch.micro:
            ours, theirs = self._read_student(micro), [read(micro) for read in self._read_teachers]
            loss = objective.compared(ours, theirs, dict.fromkeys(objective.active, 1.0)).loss
            self._means.update("loss", loss, micro.examples)
            self._means.update("accuracy", *correct(ours.base[0]))
            for teacher in theirs:
                self._means.update("agreement", *agreeing(ours.base[0], teacher.base[0]))

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss`, the objective's mean over examples, and `val/accuracy` if there are labels.

        With a teacher also `val/agreement`: the share of the predictions on which both models agree.
        """
        means = {f"val/{name}": mean for name, mean in self._means.compute().items()}
        self.log_dict(means, batch_size=1)
        if "val/accuracy" in means:
            self.log("accuracy", means["val/accuracy"], prog_bar=True, logger=False, batch_size=1)
