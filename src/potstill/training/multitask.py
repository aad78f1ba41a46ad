"""The LightningModule of a student that learns several tasks, each from a teacher of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.data.tasks.datamodule import TaskBatch, TaskStep
from potstill.data.tasks.labels import Task
from potstill.data.tasks.splits import MEAN
from potstill.evaluation.evaluators import Judge, empty_of
from potstill.evaluation.metrics import Predictions
from potstill.models.backbone import backbone_of
from potstill.models.multitask import SharedStudent
from potstill.objectives.multitask import SharedObjective
from potstill.objectives.task import TaskObjective, logits_of
from potstill.objectives.terms import TermSums
from potstill.training.student_module import MakeOptimizer, MakeSchedule, StudentModule


@dataclass(frozen=True)
class Lane:
    """One of several tasks.

    Attributes:
        task: says what is measured.
        teacher: has its head; frozen.
        objective: its terms.
        judges: of its evaluation sets by name.
    """

    task: Task
    teacher: PreTrainedModel
    objective: TaskObjective
    judges: Mapping[str, Judge]


class SharedTasks(StudentModule):
    """A student of several tasks: an encoder, and for each task a head, a teacher and an objective.

    One `training_step` is one optimizer step, of one task; the heads of the others stay as they are.

    Args:
        student: a model a task.
        lanes: by the name of the task.
        optimizer: makes the optimizer of the student's parameters.
        schedule: makes the learning-rate schedule from the optimizer and the number of steps.
        clip: largest norm of the gradient; None for none.
        shares_every: optimizer steps between measurements of the terms' shares of the gradient; None for none.
    """

    student: SharedStudent

    def __init__(
        self,
        student: SharedStudent,
        lanes: Mapping[str, Lane],
        *,
        optimizer: MakeOptimizer | None = None,
        schedule: MakeSchedule | None = None,
        clip: float | None = None,
        shares_every: int | None = None,
    ):
        super().__init__(
            student,
            nn.ModuleDict({name: lane.teacher for name, lane in lanes.items()}),
            SharedObjective({name: lane.objective for name, lane in lanes.items()}),
            optimizer=optimizer,
            schedule=schedule,
            clip=clip,
            shares_every=shares_every,
        )
        self.lanes = dict(lanes)
        self._backbones = {
            name: (backbone_of(student.model(name)), backbone_of(lane.teacher))
            for name, lane in lanes.items()
        }
        # In the order of their loaders.
        self._sets = [(name, part) for name, lane in lanes.items() for part in lane.judges]
        self._predictions = [Predictions() for _ in self._sets]
        self._registered = nn.ModuleList(self._predictions)  # so that they move with the module

    def training_step(self, batch: TaskStep, batch_idx: int) -> None:
        """One optimizer step over all micro-batches of `batch`, which are of one task."""
        name = batch.task
        (student, teacher), whole = self._backbones[name], self.lanes[name].objective
        objective, denominators = whole.at(self.global_step), whole.denominators(batch)

        def share_of(terms: TaskObjective, micro: TaskBatch) -> TermSums:
            loss, values = terms(student, teacher, micro, denominators)
            return TermSums(loss, {f"{term}_{name}": value for term, value in values.items()})

        self.measure_shares(batch, objective, share_of, end=f"_{name}")
        self.optimizer_step_over(batch, lambda micro: share_of(objective, micro))

    def validated_metrics(self) -> set[str]:
        """Names of what a validation logs."""
        names = {"val/loss", f"val/{MEAN}"}
        for name, part in self._sets:
            end = f"_{name}_{part}" if part else f"_{name}"
            names |= {f"val/{own}{end}" for own in self._judge(name, part).names}
        return names

    def on_validation_epoch_start(self) -> None:
        """Forget the predictions of an earlier pass; a rank without a batch still has tensors of the right kind."""
        for predictions, place in zip(self._predictions, self._sets, strict=True):
            predictions.reset()
            predictions.update(*empty_of(self._judge(*place), self.device))

    def validation_step(self, batch: TaskStep, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep the predictions of one batch."""
        name, part = self._sets[dataloader_idx]
        judge = self._judge(name, part)
        for micro in batch.micro:
            kept = judge.keep(logits_of(self._backbones[name][0], micro), micro)
            self._predictions[dataloader_idx].update(*kept)

    def predicted(self, name: str, part: str) -> tuple[Tensor, Tensor, Tensor]:
        """What was predicted of a set of a task in the last pass over it; see `Predictions.gathered`."""
        return self._predictions[self._sets.index((name, part))].gathered()

    def on_validation_epoch_end(self) -> None:
        """Logs `val/<metric>_<task>` of each task's first set, `val/<metric>_<task>_<name>` of its others.

        Also `val/loss`, the mean of the tasks' losses, and, where all tasks' monitored metrics are best the same way,
        their mean as `val/mean`.
        """
        logged: dict[str, float] = {}
        losses, decisive = [], []
        for (name, part), predictions in zip(self._sets, self._predictions, strict=True):
            predicted = predictions.gathered()
            judge, task = self._judge(name, part), self.lanes[name].task
            if not len(predicted[0]):
                continue
            metrics = judge.metrics(*predicted)
            end = f"_{name}_{part}" if part else f"_{name}"
            logged |= {f"val/{metric}{end}": value for metric, value in metrics.items()}
            if not part:
                losses.append(metrics["loss"])
                decisive.append(metrics[task.monitor])
        if len(losses) == len(self.lanes):
            logged["val/loss"] = sum(losses) / len(losses)
            if len({lane.task.mode for lane in self.lanes.values()}) == 1:
                logged[f"val/{MEAN}"] = sum(decisive) / len(decisive)
                self.log(MEAN, logged[f"val/{MEAN}"], prog_bar=True, logger=False)
        self.log_dict(logged)

    def _judge(self, name: str, part: str) -> Judge:
        return self.lanes[name].judges[part]
