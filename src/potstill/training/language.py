"""The LightningModule of a language model that learns, from a teacher or alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.data.corpus.datamodule import MicroBatch, StepBatch
from potstill.interchange.agreement import AgreementMetric, interchange_agreement
from potstill.models.backbone import backbone_of
from potstill.objectives.language import (
    LanguageObjective,
    Stored,
    label_nll,
    nll_by_sequence,
    nll_of_logits,
    reached_positions,
)
from potstill.objectives.terms import TermSums
from potstill.training.means import Means
from potstill.training.student_module import Optimization, StudentModule


class LanguageDistillation(StudentModule):
    """A teacher-student pair, or a single student, under a `LanguageObjective`.

    Args:
        student: the student.
        teacher: frozen, in evaluation mode, absent from checkpoints; None if no term reads it.
        objective: weighted terms.
        optimization: how the student is optimized.
        stored: stored outputs of the teacher on the training corpus, instead of `teacher`.
        stored_eval: stored outputs on the evaluation corpus.
    """

    student: PreTrainedModel

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        objective: LanguageObjective,
        optimization: Optimization | None = None,
        *,
        stored: Stored | None = None,
        stored_eval: Stored | None = None,
    ):
        super().__init__(student, teacher, objective, optimization)
        self._student_backbone = backbone_of(student)
        self._teacher_backbone = backbone_of(teacher) if teacher is not None else None
        self._stored, self._stored_eval = stored, stored_eval
        self._exchange = objective.interchange if teacher is not None else None
        self._agreement = AgreementMetric(self._exchange.mappings if self._exchange is not None else ())
        self._means = Means((*objective.active, objective.hard, "teacher"))
        self._teacher_perplexity: float | None = None
        self.deployed: nn.Module | None = None  # answers in the student's place where it is evaluated
        # Where it is a list, validation adds nats and labelled positions by sequence to it, and runs nothing else.
        self.sequences: list[tuple[Tensor, Tensor]] | None = None

    def share_of(
        self, objective: LanguageObjective, micro: MicroBatch, denominators: Mapping[str, float], task: str
    ) -> TermSums:
        """See `StudentModule`."""
        return objective(self._student_backbone, self._teacher_backbone, micro, denominators, self._stored)

    def on_validation_epoch_start(self) -> None:
        """Reset the means."""
        self._means.reset()
        self._agreement.start()

    def validation_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Add one batch to the means of every term and to the perplexities."""
        denominators = self.objective.denominators(batch)
        for micro in batch.micro:
            if self.sequences is not None:
                found = self._by_sequence(micro)
                self.sequences.append(found)
                self._add(self.objective.hard, found[0].sum() / max(batch.labelled, 1), batch.labelled)
                continue
            terms = self.objective(
                self._student_backbone, self._teacher_backbone, micro, denominators, self._stored_eval
            ).terms
            if self.objective.hard not in terms:
                terms[self.objective.hard] = label_nll(self._student_backbone, micro) / max(batch.labelled, 1)
            for name, value in terms.items():
                self._add(name, value, denominators.get(name, batch.labelled))
            # A perplexity of other tokens would compare with nothing.
            same = self._teacher_backbone is not None and micro.teacher is None
            if same and self._teacher_perplexity is None:
                assert self._teacher_backbone is not None
                nll = label_nll(self._teacher_backbone, micro) / max(batch.labelled, 1)
                self._add("teacher", nll, batch.labelled)
            self._add_agreement(micro)

    def _by_sequence(self, micro: MicroBatch) -> tuple[Tensor, Tensor]:
        if self.deployed is None:
            return nll_by_sequence(self._student_backbone, micro)
        return nll_of_logits(self.deployed(micro.input_ids, micro.attention_mask), micro)

    def _add_agreement(self, micro: MicroBatch) -> None:
        if self._exchange is None or micro.swap is None:
            return
        assert self._teacher_backbone is not None
        positions = reached_positions(micro, self.objective.positions)
        found = interchange_agreement(
            self._teacher_backbone,
            self._student_backbone,
            micro.input_ids,
            micro.attention_mask,
            micro.swap,
            positions,
            self._exchange.mappings,
            self._exchange.read_site,
        )
        self._agreement.update(found)

    def _add(self, name: str, share: Tensor, positions: float) -> None:
        """Add this rank's share of a batch's mean to the mean over all batches, weighted by the batch's positions."""
        self._means.update(name, share * positions, positions / self.trainer.world_size)

    def validated_metrics(self) -> set[str]:
        """Names of the logged metrics, without those of interventions."""
        teacher = {"val/teacher_perplexity"} if self.objective.needs_teacher else set()
        return {"val/loss", "val/perplexity", *(f"val/loss_{name}" for name in self.objective.active), *teacher}

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss`, `val/loss_<term>`, `val/perplexity`, and the teacher's perplexity, computed once.

        A teacher of another tokenizer has no perplexity that could be compared.

        With interventions also, for each mapping and as their mean, `val/interchange_agreement` (the share of the
        positions that an intervention reaches on which both counterfactual predictions are the same token) and
        `val/interchange_kl` (KL(teacher || student) there, in nats), and what else `AgreementMetric` has. What no rank
        has a position of is not logged.
        """
        means = self._means.compute()
        agreement = self._agreement.compute() if self._exchange is not None else {}
        if self.objective.hard not in means or self.trainer.sanity_checking:
            return
        weights = self.objective.weights
        active = [name for name in self.objective.active if name in means]
        logged = {f"val/loss_{name}": means[name] for name in active}
        logged["val/loss"] = sum(weights[name] * means[name] for name in active)
        logged["val/perplexity"] = _exp(means[self.objective.hard])
        logged |= {f"val/{name}": mean for name, mean in agreement.items()}
        if "teacher" in means:
            self._teacher_perplexity = _exp(means["teacher"])
        if self._teacher_perplexity is not None:
            logged["val/teacher_perplexity"] = self._teacher_perplexity
        self.log_dict(logged)
        self.log("ppl", logged["val/perplexity"], prog_bar=True, logger=False)


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf
