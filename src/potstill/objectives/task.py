"""The objective of task models: named, weighted terms on the rows of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from potstill.data.tasks.labels import MULTI_LABEL, REGRESSION, SPANS
from potstill.losses.hidden import cosine_distance
from potstill.losses.soft_targets import logit_mse, shift_probabilities
from potstill.models.backbone import Backbone
from potstill.objectives.features import Features, observed
from potstill.objectives.interchange import Hidden, Interchange, bases_of, hidden_states
from potstill.objectives.soft_targets import SoftTargets, TeacherMean
from potstill.objectives.terms import CAUSAL, SOFT, TermSums, WeightedTerms

if TYPE_CHECKING:  # the data modules import lightning
    from potstill.data.tasks.datamodule import TaskBatch, TaskStep

Stored = Callable[[Tensor], Tensor]  # (rows,) numbers of rows -> a teacher's logits of all their predictions

LABEL = "label"  # the term on the data's own labels
NEVER = (
    -1e4
)  # logit of a token that cannot be the end of an answer; its share is 0 at any temperature below 90


@dataclass(frozen=True)
class TaskObjective(WeightedTerms):
    """sum_k weight_k * mean of term k over the predictions, or the tokens, of the whole step.

    A prediction is a distribution over labels, or a score, of a row; of the labels of a word (its first token); or over
    the tokens of a window, one for either end of an answer. Over predictions: `label` is the cross entropy in nats, or
    the squared error of the scores; `ce` is KL(teacher || student) * T^2 or what else `soft` says, or the squared
    distance of the scores; `mse` the squared distance of the logits, summed over labels. Over real tokens: `cos` is
    1 - cosine of the last hidden states.

    In a task with sets of labels (`multi_label`) each label of a row is a prediction of its own, of two outcomes with
    the logits 0 and z, so that their softmax is the sigmoid of z. All terms on predictions are then means over rows and
    labels: `label` is the binary cross entropy, as transformers has it; `ce` the binary KL of sigmoid(z / T) * T^2, or
    what else `soft` says; `mse` the squared distance of z.

    On the counterfactual run, in which both models had the same states swapped: `causal_ce` as `ce`, over the
    predictions that the swap reaches, and `causal_cos` as `cos`, over the tokens that it can change. Source: Wu et al.
    2022 (arXiv:2112.02505), section 3; the interchange intervention objective of a task, Geiger et al. 2022
    (arXiv:2112.00826), section 3.

    Attributes:
        kind: of the task.
        weights: by term; absent or 0 is not computed.
        temperature: T of `ce` and `causal_ce`.
        interchange: what the causal terms swap; needed where one of them has a weight.
        soft: the loss of `ce` and `causal_ce`.
        mean: of several teachers' predictions.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {LABEL: 1.0})
    interchange: Interchange | None = None
    soft: SoftTargets = field(default_factory=SoftTargets)
    mean: TeacherMean = field(default_factory=TeacherMean)

    def denominators(self, step: TaskStep) -> dict[str, float]:
        """How many predictions, or tokens, of the step each term is a mean over; 1 where there are none."""
        counts = dict.fromkeys((LABEL, "ce", "mse"), step.predictions)
        counts |= {"cos": step.tokens, "causal_ce": step.reached, "causal_cos": step.reached_tokens}
        counts |= self.matched_counts(step)
        return {term: float(max(counts[term], 1)) for term in self.active}

    def __call__(
        self,
        student: Backbone,
        teacher: Backbone | Sequence[Backbone] | None,
        micro: TaskBatch,
        denominators: Mapping[str, float],
        stored: Sequence[Stored] = (),
    ) -> TermSums:
        """The share of one micro-batch.

        Args:
            student: trained; gradients flow.
            teacher: no gradients; may be None where `needs_teacher` is false. Of several the predictions are averaged,
                and a match reads the one that it names; `cos` and the causal terms read the first.
            micro: rows, labels and swaps; a teacher of another tokenizer reads its own tokens of them.
            denominators: from `denominators`, of the whole step.
            stored: teachers' logits, in the teachers' place; the terms of them are `ce` and `mse`.
        """
        exchange = self.interchange if self._any(CAUSAL) else None
        parts = bases_of(micro, exchange)
        read = self.wanted(None)
        whole = self._any((LABEL, *SOFT))
        ours, our_features = observed(student, "student", micro, exchange, whole=whole, wanted=read)
        teachers = [] if teacher is None else [teacher] if isinstance(teacher, Backbone) else list(teacher)
        taught: list[Hidden] = []
        their_features: list[list[Features]] = []
        if self.needs_teacher and not stored:
            assert teachers
            taught, their_features = self._observed_teachers(teachers, micro, exchange)
        theirs = taught[0] if taught else Hidden()
        sums: list[dict[str, Tensor]] = []
        for number, part in enumerate(parts):
            if not self._any((LABEL, "ce", "mse")):
                break
            logits = distributions_of(self.kind, predictions_of(student, ours.base[number], part))
            if self.weights.get(LABEL):
                sums.append({LABEL: label_loss(self.kind, logits, labels_of(part)) / denominators[LABEL]})
            if self._any(("ce", "mse")):
                with torch.no_grad():
                    targets = [
                        predictions_of(
                            one, hidden.base[number], bases_of(micro.read_by(which), exchange)[number]
                        )
                        for which, (one, hidden) in enumerate(zip(teachers, taught, strict=True))
                    ] or [stored_predictions(one, part, self.kind) for one in stored]
                    mean = self.mean([distributions_of(self.kind, one) for one in targets], self.temperature)
                labels = labels_of(part) if self.soft.shift else None
                sums.append(self._soft(logits, mean, denominators, ("ce", "mse"), labels))
        if self.weights.get("causal_ce"):
            for part, ours_BLD, theirs_BLD in zip(parts, ours.causal, theirs.causal, strict=False):
                sums.append(self._causal_ce(student, teachers[0], part, ours_BLD, theirs_BLD, denominators))
        values: dict[str, Tensor] = {}
        for own in sums:
            for term, value in own.items():
                values[term] = values[term] + value if term in values else value
        if self.weights.get("cos"):
            real = [part.attention_mask.bool() for part in parts]
            values["cos"] = _cosine(ours.base, theirs.base, real, denominators["cos"])
        if ours.causal and self.weights.get("causal_cos"):
            wanted = [part.reached for part in parts]
            values["causal_cos"] = _cosine(ours.causal, theirs.causal, wanted, denominators["causal_cos"])
        values |= self.matched_values(our_features, their_features, parts, denominators)
        zero = next(student.model.parameters()).new_zeros((), dtype=torch.float32)
        loss = sum((self.weights[term] * value for term, value in values.items()), zero)
        return TermSums(loss, {term: value.detach() for term, value in values.items()})

    def _observed_teachers(
        self, teachers: Sequence[Backbone], micro: TaskBatch, exchange: Interchange | None
    ) -> tuple[list[Hidden], list[list[Features]]]:
        """Last hidden states and matched features of each teacher; interventions run in the first one only."""
        with torch.no_grad():
            both = [
                observed(
                    teacher,
                    "teacher",
                    micro.read_by(number),
                    exchange if number == 0 else None,
                    whole=self._any(SOFT),
                    wanted=self.wanted(number),
                )
                for number, teacher in enumerate(teachers)
            ]
        return [hidden for hidden, _ in both], [features for _, features in both]

    def _causal_ce(
        self,
        student: Backbone,
        teacher: Backbone,
        part: TaskBatch,
        ours_BLD: Tensor,
        theirs_BLD: Tensor,
        denominators: Mapping[str, float],
    ) -> dict[str, Tensor]:
        reached = reached_of(part, self.kind)
        with torch.no_grad():
            targets_NC = predictions_of(teacher, theirs_BLD, part)[reached]
            targets_NC = distributions_of(self.kind, targets_NC)
        logits = distributions_of(self.kind, predictions_of(student, ours_BLD, part)[reached])
        return self._soft(logits, targets_NC, denominators, ("causal_ce",), None)

    def _soft(
        self,
        logits_NC: Tensor,
        targets_NC: Tensor,
        denominators: Mapping[str, float],
        terms: tuple[str, ...],
        labels_N: Tensor | None,
    ) -> dict[str, Tensor]:
        values = {}
        for term in filter(self.weights.get, terms):
            if term == "mse" or self.kind == REGRESSION:
                values[term] = logit_mse(logits_NC, targets_NC, denominator=denominators[term])
                continue
            ours, theirs, labels = logits_NC, targets_NC, labels_N
            if self.kind == MULTI_LABEL and self.soft.loss == "mse":  # of the one logit that a label has
                theirs = theirs if labels is None else shift_probabilities(theirs, labels.long())
                ours, theirs, labels = ours.diff(dim=-1), theirs.diff(dim=-1), None
            values[term] = self.soft(
                ours, theirs, self.temperature, labels_N=labels, denominator=denominators[term]
            )
        return values


def logits_of(backbone: Backbone, micro: TaskBatch) -> Tensor:
    """Output of the task's head, in float32; see `Backbone.classify`."""
    (last_BLD,) = hidden_states(backbone, "student", micro, None, whole=True).base
    return backbone.classify(last_BLD, micro.attention_mask).float()


def predictions_of(backbone: Backbone, last_BLD: Tensor, micro: TaskBatch) -> Tensor:
    """Logits of all predictions of a micro-batch, `(predictions, labels)` in float32.

    Args:
        backbone: a task model.
        last_BLD: its last hidden states.
        micro: rows. Those of answers give two predictions each, over the tokens, of which padding is none.
    """
    logits = backbone.classify(last_BLD, micro.attention_mask).float()
    if logits.ndim == 2:
        return logits
    if micro.words is not None:
        return logits[micro.words >= 0]
    return ends_of(logits, micro.attention_mask).flatten(0, 1)


def distributions_of(kind: str, logits_NC: Tensor) -> Tensor:
    """Logits of distributions, `(predictions, outcomes)`.

    Args:
        kind: of the task. With sets of labels each label is a prediction of two outcomes, absent and present, whose
            softmax is the sigmoid of its logit: `(rows * labels, 2)`.
        logits_NC: of `predictions_of`.
    """
    if kind != MULTI_LABEL:
        return logits_NC
    present = logits_NC.flatten()
    return torch.stack([torch.zeros_like(present), present], dim=-1)


def stored_predictions(stored: Stored, micro: TaskBatch, kind: str) -> Tensor:
    """As `predictions_of`, of a teacher whose logits are stored; `kind` is the task's."""
    logits_NC = stored(micro.rows)
    if kind != SPANS:
        return logits_NC
    real_BL = micro.attention_mask.bool()
    logits_BL2 = logits_NC.new_zeros(*real_BL.shape, logits_NC.shape[1])
    logits_BL2[real_BL] = logits_NC
    return ends_of(logits_BL2, micro.attention_mask).flatten(0, 1)


def ends_of(logits_BL2: Tensor, attention_mask_BL: Tensor) -> Tensor:
    """Logits of the first and the last token of an answer, `(batch, 2, length)`, none at padding."""
    return logits_BL2.masked_fill(attention_mask_BL[..., None] == 0, NEVER).transpose(1, 2)


def labels_of(micro: TaskBatch) -> Tensor:
    """The labels of `distributions_of`, `(predictions,)`."""
    assert micro.labels is not None
    return micro.labels.flatten() if micro.words is None else micro.labels[micro.words >= 0]


def reached_of(micro: TaskBatch, kind: str) -> Tensor:
    """Which of `predictions_of` an intervention can change, `(predictions,)` bool; `kind` is the task's."""
    assert micro.reached is not None
    if micro.words is not None:
        return micro.reached[micro.words >= 0]
    return micro.reached.any(dim=1).repeat_interleave(2 if kind == SPANS else 1)


def _cosine(ours: list[Tensor], theirs: list[Tensor], wanted: list[Tensor], denominator: float) -> Tensor:
    """1 - cosine of last hidden states at the wanted (batch, length) tokens, over all parts."""
    student_ND, teacher_ND = (
        torch.cat([hidden[mask] for hidden, mask in zip(side, wanted, strict=True)])
        for side in (ours, theirs)
    )
    return cosine_distance(student_ND, teacher_ND, denominator=denominator)


def label_loss(kind: str, logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Summed over the predictions: cross entropy in nats, or the squared error of a regression.

    Args:
        kind: of the task.
        logits_NC: `(predictions, labels)` of `distributions_of`, or `(rows, 1)` scores.
        labels_N: `(predictions,)` numbers of labels, -100 of those without, or scores.
    """
    if kind == REGRESSION:
        return mse_loss(logits_NC[:, 0], labels_N.to(logits_NC.dtype), reduction="sum")
    return cross_entropy(logits_NC, labels_N.long(), reduction="sum")
