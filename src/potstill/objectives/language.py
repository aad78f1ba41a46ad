"""The objective of language models: named, weighted terms on masked or next tokens.

Each term says what it reads; what no term of positive weight reads is not computed. Soft targets, logit distance and
hard labels go through one fused pass over the vocabulary (`losses.vocabulary`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from potstill.data.corpus.datamodule import MicroBatch, StepBatch
from potstill.data.corpus.masking import IGNORED
from potstill.losses.hidden import cosine_distance
from potstill.losses.vocabulary import vocabulary_losses
from potstill.models.trunk import Trunk

TEACHER_LOGITS = ("ce", "mse")  # terms that read the teacher's logits
TEACHER_HIDDEN = ("cos",)  # terms that read the teacher's last hidden state
HARD = {"masked": "mlm", "causal": "clm"}  # the term on the data's own labels


class TermSums(NamedTuple):
    """What one micro-batch adds to a step.

    Attributes:
        loss: scalar with gradient, the micro-batch's share of the step's weighted loss.
        terms: each active term, detached, its share of the step's mean (unweighted).
    """

    loss: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class LanguageObjective:
    """sum_k weight_k * mean of term k over its positions in the whole step.

    Terms: `ce` KL(teacher || student) * T^2 and `mse` squared distance of logits summed over the vocabulary, over
    `positions`; `mlm` / `clm` cross entropy in nats over the masked / all next positions; `cos` 1 - cosine of the last
    hidden states over `positions`. Source: Sanh et al. 2019, section 2.

    Attributes:
        kind: `masked` or `causal`.
        weights: by term; absent or 0 is not computed.
        temperature: T of `ce`.
        positions: `all` real tokens or `masked` ones, for ce, mse and cos.
    """

    kind: str
    weights: Mapping[str, float]
    temperature: float = 1.0
    positions: str = "all"

    @property
    def active(self) -> tuple[str, ...]:
        """Terms with a weight."""
        return tuple(term for term, weight in self.weights.items() if weight)

    @property
    def needs_teacher(self) -> bool:
        """Whether any active term reads the teacher."""
        return any(term in TEACHER_LOGITS + TEACHER_HIDDEN for term in self.active)

    def denominators(self, step: StepBatch) -> dict[str, float]:
        """How many positions of the whole step each term is a mean over."""
        soft = step.tokens if self.positions == "all" else step.labelled
        counts = {term: step.labelled if term in ("mlm", "clm") else soft for term in self.active}
        return {
            term: float(max(count, 1)) for term, count in counts.items()
        }  # a step may have nothing to predict

    def __call__(
        self, student: Trunk, teacher: Trunk | None, micro: MicroBatch, denominators: Mapping[str, float]
    ) -> TermSums:
        """The share of one micro-batch.

        Args:
            student: trained; gradients flow.
            teacher: no gradients; may be None where `needs_teacher` is false.
            micro: sequences, positions and labels.
            denominators: from `denominators`, of the whole step.
        """
        labelled = micro.labels != IGNORED
        rows, labels = micro.positions, micro.labels
        if self.positions == "masked" or not self.needs_teacher:
            rows, labels = rows[labelled], labels[labelled]
        student_ND = _rows(student, micro, rows)
        teacher_NE = None
        if self.needs_teacher:
            assert teacher is not None
            with torch.no_grad():
                teacher_NE = _rows(teacher, micro, rows)
        loss, terms = self._vocabulary(student, teacher, student_ND, teacher_NE, labels, denominators)
        if self.weights.get("cos"):
            assert teacher_NE is not None
            cos = cosine_distance(student_ND, teacher_NE, denominator=denominators["cos"])
            loss = loss + self.weights["cos"] * cos
            terms["cos"] = cos.detach()
        return TermSums(loss, terms)

    def _vocabulary(
        self,
        student: Trunk,
        teacher: Trunk | None,
        student_ND: Tensor,
        teacher_NE: Tensor | None,
        labels: Tensor,
        denominators: Mapping[str, float],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        hard = HARD[self.kind]
        names = {"ce": "ce", "mse": "mse", "nll": hard}
        weights = {name: self.weights[term] for name, term in names.items() if self.weights.get(term)}
        if not weights:
            return student_ND.new_zeros(()), {}
        soft = teacher is not None and ("ce" in weights or "mse" in weights)
        if not soft:  # without soft targets the head runs on the labelled rows only
            wanted = labels != IGNORED
            student_ND, labels = student_ND[wanted], labels[wanted]
        with torch.no_grad():
            teacher_head = teacher.head(teacher_NE) if soft else None  # type: ignore[union-attr,arg-type]
        teacher_weight, teacher_bias = teacher.decoder if soft else (None, None)  # type: ignore[union-attr]
        weight, bias = student.decoder
        losses = vocabulary_losses(
            student.head(student_ND),
            weight,
            bias,
            labels_N=labels,
            teacher_NE=teacher_head,
            teacher_weight_VE=teacher_weight,
            teacher_bias_V=teacher_bias,
            temperature=self.temperature,
            weights=weights,
            denominators={name: denominators[names[name]] for name in weights},
        )
        return losses.total, {
            names[name]: total / denominators[names[name]] for name, total in losses.sums.items()
        }


def _rows(trunk: Trunk, micro: MicroBatch, rows: Tensor) -> Tensor:
    """Last hidden states at the wanted positions, `(rows, width)`."""
    return trunk.encode(micro.input_ids, micro.attention_mask).last_hidden_BLD.flatten(0, 1)[rows]


def label_nll(trunk: Trunk, micro: MicroBatch) -> Tensor:
    """Sum over the labelled positions of -log p(label), in nats; the perplexity's raw material."""
    labelled = micro.labels != IGNORED
    hidden_ND = _rows(trunk, micro, micro.positions[labelled])
    weight, bias = trunk.decoder
    return vocabulary_losses(
        trunk.head(hidden_ND),
        weight,
        bias,
        labels_N=micro.labels[labelled],
        weights={"nll": 1.0},
        denominators={"nll": 1.0},
    ).sums["nll"]
