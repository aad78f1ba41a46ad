"""The LightningModule of a sentence encoder that follows a teacher's vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from potstill.data.corpus.sentence_steps import SentenceBatch, SentenceStep
from potstill.evaluation.encoders import EncoderBenchmark
from potstill.models.sentence import SentenceEncoder
from potstill.models.sentence_folders import SentenceSettings
from potstill.objectives.embedding import MARGIN, EmbeddingObjective, Pair
from potstill.objectives.terms import TermSums
from potstill.training.means import Means
from potstill.training.student_module import Optimization, StudentModule

COSINE = "val/cosine"  # metric: mean cosine of the vectors of student and teacher


class EmbeddingDistillation(StudentModule):
    """A sentence encoder and its teacher under an `EmbeddingObjective`.

    Terms over all texts of a step need their vectors before its micro-batches run: if a step has several, or several
    processes share it, a first pass without gradient makes them, with the same dropout. Every micro-batch then
    computes the whole term with its own vectors alive, so its gradient is that of the step however it is cut. Source:
    Gao et al. 2021 (GradCache, arXiv:2101.06983), section 3.

    Args:
        student: the student, with its linear layer, if any.
        settings: how it makes a vector.
        teacher: frozen, in evaluation mode, absent from checkpoints; None where no term reads it, or where the batches
            have its vectors.
        teacher_settings: how the teacher makes a vector; None without a teacher.
        objective: weighted terms.
        optimization: how the student is optimized.
        watched: benchmark of the validation, in the student's tokens; None for none.
        teacher_watched: the same in the teacher's tokens.
        width: of the teacher's vectors where the batches have them.
    """

    student: PreTrainedModel

    def __init__(
        self,
        student: PreTrainedModel,
        settings: SentenceSettings,
        teacher: PreTrainedModel | None,
        teacher_settings: SentenceSettings | None,
        objective: EmbeddingObjective,
        optimization: Optimization | None = None,
        *,
        watched: EncoderBenchmark | None = None,
        teacher_watched: EncoderBenchmark | None = None,
        width: int | None = None,
    ):
        super().__init__(student, teacher, objective, optimization)
        self.settings = settings
        self._encoder = SentenceEncoder(student, settings)
        self._teacher_encoder, self._evaluated, self._teacher_width = None, objective, width
        if teacher is not None and teacher_settings is not None:
            self._teacher_encoder = SentenceEncoder(teacher, teacher_settings)
            self._teacher_width = self._teacher_encoder.width
        if self._teacher_width is not None:
            cosine = objective.weights.get("cos") or 1.0
            self._evaluated = replace(objective, weights={**objective.weights, "cos": cosine})
        self._means = Means(self._evaluated.active)
        self._vectors: Pair | None = None
        self._watched, self._teacher_watched = watched, teacher_watched
        self._teacher_metrics: dict[str, float] | None = None

    def training_step(self, batch: SentenceStep, batch_idx: int) -> None:
        """One optimizer step over all micro-batches of `batch`."""
        torch.manual_seed(batch.seed + self.global_rank)  # the dropout of the step itself
        self._vectors = self._whole(batch)
        super().training_step(batch, batch_idx)

    def share_of(
        self, objective: EmbeddingObjective, micro: SentenceBatch, denominators: Mapping[str, float], task: str
    ) -> TermSums:
        """See `StudentModule`."""
        return objective(self._encoder, self._teacher_encoder, micro, denominators, self._vectors)

    @torch.no_grad()
    def _whole(self, batch: SentenceStep) -> Pair | None:
        """The vectors of all texts of a step, on all ranks; None if no term reads them, or one micro-batch has all."""
        world = self.trainer.world_size
        if not self.objective.is_relational or (world == 1 and len(batch.micro) == 1):
            return None
        texts = batch.sequences
        ours = torch.zeros(texts, self._encoder.width, device=self.device)
        theirs = None if self._width is None else torch.zeros(texts, self._width, device=self.device)
        for group in (group for micro in batch.micro for group in micro.groups):
            ours[group.places] = self._encoder(group.input_ids, group.attention_mask).to(ours)
            targets = self.objective.target_vectors(self._teacher_encoder, group)
            if theirs is not None and targets is not None:
                theirs[group.places] = targets.to(theirs)
        if world > 1:  # each text is at one rank, the others have zeros
            for vectors in (ours, theirs):
                if vectors is not None:
                    torch.distributed.all_reduce(vectors)
        return Pair(ours, theirs)

    @property
    def _width(self) -> int | None:
        """Width of the targets; None where no term reads them."""
        components = self.objective.components
        if self._teacher_width is None or not self.objective.needs_teacher:
            return None
        return self._teacher_width if components is None else len(components)

    def on_validation_epoch_start(self) -> None:
        """Reset the means."""
        self._means.reset()

    def validation_step(self, batch: SentenceStep, batch_idx: int) -> None:
        """Add one batch to the means of every term, and to the cosine of the vectors."""
        objective, step = self._evaluated, self._whole(batch)
        denominators = objective.denominators(batch)
        for micro in batch.micro:
            terms = objective(self._encoder, self._teacher_encoder, micro, denominators, step).terms
            for name, share in terms.items():
                self._means.update(name, share * denominators[name], 0)
        for name, count in denominators.items():  # on every rank, also without a micro-batch
            if name != MARGIN or (batch.rows is not None and batch.rows.negatives):
                self._means.update(name, 0, count / self.trainer.world_size)

    def validated_metrics(self) -> set[str]:
        """Names of the logged metrics."""
        names = self._watched.metrics if self._watched is not None else ()
        sides = ("", "teacher_") if self._teacher_watched is not None else ("",)
        found = {"val/loss", *(f"val/loss_{name}" for name in self.objective.active)}
        if self._teacher_width is not None:
            found.add(COSINE)
        return found | {f"val/{own}{name}" for name in names for own in sides}

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss`, `val/loss_<term>`, `val/cosine`, and the benchmark's metrics, the teacher's computed once."""
        means = self._means.compute()
        if not means or self.trainer.sanity_checking:
            return
        weights = self.objective.weights
        active = [name for name in self.objective.active if name in means]  # validated rows may have no negative
        logged = {f"val/loss_{name}": means[name] for name in active}
        logged["val/loss"] = sum(weights[name] * means[name] for name in active)
        if self._teacher_width is not None:
            logged[COSINE] = 1 - means["cos"]
        if self._watched is not None:
            found = self._measured(self._watched, self._encoder)
            logged |= {f"val/{name}": value for name, value in found.items()}
        if self._teacher_watched is not None and self._teacher_encoder is not None:
            if self._teacher_metrics is None:
                self._teacher_metrics = self._measured(self._teacher_watched, self._teacher_encoder)
            logged |= {f"val/teacher_{name}": value for name, value in self._teacher_metrics.items()}
        self.log_dict(logged)

    def _measured(self, benchmark: EncoderBenchmark, encoder: SentenceEncoder) -> dict[str, float]:
        """A benchmark in the precision of the run, in which Lightning runs steps, but not the end of an epoch."""
        with self.trainer.precision_plugin.forward_context():
            return benchmark.measure(encoder).figures()
