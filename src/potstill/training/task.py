"""The LightningModule of task models that learn from the labels of benchmarks, and from teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.data.tasks.datamodule import TaskBatch, TaskStep
from potstill.data.tasks.labels import REGRESSION, Task
from potstill.data.tasks.splits import MAIN, MEAN
from potstill.evaluation.evaluators import Evaluator, empty_of
from potstill.evaluation.metrics import Predictions
from potstill.interchange.agreement import AgreementMetric, class_agreement
from potstill.interchange.intervene import Swap
from potstill.models.backbone import backbone_of
from potstill.objectives.interchange import Interchange
from potstill.objectives.task import (
    ModelReader,
    Reader,
    Stored,
    StoredReader,
    TaskObjective,
    distributions_of,
    logits_of,
    predictions_of,
    reached_of,
)
from potstill.objectives.terms import TermSums
from potstill.training.student_module import Optimization, StudentModule

ONLY = ""  # name of the task of a student that has no other


@dataclass(frozen=True)
class TaskPart:
    """One task of a student.

    Attributes:
        task: the task, with its labels.
        student: the student's model with the head of the task.
        objective: weighted terms.
        evaluators: evaluators of the evaluation sets by name, in the order of their loaders.
        teachers: models with the head of the task; frozen, in evaluation mode, absent from checkpoints.
        stored: stored logits of the teachers over the training rows, instead of `teachers`.
    """

    task: Task
    student: PreTrainedModel
    objective: TaskObjective
    evaluators: Mapping[str, Evaluator]
    teachers: Sequence[PreTrainedModel] = ()
    stored: Sequence[Stored] = ()


class Downstream(StudentModule):
    """A student of one task, or of several: one encoder, and for each task a head, teachers and an objective.

    A step is of one task; the heads of the others are not changed. Metrics are computed from the predictions of a whole
    evaluation set, gathered over all ranks.

    Args:
        student: the student: the model of the only part, or a module with the models of all parts.
        parts: tasks by name; `ONLY` for a single one. Metrics of a named task end in its name.
        optimization: how the student is optimized.
    """

    def __init__(self, student: nn.Module, parts: Mapping[str, TaskPart], optimization: Optimization | None = None):
        teachers = [teacher for part in parts.values() for teacher in part.teachers]
        objectives = {name: part.objective for name, part in parts.items()}
        super().__init__(student, nn.ModuleList(teachers) if teachers else None, objectives, optimization)
        self.parts = dict(parts)
        self._students = {
            name: ModelReader(
                backbone_of(part.student),
                part.task.kind,
                part.objective.interchange,
                every_token=part.objective.every_token,
            )
            for name, part in parts.items()
        }
        self._teachers = {name: _teachers_of(part) for name, part in parts.items()}
        # In the order of their loaders: tasks and names of the evaluation sets.
        self._sets = [(name, own) for name, part in parts.items() for own in part.evaluators]
        self._predictions = [Predictions() for _ in self._sets]
        self._registered = nn.ModuleList(self._predictions)  # so that they move with the module
        first = next(iter(parts.values()))
        # Agreement is that of discrete predictions, not of scores.
        comparable = len(parts) == 1 and first.teachers and first.task.kind != REGRESSION
        self._exchange = first.objective.interchange if comparable else None
        self._agreement = AgreementMetric(self._exchange.mappings if self._exchange is not None else ())
        self.deployed: nn.Module | None = None  # replaces the student in its evaluation

    @property
    def task(self) -> Task:
        """The first task."""
        return next(iter(self.parts.values())).task

    @property
    def evaluators(self) -> Mapping[str, Evaluator]:
        """The evaluators of the first task."""
        return next(iter(self.parts.values())).evaluators

    def share_of(
        self, objective: TaskObjective, micro: TaskBatch, denominators: Mapping[str, float], task: str
    ) -> TermSums:
        """See `StudentModule`."""
        return objective(self._students[task], self._teachers[task], micro, denominators)

    def validated_metrics(self) -> set[str]:
        """Names of the logged metrics, without those of interventions."""
        names = {f"val/{own}{_end(*place)}" for place in self._sets for own in self._evaluator(*place).names}
        return names if ONLY in self.parts else {*names, "val/loss", f"val/{MEAN}"}

    def on_validation_epoch_start(self) -> None:
        """Reset the predictions; a rank without a batch still has tensors of the right kind."""
        for predictions, place in zip(self._predictions, self._sets, strict=True):
            predictions.reset()
            predictions.update(*empty_of(self._evaluator(*place), self.device))

    def validation_step(self, batch: TaskStep, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep the predictions of one batch."""
        name, own = self._sets[dataloader_idx]
        for micro in batch.micro:
            kept = self._evaluator(name, own).keep(self._logits(name, micro), micro)
            self._predictions[dataloader_idx].update(*kept)
            if dataloader_idx == 0 and self._exchange is not None and micro.swap is not None:
                self._add_agreement(micro, self._exchange, micro.swap)

    def _logits(self, name: str, micro: TaskBatch) -> Tensor:
        if self.deployed is None:
            return logits_of(self._students[name].backbone, micro)
        return self.deployed(micro.input_ids, micro.attention_mask, micro.token_type_ids)

    def _add_agreement(self, micro: TaskBatch, exchange: Interchange, swap: Swap) -> None:
        kind, reached = self.task.kind, reached_of(micro, self.task.kind)
        ((student,), ((teacher,),)) = self._students.values(), self._teachers.values()
        assert isinstance(teacher, ModelReader)
        found = class_agreement(
            teacher.backbone,
            student.backbone,
            micro.input_ids,
            micro.attention_mask,
            micro.token_type_ids,
            swap,
            lambda backbone, last: distributions_of(kind, predictions_of(backbone, last, micro)[reached]),
            exchange.mappings,
            exchange.read_site,
        )
        self._agreement.update(found)

    def predicted(self, name: str, task: str = ONLY) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions of an evaluation set in the last pass over it; see `Predictions.gathered`."""
        return self._predictions[self._sets.index((task, name))].gathered()

    def on_validation_epoch_end(self) -> None:
        """Log `val/<metric>` of the main evaluation set, `val/<metric>_<name>` of the others.

        The names of several tasks are `val/<metric>_<task>` and `val/<metric>_<task>_<name>`; `val/loss` is then the
        mean of the tasks' losses, and `val/mean` that of their monitored metrics if all are best the same way.

        With interventions also `val/interchange_agreement` (the share of the predictions reached by an intervention on
        which the counterfactual predictions agree), `val/interchange_kl` and what else `AgreementMetric` has.
        A set without labels has predictions, but no metrics.
        """
        agreement = self._agreement.compute() if self._exchange is not None else {}
        self._agreement.reset()
        logged = {f"val/{name}": mean for name, mean in agreement.items()}
        main: dict[str, dict[str, float]] = {}
        for place, predictions in zip(self._sets, self._predictions, strict=True):
            predicted, evaluator = predictions.gathered(), self._evaluator(*place)
            if not len(predicted[0]) or not evaluator.labelled:
                continue
            metrics = evaluator.metrics(*predicted)
            logged |= {f"val/{metric}{_end(*place)}": value for metric, value in metrics.items()}
            if place[1] == MAIN:
                main[place[0]] = metrics
        shown = self.task.monitor
        if ONLY not in self.parts and len(main) == len(self.parts):
            shown = MEAN
            logged["val/loss"] = sum(metrics["loss"] for metrics in main.values()) / len(main)
            if len({part.task.mode for part in self.parts.values()}) == 1:
                monitored = [metrics[self.parts[name].task.monitor] for name, metrics in main.items()]
                logged[f"val/{MEAN}"] = sum(monitored) / len(monitored)
        self.log_dict(logged)
        if f"val/{shown}" in logged:
            self.log(shown, logged[f"val/{shown}"], prog_bar=True, logger=False)

    def _evaluator(self, task: str, name: str) -> Evaluator:
        return self.parts[task].evaluators[name]


def _teachers_of(part: TaskPart) -> list[Reader]:
    kind, exchange = part.task.kind, part.objective.interchange
    stored: list[Reader] = [StoredReader(stored, kind) for stored in part.stored]
    return stored or [
        ModelReader(backbone_of(teacher), kind, exchange, number, part.objective.every_token)
        for number, teacher in enumerate(part.teachers)
    ]


def _end(*names: str) -> str:
    return "".join(f"_{name}" for name in names if name)
