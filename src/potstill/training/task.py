"""The LightningModule of a task model that learns from the labels of a benchmark, and from a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.data.tasks.datamodule import TaskBatch, TaskStep
from potstill.data.tasks.labels import REGRESSION, Task
from potstill.evaluation.evaluators import Judge, empty_of
from potstill.evaluation.metrics import Predictions
from potstill.interchange.agreement import AgreementMetric, class_agreement
from potstill.models.backbone import Backbone, backbone_of
from potstill.objectives.task import (
    Stored,
    TaskObjective,
    distributions_of,
    logits_of,
    predictions_of,
    reached_of,
)
from potstill.objectives.terms import TermSums
from potstill.training.student_module import MakeOptimizer, MakeSchedule, StudentModule


class Downstream(StudentModule):
    """A task model under a `TaskObjective`.

    One `training_step` is one optimizer step. Metrics are computed from the predictions of a whole evaluation set,
    gathered over all ranks.

    Args:
        student: has the task's head.
        teacher: has one too; frozen, in evaluation mode, absent from checkpoints; several as a list of modules; None
            where no term reads it.
        objective: the terms.
        task: says what is measured.
        judges: of the evaluation sets by name, in the order of their loaders; metrics of a set with a name end in it.
        optimizer: makes the optimizer of the student's parameters.
        schedule: makes the learning-rate schedule from the optimizer and the number of steps.
        clip: largest norm of the gradient; None for none.
        shares_every: optimizer steps between measurements of the terms' shares of the gradient; None for none.
        stored: logits of teachers that are not there, over the training rows.
    """

    student: PreTrainedModel

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | nn.ModuleList | None,
        objective: TaskObjective,
        task: Task,
        judges: Mapping[str, Judge],
        *,
        optimizer: MakeOptimizer | None = None,
        schedule: MakeSchedule | None = None,
        clip: float | None = None,
        shares_every: int | None = None,
        stored: Sequence[Stored] = (),
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
        self.task, self.judges, self._stored = task, dict(judges), tuple(stored)
        self._student_backbone = backbone_of(student)
        self._teacher_backbone: Backbone | list[Backbone] | None = None
        if isinstance(teacher, nn.ModuleList):
            self._teacher_backbone = [backbone_of(one) for one in teacher]  # type: ignore[arg-type]
        elif teacher is not None:
            self._teacher_backbone = backbone_of(teacher)
        # A score is no prediction that two models could share.
        comparable = teacher is not None and task.kind != REGRESSION
        self._exchange = objective.interchange if comparable else None
        self._agreement = AgreementMetric(self._exchange.mappings if self._exchange is not None else ())
        self._predictions = [Predictions() for _ in self.judges]
        self._registered = nn.ModuleList(self._predictions)  # so that they move with the module
        self.deployed: nn.Module | None = None  # answers in the student's place where it is judged

    def training_step(self, batch: TaskStep, batch_idx: int) -> None:
        """One optimizer step over all micro-batches of `batch`."""
        objective = self.objective.at(self.global_step)
        denominators = self.objective.denominators(batch)

        def share_of(terms: TaskObjective, micro: TaskBatch) -> TermSums:
            return terms(self._student_backbone, self._teacher_backbone, micro, denominators, self._stored)

        self.measure_shares(batch, objective, share_of)
        self.optimizer_step_over(batch, lambda micro: share_of(objective, micro))

    def validated_metrics(self) -> set[str]:
        """Names of what a validation logs, less those of interventions."""
        names = {name: judge.names for name, judge in self.judges.items()}
        return {f"val/{own}{f'_{name}' if name else ''}" for name, known in names.items() for own in known}

    def on_validation_epoch_start(self) -> None:
        """Forget the predictions of an earlier pass; a rank without a batch still has tensors of the right kind."""
        for predictions, judge in zip(self._predictions, self.judges.values(), strict=True):
            predictions.reset()
            predictions.update(*empty_of(judge, self.device))

    def validation_step(self, batch: TaskStep, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep the predictions of one batch."""
        judge = list(self.judges.values())[dataloader_idx]
        for micro in batch.micro:
            kept = judge.keep(self._logits(micro), micro)
            self._predictions[dataloader_idx].update(*kept)
            if dataloader_idx == 0:
                self._add_agreement(micro)

    def _logits(self, micro: TaskBatch) -> Tensor:
        if self.deployed is None:
            return logits_of(self._student_backbone, micro)
        return self.deployed(micro.input_ids, micro.attention_mask, micro.token_type_ids)

    def _add_agreement(self, micro: TaskBatch) -> None:
        if self._exchange is None or micro.swap is None:
            return
        assert isinstance(self._teacher_backbone, Backbone)
        reached, kind = reached_of(micro, self.task.kind), self.task.kind
        same_M, kl_M, count = class_agreement(
            self._teacher_backbone,
            self._student_backbone,
            micro.input_ids,
            micro.attention_mask,
            micro.token_type_ids,
            micro.swap,
            lambda backbone, last: distributions_of(kind, predictions_of(backbone, last, micro)[reached]),
            self._exchange.mappings,
            self._exchange.read_site,
        )
        self._agreement.update(same_M, kl_M, count)

    def predicted(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """What was predicted of a set in the last pass over it; see `Predictions.gathered`."""
        return self._predictions[list(self.judges).index(name)].gathered()

    def on_validation_epoch_end(self) -> None:
        """Logs `val/loss` and `val/<metric>` of the first set, `val/<metric>_<name>` of the others.

        With interventions also `val/interchange_agreement` (the share of the predictions that an intervention reaches
        for which both counterfactual ones are the same label) and `val/interchange_kl`, for each mapping and as
        their mean. A set without labels has predictions and no metrics.
        """
        agreement = self._agreement.compute() if self._exchange is not None else {}
        logged = {f"val/{name}": mean for name, mean in agreement.items()}
        self._agreement.reset()
        for name, judge in self.judges.items():
            predicted = self.predicted(name)
            if not len(predicted[0]) or not judge.labelled:
                continue
            end = f"_{name}" if name else ""
            metrics = judge.metrics(*predicted)
            logged |= {f"val/{metric}{end}": value for metric, value in metrics.items()}
        self.log_dict(logged)
        if (decides := f"val/{self.task.monitor}") in logged:
            self.log(self.task.monitor, logged[decides], prog_bar=True, logger=False)
