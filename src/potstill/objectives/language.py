"""The objective of language models: named, weighted terms on masked or next tokens.

Only what the terms with a weight read is computed. Soft targets, logit distance and hard labels share one fused pass
over the vocabulary (`losses.vocabulary`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

from potstill.data.common.batching import IGNORED
from potstill.losses.hidden import cosine_distance
from potstill.losses.soft_targets import universal_logit_distance
from potstill.losses.sparse import SampledRows, TopRows
from potstill.losses.tied import TiedGradient
from potstill.losses.vocabulary import FORWARD, vocabulary_losses
from potstill.models.backbone import Backbone
from potstill.objectives.features import Features, observed
from potstill.objectives.interchange import Hidden, Interchange, bases_of, hidden_states
from potstill.objectives.matching import COUNTERFACTUAL
from potstill.objectives.terms import ALIGNED, CAUSAL, SOFT, TermSums, WeightedTerms

if TYPE_CHECKING:  # the data modules import lightning
    from potstill.data.corpus.datamodule import MicroBatch, StepBatch

CHUNK = 512  # rows whose logits exist at a time, where a term needs them


class Projecting(Protocol):
    """What turns last hidden states into logits, as a `Backbone` does."""

    def head(self, hidden_ND: Tensor) -> Tensor:
        """Inputs of the vocabulary projection."""

    @property
    def decoder(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the vocabulary projection."""


class Stored(Protocol):
    """Stored outputs of a teacher."""

    @property
    def projection(self) -> Projecting | None:
        """What the stored hidden states are projected with; None where targets are stored."""

    def __call__(self, units: Tensor, device: torch.device) -> TopRows | SampledRows | Tensor:
        """Targets of (rows,) units, from `MicroBatch.units`, or last hidden states (rows, width), on a device."""


@dataclass(frozen=True)
class LanguageObjective(WeightedTerms):
    """sum_k weight_k * mean of term k over its positions in the whole step.

    Terms on the base run: `ce` KL(teacher || student) * T^2, or another `divergence`, and `mse` squared distance of
    logits summed over the vocabulary, over `positions`; `mlm` / `clm` cross entropy in nats over the masked / all next
    positions; `cos` 1 - cosine of the last hidden states over `positions`. Source: Sanh et al. 2019, section 2.

    With a teacher of another tokenizer: `uld`, the distance of the sorted probabilities at T, over the positions behind
    which both have read the same text. Source: Boizard et al. 2024 (arXiv:2402.12030), section 3.

    Terms on the counterfactual run, in which both models had the same states swapped: `causal_ce` and `causal_cos`, as
    `ce` and `cos`, over the `positions` that the intervention reaches. Source: Wu et al. 2022
    (arXiv:2112.02505), section 3.

    Attributes:
        kind: `masked` or `causal`.
        weights: by term; absent or 0 is not computed.
        temperature: T of `ce` and `causal_ce`.
        positions: `all` real tokens or `masked` ones, for every term but the hard one.
        interchange: states that the causal terms swap; needed if one of them has a weight.
        divergence: that of `ce` and `causal_ce`, see `vocabulary_losses`.
        beta: of the divergence `jsd`.
    """

    positions: str = "all"
    interchange: Interchange | None = None
    divergence: str = FORWARD
    beta: float = 0.5

    def denominators(self, step: StepBatch) -> dict[str, float]:
        """Number of positions of the whole step that each active term is a mean over; at least 1."""
        masked = self.positions == "masked"
        soft = step.labelled if masked else step.tokens
        reached = step.reached_labelled if masked else step.reached
        counts = dict.fromkeys(SOFT, soft) | dict.fromkeys(CAUSAL, reached)
        return self.counted(counts | {"uld": step.aligned, self.hard: step.labelled}, step)

    def __call__(
        self,
        student: Backbone,
        teacher: Backbone | None,
        micro: MicroBatch,
        denominators: Mapping[str, float],
        stored: Stored | None = None,
    ) -> TermSums:
        """The share of one micro-batch.

        Args:
            student: gradients flow.
            teacher: no gradients; None if `needs_teacher` is false, or if its outputs are stored.
            micro: sequences, positions, labels and swaps.
            denominators: from `denominators`, of the whole step.
            stored: stored outputs of the teacher: targets of `ce`, or hidden states, which `mse` and `cos` read too.
        """
        exchange = self.interchange if self.needs_counterfactual else None
        parts = bases_of(micro, exchange)
        theirs, their_features, their_causal = Hidden(), list[Features](), list[Features]()
        # The teacher first: its temporary memory is free again while the student's states are kept.
        if stored is None and self._any((*SOFT, *CAUSAL, *self.matched)):
            assert teacher is not None
            with torch.no_grad():
                theirs, their_features, their_causal = observed(teacher, "teacher", micro, exchange, self.wanted(0))
        with student.tying() as tied:
            ours, our_features, our_causal = observed(student, "student", micro, exchange, self.wanted(None))
        segments = [*self._base(ours, theirs, parts, stored), *self._causal(ours, theirs, parts)]
        values: dict[str, Tensor] = {}
        for segment in segments:
            if self.weights.get(term := segment.names.get("cos", "")):
                assert segment.teacher_NE is not None
                denominator = denominators[term]
                values[term] = cosine_distance(segment.student_ND, segment.teacher_NE, denominator=denominator)
        if self.matches is not None:
            values |= self.matches(our_features, [their_features], denominators, self.active)
            values |= self.matches(our_causal, [their_causal], denominators, self.active, run=COUNTERFACTUAL)
        if self._any(ALIGNED):
            assert teacher is not None
            values["uld"] = self._aligned(student, teacher, ours.base[0], micro, denominators["uld"])
        zero = torch.zeros((), device=micro.input_ids.device)
        loss = sum((self.weights[term] * value for term, value in values.items()), zero)
        terms = {term: value.detach() for term, value in values.items()}
        projection = teacher if stored is None else stored.projection
        for soft in (True, False):
            group = [segment for segment in segments if segment.is_soft == soft]
            share, own = self._vocabulary(student, projection, group, denominators, tied)
            loss, terms = loss + share, terms | own
        return TermSums(loss, terms)

    def _base(self, ours: Hidden, theirs: Hidden, parts: list[MicroBatch], stored: Stored | None) -> list[_Segment]:
        names = {"ce": "ce", "mse": "mse", "nll": self.hard, "cos": "cos"}
        if not ours.base:
            return []
        labels = torch.cat([part.labels for part in parts])
        rows = [part.positions for part in parts]
        labelled_only = self.positions == "masked" or not self._any(SOFT)
        if labelled_only:
            rows = [part.positions[part.labels != IGNORED] for part in parts]
            labels = labels[labels != IGNORED]
        student_ND = _rows(ours.base, rows)
        teacher_NE = None
        if stored is not None and self._any(SOFT):
            (part,) = parts
            assert part.units is not None
            units = part.units[(part.labels != IGNORED).cpu()] if labelled_only else part.units
            found = stored(units, student_ND.device)
            if not isinstance(found, Tensor):
                return [_Segment(names, student_ND, None, labels, found)]
            teacher_NE = found
        elif self._any(SOFT):
            teacher_NE = _rows(theirs.base, rows)
        # Without soft targets the head runs on the labelled rows only.
        if not self._any(("ce", "mse")) and self._any(SOFT):
            wanted = labels != IGNORED
            hard = _Segment({"nll": names["nll"]}, student_ND[wanted], None, labels[wanted])
            return [_Segment({"cos": "cos"}, student_ND, teacher_NE, None), hard]
        return [_Segment(names, student_ND, teacher_NE, labels)]

    def _causal(self, ours: Hidden, theirs: Hidden, parts: list[MicroBatch]) -> list[_Segment]:
        if not ours.causal:
            return []
        rows = [reached_positions(part, self.positions) for part in parts]
        names = {"ce": "causal_ce", "cos": "causal_cos"}
        return [_Segment(names, _rows(ours.causal, rows), _rows(theirs.causal, rows), None)]

    def _aligned(
        self, student: Backbone, teacher: Backbone, last_BLD: Tensor, micro: MicroBatch, denominator: float
    ) -> Tensor:
        """The share of `uld`; logits of a few rows exist at a time, and again in the backward pass."""
        own = micro.teacher
        assert own is not None
        with torch.no_grad():
            (theirs_BLE,) = hidden_states(teacher, "teacher", own, None, whole=True).base

        def distance(student_ND: Tensor, teacher_NE: Tensor) -> Tensor:
            with torch.no_grad():
                targets_NW = linear(teacher.head(teacher_NE), *teacher.decoder)
            return universal_logit_distance(
                linear(student.head(student_ND), *student.decoder),
                targets_NW,
                temperature=self.temperature,
                denominator=denominator,
            )

        rows = zip(
            last_BLD.flatten(0, 1)[own.student_rows].split(CHUNK),
            theirs_BLE.flatten(0, 1)[own.teacher_rows].split(CHUNK),
            strict=True,
        )
        return torch.stack([checkpoint(distance, *pair, use_reentrant=False) for pair in rows]).sum()

    def _vocabulary(
        self,
        student: Backbone,
        teacher: Projecting | None,
        segments: list[_Segment],
        denominators: Mapping[str, float],
        tied: TiedGradient | None,
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """The terms over the vocabulary in one pass, with one gradient of its weight for all segments."""
        names = [
            {kind: term for kind, term in segment.names.items() if kind != "cos" and self.weights.get(term)}
            for segment in segments
        ]
        segments = [segment for segment, own in zip(segments, names, strict=True) if own]
        names = [own for own in names if own]
        if not segments:
            return 0.0, {}
        sizes = [len(segment.student_ND) for segment in segments]
        student_ND = _cat([segment.student_ND for segment in segments])
        weights: dict[str, Tensor | float] = {}
        for kind in {kind: None for own in names for kind in own}:
            shares = [self.weights[own[kind]] / denominators[own[kind]] if kind in own else 0.0 for own in names]
            by_row = [student_ND.new_full((n,), w, dtype=torch.float32) for n, w in zip(sizes, shares, strict=True)]
            weights[kind] = sum(shares) if kind == "nll" or len(shares) == 1 else torch.cat(by_row)
        labels = [
            torch.full((n,), IGNORED, device=student_ND.device) if segment.labels is None else segment.labels
            for n, segment in zip(sizes, segments, strict=True)
        ]
        head = student.head(student_ND), *student.decoder
        inputs: dict[str, Any] = {"targets": segments[0].targets}
        if segments[0].targets is None and segments[0].teacher_NE is not None:
            assert teacher is not None
            with torch.no_grad():
                states_NE = teacher.head(_cat([segment.teacher_NE for segment in segments]))  # type: ignore[misc]
            weight_VE, bias_V = teacher.decoder
            inputs = {"teacher_NE": states_NE, "teacher_weight_VE": weight_VE, "teacher_bias_V": bias_V}
        losses = vocabulary_losses(
            *head,
            labels_N=_cat(labels) if "nll" in weights else None,
            temperature=self.temperature,
            divergence=self.divergence,
            beta=self.beta,
            weights=weights,
            denominators=dict.fromkeys(weights, 1.0),
            tied=tied,
            **inputs,
        )
        parts = {kind: values.split(sizes) for kind, values in losses.rows.items()} if len(sizes) > 1 else {}
        terms = {
            term: (parts[kind][i] if parts else losses.rows[kind]).sum() / denominators[term]
            for i, own in enumerate(names)
            for kind, term in own.items()
        }
        return losses.total, terms


class _Segment(NamedTuple):
    """Rows of last hidden states of one kind of run.

    Attributes:
        names: names of the terms by kind of loss: `ce`, `mse`, `nll`, `cos`.
        student_ND: (rows, width).
        teacher_NE: (rows, teacher width); None if no term reads the teacher.
        labels: (rows,); None for no labels.
        targets: stored outputs of the teacher for the rows.
    """

    names: dict[str, str]
    student_ND: Tensor
    teacher_NE: Tensor | None
    labels: Tensor | None
    targets: TopRows | SampledRows | None = None

    @property
    def is_soft(self) -> bool:
        """Whether the rows have targets of a teacher."""
        return self.teacher_NE is not None or self.targets is not None


def reached_positions(micro: MicroBatch, positions: str) -> Tensor:
    """Indices into the flattened micro-batch of the positions that an intervention reaches.

    Args:
        micro: a micro-batch with an intervention.
        positions: `all`, or `masked` for masked positions only.
    """
    assert micro.reached is not None
    wanted = micro.reached & (micro.labels != IGNORED) if positions == "masked" else micro.reached
    return micro.positions[wanted]


def _rows(hidden: list[Tensor], rows: list[Tensor]) -> Tensor:
    """The given positions of all parts, concatenated."""
    return _cat([part.flatten(0, 1)[wanted] for part, wanted in zip(hidden, rows, strict=True)])


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def label_nll(backbone: Backbone, micro: MicroBatch) -> Tensor:
    """Sum over the labelled positions of -log p(label), in nats."""
    labelled = micro.labels != IGNORED
    (last_BLD,) = hidden_states(backbone, "student", micro, None, whole=True).base
    hidden_ND = last_BLD.flatten(0, 1)[micro.positions[labelled]]
    weight, bias = backbone.decoder
    return vocabulary_losses(
        backbone.head(hidden_ND),
        weight,
        bias,
        labels_N=micro.labels[labelled],
        weights={"nll": 1.0},
        denominators={"nll": 1.0},
    ).sums["nll"]


def nll_by_sequence(backbone: Backbone, micro: MicroBatch) -> tuple[Tensor, Tensor]:
    """As `label_nll`, by sequence: `(batch,)` sums in nats, and `(batch,)` numbers of labelled positions."""
    (last_BLD,) = hidden_states(backbone, "student", micro, None, whole=True).base
    weight, bias = backbone.decoder
    return _by_sequence(micro, last_BLD, lambda hidden_ND: linear(backbone.head(hidden_ND), weight, bias))


def nll_of_logits(logits_BLV: Tensor, micro: MicroBatch) -> tuple[Tensor, Tensor]:
    """As `nll_by_sequence`, from the logits of all positions."""
    return _by_sequence(micro, logits_BLV, lambda logits_NV: logits_NV)


def _by_sequence(micro: MicroBatch, outputs_BLX: Tensor, read: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    labelled = micro.labels != IGNORED
    places, labels = micro.positions[labelled], micro.labels[labelled]
    nll = torch.zeros(len(micro.input_ids), dtype=torch.float64, device=labels.device)
    sequences = places // micro.input_ids.shape[1]
    rows = zip(outputs_BLX.flatten(0, 1)[places].split(CHUNK), labels.split(CHUNK), strict=True)
    parts = [cross_entropy(read(own).float(), wanted, reduction="none") for own, wanted in rows]
    if parts:
        nll.index_add_(0, sequences, torch.cat(parts).double())
    return nll, sequences.bincount(minlength=len(nll))
