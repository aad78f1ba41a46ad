"""The objective of language models: named, weighted terms on masked or next tokens.

Each term says what it reads; what no term of positive weight reads is not computed. Soft targets, logit distance and
hard labels go through one fused pass over the vocabulary (`losses.vocabulary`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from potstill.data.corpus.datamodule import MicroBatch, StepBatch
from potstill.data.corpus.masking import IGNORED
from potstill.interchange.intervene import Run, blocks_read, counterfactual, run, swap_tokens
from potstill.interchange.mappings import InterchangeMapping, Site
from potstill.losses.hidden import cosine_distance
from potstill.losses.vocabulary import vocabulary_losses
from potstill.models.trunk import Flow, Trunk

SOFT = ("ce", "mse", "cos")  # terms that compare teacher and student on the base run
CAUSAL = ("causal_ce", "causal_cos")  # terms that compare them on the counterfactual run
HARD = {"masked": "mlm", "causal": "clm"}  # the term on the data's own labels


@dataclass(frozen=True)
class Interchange:
    """What the causal terms swap.

    Attributes:
        mappings: one is drawn a step.
        read_site: `block_output`, or `block_input` for parity with the published code.
        crossway: both directions where sources are drawn from the data set (in a batch the plan sees to it).
        data_augment: swap input tokens instead of states; no mapping is read.
    """

    mappings: tuple[InterchangeMapping, ...]
    read_site: str = "block_output"
    crossway: bool = False
    data_augment: bool = False


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

    Terms on the base run: `ce` KL(teacher || student) * T^2 and `mse` squared distance of logits summed over the
    vocabulary, over `positions`; `mlm` / `clm` cross entropy in nats over the masked / all next positions; `cos` 1 -
    cosine of the last hidden states over `positions`. Source: Sanh et al. 2019, section 2.

    Terms on the counterfactual run, in which both models had the same states swapped: `causal_ce` and `causal_cos`, as
    `ce` and `cos`, over those of `positions` that the intervention reaches. Source: Wu et al. 2022
    (arXiv:2112.02505), section 3.

    Attributes:
        kind: `masked` or `causal`.
        weights: by term; absent or 0 is not computed.
        temperature: T of `ce` and `causal_ce`.
        positions: `all` real tokens or `masked` ones, for every term but the hard one.
        interchange: what the causal terms swap; needed where one of them has a weight.
    """

    kind: str
    weights: Mapping[str, float]
    temperature: float = 1.0
    positions: str = "all"
    interchange: Interchange | None = None

    @property
    def active(self) -> tuple[str, ...]:
        """Terms with a weight."""
        return tuple(term for term, weight in self.weights.items() if weight)

    @property
    def needs_teacher(self) -> bool:
        """Whether any active term reads the teacher."""
        return self._any(SOFT + CAUSAL)

    def _any(self, terms: Sequence[str]) -> bool:
        return any(self.weights.get(term) for term in terms)

    def denominators(self, step: StepBatch) -> dict[str, float]:
        """How many positions of the whole step each term is a mean over; 1 where there is nothing to predict."""
        masked = self.positions == "masked"
        soft = step.labelled if masked else step.tokens
        reached = step.reached_labelled if masked else step.reached
        counts = {
            **dict.fromkeys(SOFT, soft),
            **dict.fromkeys(CAUSAL, reached),
            HARD[self.kind]: step.labelled,
        }
        return {term: float(max(counts[term], 1)) for term in self.active}

    def __call__(
        self, student: Trunk, teacher: Trunk | None, micro: MicroBatch, denominators: Mapping[str, float]
    ) -> TermSums:
        """The share of one micro-batch.

        Args:
            student: trained; gradients flow.
            teacher: no gradients; may be None where `needs_teacher` is false.
            micro: sequences, positions, labels and swaps.
            denominators: from `denominators`, of the whole step.
        """
        parts = self._parts(micro)
        ours = self._hidden("student", student, micro, whole=self._any((*SOFT, HARD[self.kind])))
        theirs = _Hidden([], [])
        if self.needs_teacher:
            assert teacher is not None
            with torch.no_grad():
                theirs = self._hidden("teacher", teacher, micro, whole=self._any(SOFT))
        loss = student.decoder[0].new_zeros(())
        terms: dict[str, Tensor] = {}
        for add in (self._base_terms, self._causal_terms):
            share, own = add(student, teacher, ours, theirs, parts, denominators)
            loss, terms = loss + share, terms | own
        return TermSums(loss, terms)

    def _parts(self, micro: MicroBatch) -> list[MicroBatch]:
        """The micro-batches that are bases: drawn sources are too where the exchange goes both ways."""
        both = self._any(CAUSAL) and self.interchange is not None and self.interchange.crossway
        return [micro, micro.sources] if both and micro.sources is not None else [micro]

    def _hidden(self, side: str, trunk: Trunk, micro: MicroBatch, *, whole: bool) -> _Hidden:
        """Last hidden states of one model: of base runs if `whole`, of counterfactual runs if a term reads them."""
        exchange, swap, parts = self.interchange, micro.swap, self._parts(micro)
        if not self._any(CAUSAL) or exchange is None or swap is None:
            return _Hidden([_flat(run(trunk, _embed(trunk, part))) for part in parts] if whole else [], [])
        inputs = [micro] if micro.sources is None else [micro, micro.sources]
        if exchange.data_augment:
            runs = [run(trunk, _embed(trunk, part)) for part in parts if whole]
            swapped = [
                swap_tokens(part.input_ids, other.input_ids, way)
                for part, other, way in zip(parts, inputs[::-1], (swap, swap.reverse()), strict=False)
            ]
            return _Hidden(
                [_flat(r) for r in runs],
                [
                    _flat(run(trunk, trunk.embed(ids, part.attention_mask)))
                    for ids, part in zip(swapped, parts, strict=True)
                ],
            )
        sites: tuple[Site, ...] = getattr(exchange.mappings[swap.draw % len(exchange.mappings)], side)
        first, read = {sites[0].block}, blocks_read(sites, exchange.read_site)
        mutual = len(parts) == len(inputs)  # each is base and source
        runs = [run(trunk, _embed(trunk, micro), first | read if mutual else first, whole=whole)]
        if micro.sources is not None:
            keep = first | read if mutual else read
            runs.append(run(trunk, _embed(trunk, micro.sources), keep, whole=whole and mutual))
        outputs = [
            counterfactual(trunk, base, source, sites, way, exchange.read_site).flatten(0, 1)
            for base, source, way in zip(runs[: len(parts)], runs[::-1], (swap, swap.reverse()), strict=False)
        ]
        return _Hidden([_flat(r) for r in runs[: len(parts)]] if whole else [], outputs)

    def _base_terms(
        self,
        student: Trunk,
        teacher: Trunk | None,
        ours: _Hidden,
        theirs: _Hidden,
        parts: list[MicroBatch],
        denominators: Mapping[str, float],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        hard = HARD[self.kind]
        names = {"ce": "ce", "mse": "mse", "nll": hard, "cos": "cos"}
        if not self._any(tuple(names.values())):
            return student.decoder[0].new_zeros(()), {}
        labels = torch.cat([part.labels for part in parts])
        labelled = labels != IGNORED
        rows = [part.positions for part in parts]
        if self.positions == "masked" or not self._any(SOFT):
            rows = [part.positions[part.labels != IGNORED] for part in parts]
            labels = labels[labelled]
        student_ND = _rows(ours.base, rows)
        teacher_NE = _rows(theirs.base, rows) if self._any(SOFT) else None
        return self._compared(student, teacher, student_ND, teacher_NE, labels, names, denominators)

    def _causal_terms(
        self,
        student: Trunk,
        teacher: Trunk | None,
        ours: _Hidden,
        theirs: _Hidden,
        parts: list[MicroBatch],
        denominators: Mapping[str, float],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if not ours.causal:
            return student.decoder[0].new_zeros(()), {}
        rows = [reached_positions(part, self.positions) for part in parts]
        names = {"ce": "causal_ce", "cos": "causal_cos"}
        return self._compared(
            student, teacher, _rows(ours.causal, rows), _rows(theirs.causal, rows), None, names, denominators
        )

    def _compared(
        self,
        student: Trunk,
        teacher: Trunk | None,
        student_ND: Tensor,
        teacher_NE: Tensor | None,
        labels: Tensor | None,
        names: Mapping[str, str],
        denominators: Mapping[str, float],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted terms on rows of last hidden states; `names` says which term each kind of loss is."""
        weights = {kind: self.weights[term] for kind, term in names.items() if self.weights.get(term)}
        loss, terms = student_ND.new_zeros(()), {}
        cosine = weights.pop("cos", 0.0)
        if cosine:
            assert teacher_NE is not None
            distance = cosine_distance(student_ND, teacher_NE, denominator=denominators[names["cos"]])
            loss, terms[names["cos"]] = cosine * distance, distance.detach()
        if not weights:
            return loss, terms
        soft = teacher is not None and ("ce" in weights or "mse" in weights)
        if not soft:  # without soft targets the head runs on the labelled rows only
            assert labels is not None
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
            denominators={kind: denominators[names[kind]] for kind in weights},
        )
        sums = {names[kind]: total / denominators[names[kind]] for kind, total in losses.sums.items()}
        return loss + losses.total, terms | sums


class _Hidden(NamedTuple):
    """One model's last hidden states, (batch * length, width), of each part; empty where no term reads them."""

    base: list[Tensor]
    causal: list[Tensor]


def reached_positions(micro: MicroBatch, positions: str) -> Tensor:
    """Indices into the flattened micro-batch of what an intervention reaches; of the masked ones if so wanted."""
    assert micro.reached is not None
    wanted = micro.reached & (micro.labels != IGNORED) if positions == "masked" else micro.reached
    return micro.positions[wanted]


def _embed(trunk: Trunk, micro: MicroBatch) -> Flow:
    return trunk.embed(micro.input_ids, micro.attention_mask)


def _flat(base: Run) -> Tensor:
    assert base.last_BLD is not None
    return base.last_BLD.flatten(0, 1)


def _rows(hidden: list[Tensor], rows: list[Tensor]) -> Tensor:
    """The wanted positions of each part, one after the other."""
    taken = [part[wanted] for part, wanted in zip(hidden, rows, strict=True)]
    return taken[0] if len(taken) == 1 else torch.cat(taken)


def label_nll(trunk: Trunk, micro: MicroBatch) -> Tensor:
    """Sum over the labelled positions of -log p(label), in nats; the perplexity's raw material."""
    labelled = micro.labels != IGNORED
    hidden_ND = _flat(run(trunk, _embed(trunk, micro)))[micro.positions[labelled]]
    weight, bias = trunk.decoder
    return vocabulary_losses(
        trunk.head(hidden_ND),
        weight,
        bias,
        labels_N=micro.labels[labelled],
        weights={"nll": 1.0},
        denominators={"nll": 1.0},
    ).sums["nll"]
