"""The objective of task models: named, weighted terms on the rows of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from potstill.data.tasks.datamodule import TaskBatch, TaskStep
from potstill.data.tasks.labels import REGRESSION
from potstill.losses.hidden import cosine_distance
from potstill.losses.soft_targets import kl_divergence, logit_mse
from potstill.models.trunk import Trunk
from potstill.objectives.interchange import Hidden, Interchange, bases_of, hidden_states
from potstill.objectives.terms import CAUSAL, SOFT, TermSums, WeightedTerms

LABEL = "label"  # the term on the data's own labels


@dataclass(frozen=True)
class TaskObjective(WeightedTerms):
    """sum_k weight_k * mean of term k over the rows, or the tokens, of the whole step.

    Over rows: `label` is the cross entropy of the labels in nats, or the squared error of the scores; `ce` is
    KL(teacher || student) * T^2 of the labels' distributions, or the squared distance of the scores; `mse` the squared
    distance of the logits, summed over labels. Over real tokens: `cos` is 1 - cosine of the last hidden states.

    On the counterfactual run, in which both models had the same states swapped: `causal_ce` as `ce`, over the rows that
    the swap reaches, and `causal_cos` as `cos`, over the tokens that it can change. Source: Wu et al. 2022
    (arXiv:2112.02505), section 3; the interchange intervention objective of a task, Geiger et al. 2022
    (arXiv:2112.00826), section 3.

    Attributes:
        kind: `classification` or `regression`.
        weights: by term; absent or 0 is not computed.
        temperature: T of `ce` and `causal_ce`.
        interchange: what the causal terms swap; needed where one of them has a weight.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {LABEL: 1.0})
    interchange: Interchange | None = None

    def denominators(self, step: TaskStep) -> dict[str, float]:
        """How many rows, or tokens, of the whole step each term is a mean over; 1 where there are none."""
        counts = dict.fromkeys((LABEL, "ce", "mse"), step.examples)
        counts |= {"cos": step.tokens, "causal_ce": step.reached, "causal_cos": step.reached_tokens}
        return {term: float(max(counts[term], 1)) for term in self.active}

    def __call__(
        self, student: Trunk, teacher: Trunk | None, micro: TaskBatch, denominators: Mapping[str, float]
    ) -> TermSums:
        """The share of one micro-batch.

        Args:
            student: trained; gradients flow.
            teacher: no gradients; may be None where `needs_teacher` is false.
            micro: rows, labels and swaps.
            denominators: from `denominators`, of the whole step.
        """
        exchange = self.interchange if self._any(CAUSAL) else None
        parts = bases_of(micro, exchange)
        ours = hidden_states(student, "student", micro, exchange, whole=self._any((LABEL, *SOFT)))
        theirs = Hidden([], [])
        if self.needs_teacher:
            assert teacher is not None
            with torch.no_grad():
                theirs = hidden_states(teacher, "teacher", micro, exchange, whole=self._any(SOFT))
        values: dict[str, Tensor] = {}
        if ours.base and self._any((LABEL, "ce", "mse")):
            logits = torch.cat(
                [_classified(student, h, part) for h, part in zip(ours.base, parts, strict=True)]
            )
            if self.weights.get(LABEL):
                labels = torch.cat([part.labels for part in parts])
                values[LABEL] = label_loss(self.kind, logits, labels) / denominators[LABEL]
            if self._any(("ce", "mse")):
                assert teacher is not None
                with torch.no_grad():
                    targets = [
                        _classified(teacher, h, part) for h, part in zip(theirs.base, parts, strict=True)
                    ]
                values |= self._soft(logits, torch.cat(targets), denominators, ("ce", "mse"))
        if self.weights.get("cos"):
            real = [part.attention_mask.bool() for part in parts]
            values["cos"] = _cosine(ours.base, theirs.base, real, denominators["cos"])
        if ours.causal and self.weights.get("causal_ce"):
            assert teacher is not None
            rows = [part.reached_rows for part in parts]
            logits = torch.cat(
                [_classified(student, h, p)[r] for h, p, r in zip(ours.causal, parts, rows, strict=True)]
            )
            with torch.no_grad():
                targets = [
                    _classified(teacher, h, p)[r] for h, p, r in zip(theirs.causal, parts, rows, strict=True)
                ]
            values |= self._soft(logits, torch.cat(targets), denominators, ("causal_ce",))
        if ours.causal and self.weights.get("causal_cos"):
            reached = [part.reached for part in parts]
            values["causal_cos"] = _cosine(ours.causal, theirs.causal, reached, denominators["causal_cos"])
        zero = next(student.model.parameters()).new_zeros((), dtype=torch.float32)
        loss = sum((self.weights[term] * value for term, value in values.items()), zero)
        return TermSums(loss, {term: value.detach() for term, value in values.items()})

    def _soft(
        self, logits_NC: Tensor, targets_NC: Tensor, denominators: Mapping[str, float], terms: tuple[str, ...]
    ) -> dict[str, Tensor]:
        values = {}
        for term in terms:
            if self.weights.get(term) and (term == "mse" or self.kind == REGRESSION):
                values[term] = logit_mse(logits_NC, targets_NC, denominator=denominators[term])
            elif self.weights.get(term):
                values[term] = kl_divergence(
                    logits_NC, targets_NC, self.temperature, denominator=denominators[term]
                )
        return values


def logits_of(trunk: Trunk, micro: TaskBatch) -> Tensor:
    """Logits of the labels `(batch, labels)`, or scores `(batch, 1)`, in float32."""
    (last_BLD,) = hidden_states(trunk, "student", micro, None, whole=True).base
    return _classified(trunk, last_BLD, micro)


def _classified(trunk: Trunk, last_BLD: Tensor, micro: TaskBatch) -> Tensor:
    return trunk.classify(last_BLD, micro.attention_mask).float()


def _cosine(ours: list[Tensor], theirs: list[Tensor], wanted: list[Tensor], denominator: float) -> Tensor:
    """1 - cosine of last hidden states at the wanted (batch, length) tokens, over all parts."""
    student_ND, teacher_ND = (
        torch.cat([hidden[mask] for hidden, mask in zip(side, wanted, strict=True)])
        for side in (ours, theirs)
    )
    return cosine_distance(student_ND, teacher_ND, denominator=denominator)


def label_loss(kind: str, logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Summed over the rows: cross entropy in nats, or the squared error of a regression.

    Args:
        kind: `classification` or `regression`.
        logits_NC: `(rows, labels)`, or `(rows, 1)` scores.
        labels_N: `(rows,)` numbers of labels, or scores.
    """
    if kind == REGRESSION:
        return mse_loss(logits_NC[:, 0], labels_N.to(logits_NC.dtype), reduction="sum")
    return cross_entropy(logits_NC, labels_N.long(), reduction="sum")
