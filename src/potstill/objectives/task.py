"""The objective of task students: named, weighted terms on features of the student and of its teachers.

A reader runs a model on a micro-batch and returns its features. `ModelReader` is that of ordinary (transformers)
models; `custom.AdaptorReader` that of a user's own modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from potstill.data.tasks.labels import MULTI_LABEL, REGRESSION, SPANS
from potstill.losses.hidden import cosine_distance
from potstill.losses.soft_targets import at_least_float32, logit_mse, shift_probabilities
from potstill.models.backbone import Backbone
from potstill.objectives.features import Features, Wanted, observed
from potstill.objectives.interchange import Interchange, bases_of, hidden_states
from potstill.objectives.matching import COUNTERFACTUAL, RUNS
from potstill.objectives.soft_targets import SoftTargets, TeacherMean
from potstill.objectives.terms import CAUSAL, LABEL, TermSums, WeightedTerms

if TYPE_CHECKING:  # the data modules import lightning
    from potstill.data.tasks.datamodule import TaskBatch

Stored = Callable[[Tensor], Tensor]  # (rows,) numbers of rows -> a teacher's logits of all their predictions

NEVER = -1e4  # logit of a token that cannot be the end of an answer; its share is 0 at any temperature below 90


class Observed(NamedTuple):
    """Features of one model on one micro-batch.

    Attributes:
        base: of each base run; several if the drawn sources of interventions are bases, too.
        causal: of each counterfactual run.
    """

    base: Sequence[Features]
    causal: Sequence[Features] = ()


def _of_run(seen: Observed, run: str) -> Sequence[Features]:
    return seen.causal if run == COUNTERFACTUAL else seen.base


Reader = Callable[[Any, Wanted], Observed]  # (micro-batch, what is read) -> features


@dataclass(frozen=True)
class TaskObjective(WeightedTerms):
    """sum_k weight_k * mean of term k over the predictions, or the tokens, of the whole step.

    A prediction is a distribution over labels, or a score, of a row; of the labels of a word (its first token, or each
    of its tokens and the special ones with `every_token`, where only `label` is of the first); or over the tokens of a
    window, one for either end of an answer. Over predictions: `label` is the cross entropy in nats, or
    the squared error of the scores; `ce` is KL(teacher || student) * T^2 or the loss of `soft`, or the squared
    distance of the scores; `mse` the squared distance of the logits, summed over labels or tokens. Over real tokens:
    `cos` is 1 - cosine of the last hidden states.

    In a task with sets of labels (`multi_label`) each label of a row is a prediction of its own, of two outcomes with
    the logits 0 and z, so that their softmax is the sigmoid of z. All terms on predictions are then means over rows and
    labels: `label` is the binary cross entropy, as in transformers; `ce` the binary KL of sigmoid(z / T) * T^2, or
    the loss of `soft`; `mse` the squared distance of z.

    On the counterfactual run, in which both models had the same states swapped: `causal_ce` as `ce`, over the
    predictions that the swap reaches, and `causal_cos` as `cos`, over the tokens that it can change. Source: Wu et al.
    2022 (arXiv:2112.02505), section 3; the interchange intervention objective of a task, Geiger et al. 2022
    (arXiv:2112.00826), section 3.

    With a user's own modules a term on logits is the sum, over the heads of the module, of the means over the
    predictions of a head in the step; `label` is that over predictions with a label, or the sum of the module's own
    losses if it returns any, means over examples. Source: Yang et al. 2020 (TextBrewer, arXiv:2002.12620), section 3.

    Attributes:
        kind: kind of the task.
        weights: by term; a term without a weight is not computed.
        temperature: T of `ce` and `causal_ce`.
        interchange: states that the causal terms swap; needed if one of them has a weight.
        soft: the loss of `ce` and `causal_ce`.
        mean: combines the predictions of several teachers.
        every_token: of tagged words, whether teacher and student are compared at all real tokens.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {LABEL: 1.0})
    interchange: Interchange | None = None
    soft: SoftTargets = field(default_factory=SoftTargets)
    mean: TeacherMean = field(default_factory=TeacherMean)
    every_token: bool = False

    def denominators(self, step: Any) -> dict[str, float]:
        """Number of predictions, or tokens, of the step that each active term is a mean over; at least 1."""
        compared, reached = (step.tokens, step.reached_tokens) if self.every_token else (step.predictions, step.reached)
        counts = {LABEL: step.predictions, "ce": compared, "mse": compared, "causal_ce": reached}
        counts |= {"cos": step.tokens, "causal_cos": step.reached_tokens}
        return self.counted(counts, step)

    def __call__(
        self, student: Reader, teachers: Sequence[Reader], micro: Any, denominators: Mapping[str, float]
    ) -> TermSums:
        """The share of one micro-batch.

        Args:
            student: reads the student; gradients flow.
            teachers: read the teachers, without gradients. The predictions of several are averaged, and a match reads
                the one that it names; `cos` and the causal terms read the first.
            micro: the micro-batch.
            denominators: from `denominators`, of the whole step.
        """
        return self.compared(*self.observed(student, teachers, micro), denominators)

    def observed(self, student: Reader, teachers: Sequence[Reader], micro: Any) -> tuple[Observed, list[Observed]]:
        """Features of the student, and of each teacher if a term reads one; arguments as for `__call__`."""
        ours = student(micro, self.wanted(None))
        with torch.no_grad():
            theirs = [read(micro, self.wanted(number)) for number, read in enumerate(teachers) if self.needs_teacher]
        return ours, theirs

    def compared(
        self, student: Observed, teachers: Sequence[Observed], denominators: Mapping[str, Tensor | float]
    ) -> TermSums:
        """As `__call__`, from features.

        Args:
            student: features of the student.
            teachers: features of each teacher.
            denominators: of the whole step; of terms on logits also (heads,), one per tensor of logits.
        """
        totals = self.totals(student, teachers)
        values = {term: (total / denominators[term]).sum() for term, total in totals.items()}
        zero = torch.zeros((), device=next((value.device for value in values.values()), None))
        loss = sum((self.weights[term] * value for term, value in values.items()), zero)
        return TermSums(loss, {term: value.detach() for term, value in values.items()})

    def totals(self, student: Observed, teachers: Sequence[Observed]) -> dict[str, Tensor]:
        """The sum of each active term over its units; (heads,) for terms on logits, else a scalar."""
        totals: dict[str, Tensor] = {}
        for term in self.active:
            if term in self.matched:
                continue
            run = "causal" if term in CAUSAL else "base"
            ours, theirs = getattr(student, run), [getattr(teacher, run) for teacher in teachers]
            of_runs = [
                self._total(term, own, [features[number] for features in theirs if features])
                for number, own in enumerate(ours)
            ]
            if of_runs:
                totals[term] = torch.stack(of_runs).sum(0)
        if self.matches is not None:
            ones = dict.fromkeys(self.matched, 1.0)
            for run in RUNS:
                ours, every = _of_run(student, run), [_of_run(teacher, run) for teacher in teachers]
                totals |= self.matches(ours, every, ones, self.active, run=run)
        return totals

    def _total(self, term: str, student: Features, teachers: Sequence[Features]) -> Tensor:
        """The sum of a term on one run."""
        if term == LABEL and student.losses:
            return torch.stack([loss.sum() for loss in student.losses]).sum()
        if term == LABEL:
            pairs = zip(student.logits, student.labels, strict=True)
            return torch.stack([label_loss(self.kind, *pair) for pair in pairs])
        if term in ("cos", "causal_cos"):
            assert student.last is not None
            assert teachers[0].last is not None
            return cosine_distance(student.last, teachers[0].last, denominator=1.0)
        used = teachers[:1] if term in CAUSAL else teachers
        means = [self.mean(every, self.temperature) for every in zip(*(own.logits for own in used), strict=True)]
        shifted = self.soft.shift and term == "ce"
        labels: Iterable[Tensor | None] = student.labels if shifted else [None] * len(means)
        triples = zip(student.logits, means, labels, strict=True)
        return torch.stack([self._soft(term, *triple) for triple in triples])

    def _soft(self, term: str, student_NC: Tensor, teacher_NC: Tensor, labels_N: Tensor | None) -> Tensor:
        """The sum of `ce` or `mse` over predictions."""
        if term == "mse" or self.kind == REGRESSION:
            return logit_mse(student_NC, teacher_NC, denominator=1.0)
        if self.kind == MULTI_LABEL and self.soft.loss == "mse":  # of the one logit that a label has
            teacher_NC = teacher_NC if labels_N is None else shift_probabilities(teacher_NC, labels_N.long())
            student_NC, teacher_NC, labels_N = student_NC.diff(dim=-1), teacher_NC.diff(dim=-1), None
        if self.kind == SPANS and self.soft.loss == "mse":  # its mean over columns becomes one over real tokens
            share_N1 = (student_NC > NEVER).float().mean(dim=-1, keepdim=True)
            student_NC, teacher_NC = student_NC * share_N1.rsqrt(), teacher_NC * share_N1.rsqrt()
        return self.soft(student_NC, teacher_NC, self.temperature, labels_N=labels_N, denominator=1.0)


@dataclass(frozen=True)
class ModelReader:
    """Reads an ordinary task model.

    Attributes:
        backbone: the model.
        kind: kind of the task.
        exchange: states that are swapped in the counterfactual run; None for none.
        teacher: index of the teacher; None: the student.
        every_token: as that of the objective.
    """

    backbone: Backbone
    kind: str
    exchange: Interchange | None = None
    teacher: int | None = None
    every_token: bool = False

    def __call__(self, micro: TaskBatch, wanted: Wanted) -> Observed:
        """Features of the model; a teacher with a tokenizer of its own reads its own tokens of the rows."""
        own = micro if self.teacher is None else micro.read_by(self.teacher)
        exchange = self.exchange if wanted.causal else None
        side = "student" if self.teacher is None else "teacher"
        hidden, features, counterfactual = observed(self.backbone, side, own, exchange, wanted)
        parts = bases_of(own, exchange)
        if hidden.base:
            ends = zip(features, hidden.base, parts, strict=True)
            features = [self._with_ends(own, last_BLD, part, wanted, None) for own, last_BLD, part in ends]
        causal = [
            self._with_ends(found, last_BLD, part, wanted, part.reached)
            for found, last_BLD, part in zip(counterfactual, hidden.causal, parts, strict=False)
        ]
        return Observed(features, causal)

    def _with_ends(
        self, features: Features, last_BLD: Tensor, part: TaskBatch, wanted: Wanted, reached_BL: Tensor | None
    ) -> Features:
        """With predictions and last hidden states; of a counterfactual run only those that the swap reaches."""
        kept_BL = part.attention_mask.bool() if reached_BL is None else reached_BL
        logits: tuple[Tensor, ...] = ()
        if wanted.logits:
            logits_NC = predictions_of(self.backbone, last_BLD, part, every_token=self.every_token)
            if reached_BL is not None:
                logits_NC = logits_NC[reached_of(part, self.kind, every_token=self.every_token)]
            logits = (distributions_of(self.kind, logits_NC),)
        labels = (
            () if part.labels is None or reached_BL is not None else (labels_of(part, every_token=self.every_token),)
        )
        return replace(features, logits=logits, labels=labels, last=last_BLD[kept_BL] if wanted.last else None)


@dataclass(frozen=True)
class StoredReader:
    """Reads the stored logits of a teacher.

    Attributes:
        stored: the logits.
        kind: kind of the task.
    """

    stored: Stored
    kind: str

    def __call__(self, micro: TaskBatch, wanted: Wanted) -> Observed:
        """Predictions, the only features that are stored."""
        logits_NC = self.stored(micro.rows)
        if self.kind == SPANS:
            real_BL = micro.attention_mask.bool()
            logits_BL2 = logits_NC.new_zeros(*real_BL.shape, logits_NC.shape[1])
            logits_BL2[real_BL] = logits_NC
            logits_NC = ends_of(logits_BL2, micro.attention_mask).flatten(0, 1)
        return Observed([Features((distributions_of(self.kind, logits_NC),))])


def logits_of(backbone: Backbone, micro: TaskBatch) -> Tensor:
    """Output of the task's head, in float32; see `Backbone.classify`."""
    (last_BLD,) = hidden_states(backbone, "student", micro, None, whole=True).base
    return backbone.classify(last_BLD, micro.attention_mask).float()


def predictions_of(backbone: Backbone, last_BLD: Tensor, micro: TaskBatch, *, every_token: bool = False) -> Tensor:
    """Logits of all predictions of a micro-batch, `(predictions, labels)` in float32.

    Args:
        backbone: a task model.
        last_BLD: its last hidden states.
        micro: rows. Those of answers give two predictions each, over the tokens without padding.
        every_token: of tagged words, whether all real tokens are predictions, or the first of each word.
    """
    logits = backbone.classify(last_BLD, micro.attention_mask).float()
    if logits.ndim == 2:
        return logits
    if micro.words is not None:
        return logits[predicted_in(micro, micro.words, every_token)]
    return ends_of(logits, micro.attention_mask).flatten(0, 1)


def distributions_of(kind: str, logits_NC: Tensor) -> Tensor:
    """Logits of distributions, `(predictions, outcomes)`.

    Args:
        kind: kind of the task. With sets of labels each label is a prediction of two outcomes, absent and present,
            whose softmax is the sigmoid of its logit: `(rows * labels, 2)`.
        logits_NC: from `predictions_of`.
    """
    if kind != MULTI_LABEL:
        return logits_NC
    present = logits_NC.flatten()
    return torch.stack([torch.zeros_like(present), present], dim=-1)


def ends_of(logits_BL2: Tensor, attention_mask_BL: Tensor) -> Tensor:
    """Logits of the first and the last token of an answer, `(batch, 2, length)`, never at padding."""
    return logits_BL2.masked_fill(attention_mask_BL[..., None] == 0, NEVER).transpose(1, 2)


def predicted_in(micro: TaskBatch, words_BL: Tensor, every_token: bool) -> Tensor:
    """Tokens of tagged words that are predictions, `(batch, length)` bool."""
    return micro.attention_mask.bool() if every_token else words_BL >= 0


def labels_of(micro: TaskBatch, *, every_token: bool = False) -> Tensor:
    """The labels of `distributions_of`, `(predictions,)`; -100 for tokens that are not the first of a word."""
    assert micro.labels is not None
    if micro.words is None:
        return micro.labels.flatten()
    labels_BL = micro.labels.masked_fill(micro.words < 0, -100)
    return labels_BL[predicted_in(micro, micro.words, every_token)]


def reached_of(micro: TaskBatch, kind: str, *, every_token: bool = False) -> Tensor:
    """Which of `predictions_of` an intervention can change, `(predictions,)` bool.

    Args:
        micro: rows with an intervention.
        kind: kind of the task.
        every_token: as in `predictions_of`.
    """
    assert micro.reached is not None
    if micro.words is not None:
        return micro.reached[predicted_in(micro, micro.words, every_token)]
    return micro.reached.any(dim=1).repeat_interleave(2 if kind == SPANS else 1)


def label_loss(kind: str, logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Cross entropy in nats, or squared error of a regression, summed over predictions; float32 at least.

    Args:
        kind: kind of the task.
        logits_NC: `(predictions, labels)` from `distributions_of`, or `(rows, 1)` scores.
        labels_N: `(predictions,)` indices of labels, -100 for no label, or scores.
    """
    logits_NC = at_least_float32(logits_NC)
    if kind == REGRESSION:
        return mse_loss(logits_NC[:, 0], labels_N.to(logits_NC.dtype), reduction="sum")
    return cross_entropy(logits_NC, labels_N.long(), reduction="sum")
