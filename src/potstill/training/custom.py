"""The LightningModule of a user's own modules, whose features adaptors name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from potstill.data.custom import CustomStep
from potstill.errors import ConfigError
from potstill.objectives.custom import (
    SOFT_LOGITS,
    AdaptorReader,
    StoredTeacher,
    agreeing,
    correct,
    counts_examples,
    unequal_logits,
    units_of,
)
from potstill.objectives.features import Features
from potstill.objectives.task import Observed, TaskObjective
from potstill.objectives.terms import LABEL, TermSums
from potstill.training.means import Means
from potstill.training.student_module import Optimization, StudentModule


class CustomDistillation(StudentModule):
    """Any student, and any teachers, under a `TaskObjective`.

    A term is a mean over the positions, or predictions, of the whole step that the adaptors' masks select. Their number
    is only known after a run of the student, so a step of several micro-batches begins with a run of the student over
    all of them without gradient, if a term depends on it.

    Args:
        student: reads the student.
        teachers: read the teachers; none if no term reads them, or if they are stored.
        objective: weighted terms.
        optimization: how the student is optimized.
        features: features of the student on one batch: how many tensors of logits it has, and whether all terms are
            means over examples.
        stored: stored teachers, of the training data alone: validation computes no term that compares with them.
    """

    def __init__(
        self,
        student: AdaptorReader,
        teachers: Sequence[AdaptorReader],
        objective: TaskObjective,
        optimization: Optimization | None = None,
        *,
        features: Features,
        stored: Sequence[StoredTeacher] = (),
    ):
        models = nn.ModuleList(teacher.model for teacher in teachers) if teachers else None
        super().__init__(student.model, models, objective, optimization)
        self._read_student, self._read_teachers, self._stored = student, list(teachers), list(stored)
        self._teacher_keys = [own.key for own in stored or teachers]
        self._heads = {term: max(len(features.logits), 1) for term in objective.active}
        self._by_example = counts_examples(objective, features)
        self._means = Means(
            ("accuracy", "agreement", *(name for term in objective.active for name in self._names(term)))
        )

    def denominators_of(self, objective: TaskObjective, batch: CustomStep) -> Mapping[str, Any]:
        """Units of each term in the whole step; {} if they are those of the only micro-batch of each process."""
        if self._by_example:
            return dict.fromkeys(objective.active, float(max(batch.examples, 1)))
        if batch.batches == self.trainer.world_size:
            return {}
        mode = self.student.training
        self.student.eval()
        with torch.no_grad():
            parts = [units_of(objective, self._read_student(micro).base[0], micro.examples) for micro in batch.micro]
        self.student.train(mode)
        return self._of_all({term: torch.stack([part[term] for part in parts]).sum(0) for term in parts[0]})

    def share_of(self, objective: TaskObjective, micro: Any, denominators: Mapping[str, Any], task: str) -> TermSums:
        """See `StudentModule`."""
        ours, theirs = objective.observed(self._read_student, self._read_teachers, micro)
        if self._stored and objective.needs_teacher:
            theirs = [own(ours.base[0]) for own in self._stored]
        self._check(objective, ours, theirs)
        units = denominators or self._of_all(units_of(objective, ours.base[0], micro.examples))
        return objective.compared(ours, theirs, units)

    def _of_all(self, units: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums over all processes, at least 1."""
        if self.trainer.world_size > 1:
            flat = torch.cat([own.reshape(-1).to(self.device) for own in units.values()])
            torch.distributed.all_reduce(flat)
            parts = flat.split([own.numel() for own in units.values()])
            units = {term: part.reshape(own.shape) for (term, own), part in zip(units.items(), parts, strict=True)}
        return {term: own.clamp(min=1) for term, own in units.items()}

    def _check(self, objective: TaskObjective, student: Observed, teachers: Sequence[Observed]) -> None:
        """Compare the shapes of the logits, which masks decide from batch to batch.

        Raises:
            ConfigError: they differ.
        """
        if not any(term in objective.active for term in SOFT_LOGITS):
            return
        for number, teacher in enumerate(teachers):
            if problem := unequal_logits(student.base[0], teacher.base[0]):
                raise ConfigError(f"{self._teacher_keys[number]}: {problem}")

    def on_validation_epoch_start(self) -> None:
        """Reset the means."""
        self._means.reset()

    def validation_step(self, batch: CustomStep, batch_idx: int) -> None:
        """Add the terms and the predictions of one batch; with stored teachers only the term on labels."""
        objective = self.now(self.objective)
        if self._stored:
            objective = replace(objective, weights={LABEL: objective.weights.get(LABEL, 0.0)})
        for micro in batch.micro:
            ours, theirs = self._read_student(micro), [read(micro) for read in self._read_teachers]
            self._check(objective, ours, theirs)
            units = units_of(objective, ours.base[0], micro.examples)
            for term, total in objective.totals(ours, theirs).items():
                parts = zip(self._names(term), total.reshape(-1), units[term].reshape(-1), strict=False)
                for name, own, count in parts:
                    self._means.update(name, own, count)
            self._means.update("accuracy", *correct(ours.base[0]))
            for teacher in theirs:
                self._means.update("agreement", *agreeing(ours.base[0], teacher.base[0]))

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss`, the weighted terms over the whole set, and `val/accuracy` if there are labels.

        With a teacher also `val/agreement`: the share of the predictions on which both models agree; of several
        teachers their mean.
        """
        means = self._means.compute()
        logged = {f"val/{name}": means[name] for name in ("accuracy", "agreement") if name in means}
        weights = self.now(self.objective).weights
        parts = [weights[term] * means[name] for term in self._heads for name in self._names(term) if name in means]
        if parts:
            logged["val/loss"] = sum(parts)
        self.log_dict(logged, batch_size=1)
        if "val/accuracy" in logged:
            self.log("accuracy", logged["val/accuracy"], prog_bar=True, logger=False, batch_size=1)

    def _names(self, term: str) -> list[str]:
        """The means of a term by head, those of a term without heads in the first."""
        return [f"{term}/{head}" for head in range(self._heads[term])]
