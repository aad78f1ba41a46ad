"""The objective of adapted modules: named, weighted terms on the features that adaptors return.

Every term is a mean over the examples of the whole step: their number is known before a model runs, so a step gives the
same update however it is cut. A match is, within an example, the mean over its kept positions or pairs of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from potstill.errors import ConfigError
from potstill.losses.attention import attention_ce, attention_ce_mean, attention_mse, attention_mse_sum
from potstill.losses.hidden import fsp, hidden_cosine, hidden_mse, nst
from potstill.losses.soft_targets import IGNORED_LABEL, cross_entropy, logit_mse
from potstill.objectives.custom_features import AdaptedFeatures
from potstill.objectives.matches import MatchTerms
from potstill.objectives.matching import ATTENTION, KEY, TWO_LAYERS, Match
from potstill.objectives.soft_targets import SoftTargets
from potstill.objectives.terms import TermSums, WeightedTerms

LABEL = "label"
_LOSSES: dict[str, Callable[..., Tensor]] = {
    "hidden_mse": hidden_mse, "cos": hidden_cosine, "fsp": fsp, "nst": nst, "attention_mse": attention_mse,
    "attention_mse_sum": attention_mse_sum, "attention_ce": attention_ce, "attention_ce_mean": attention_ce_mean,
}  # fmt: skip
_ANY_WIDTH = ("nst",)


class AdaptedMatches(MatchTerms):
    """The matches between features of adaptors, and their projections over channels (1x1 convolutions of images).

    Args:
        matches: as read by `read_adapted_matches`.
        student: its features on one batch, for their widths.
        teacher: the same for the teacher.
        seed: of the projections' weights.

    Raises:
        ConfigError: a feature that an adaptor does not return, or two of unequal width without a projection.
    """

    def __init__(
        self, matches: Sequence[Match], student: AdaptedFeatures, teacher: AdaptedFeatures, *, seed: int
    ):
        super().__init__(matches)
        generator = torch.Generator().manual_seed(seed)
        for number, match in enumerate(self.matches):
            key = f"{KEY}[{number}]"
            ours = [_found(student, match, place, f"{key}.student") for place in match.student]
            theirs = [_found(teacher, match, place, f"{key}.teacher") for place in match.teacher]
            if match.feature == ATTENTION:
                continue
            widths = [{states_BLD.shape[-1] for states_BLD in side} for side in (ours, theirs)]
            if match.projection is not None:
                if len(widths[0] | widths[1]) > 2 or any(len(side) > 1 for side in widths):
                    raise ConfigError(f"{key}.projection={match.projection}: reads features of unequal width")
                self.project(match, widths[0].pop(), widths[1].pop(), generator)
            elif match.loss not in _ANY_WIDTH:
                for own, other in zip(ours, theirs, strict=True):
                    if own.shape[-1] != other.shape[-1]:
                        raise ConfigError(
                            f"{key}.loss={match.loss}: the student's feature is {own.shape[-1]} wide, the teacher's "
                            f"{other.shape[-1]}; give projection=linear (or relu, tanh)"
                        )

    def __call__(self, match: Match, student: AdaptedFeatures, teacher: AdaptedFeatures) -> Tensor:
        """One match, summed over the examples; a scalar with gradient."""
        ours = [_state(student, match, place) for place in match.student]
        theirs = [_state(teacher, match, place) for place in match.teacher]
        if match.name in self.projections:
            ours = [self.projections[match.name](states_BLD) for states_BLD in ours]
        loss, mask_BL = _LOSSES[match.loss], _mask(student.mask, ours[0], match.feature == ATTENTION)

        def of_example(mask_L: Tensor, own: list[Tensor], other: list[Tensor]) -> Tensor:
            sides: list[Any] = [tuple(states[None] for states in side) for side in (own, other)]
            if match.loss not in TWO_LAYERS:
                sides = [side[0] for side in sides]
            return loss(*sides, mask_L[None])

        return torch.func.vmap(of_example)(mask_BL, ours, theirs).sum()


@dataclass(frozen=True)
class AdaptedObjective(WeightedTerms):
    """sum_k weight_k * mean of term k over the examples of the step.

    `ce` is KL(teacher || student) * T^2 in nats or what else `soft` says, `mse` the squared distance of the logits,
    summed over labels; both are summed over several logits, as is `label`: the model's own losses where its adaptor
    returns them, else the cross entropy of the labels, in nats, to which an example without a label adds 0.

    Attributes:
        weights: by term; absent or 0 is not computed.
        temperature: T of `ce`.
        soft: the loss of `ce`.
        matches: of features; None where there are none.

    Source: Yang et al. 2020 (TextBrewer, arXiv:2002.12620), section 3.
    """

    soft: SoftTargets = field(default_factory=SoftTargets)
    matches: AdaptedMatches | None = field(default=None, kw_only=True)  # type: ignore[assignment]

    def __call__(
        self, student: AdaptedFeatures, teacher: AdaptedFeatures | None, *, examples: int, own: int
    ) -> TermSums:
        """The share of one micro-batch.

        Args:
            student: its features; gradients flow.
            teacher: its features, without gradient; may be None where `needs_teacher` is false.
            examples: of the whole step; 1 for sums over the micro-batch.
            own: examples of the micro-batch.
        """
        values: dict[str, Tensor] = {}
        if self.weights.get(LABEL):
            values[LABEL] = _label(student, own) / examples
        for term in ("ce", "mse"):
            if self.weights.get(term):
                assert teacher is not None
                values[term] = self._soft(term, student, teacher, examples)
        if self.matches is not None:
            for match in self.matches.matches:
                if self.weights.get(match.term):
                    assert teacher is not None
                    values[match.term] = self.matches(match, student, teacher) / examples
        zero = torch.zeros((), device=next(iter(values.values())).device) if values else torch.zeros(())
        loss = sum((self.weights[term] * value for term, value in values.items()), zero)
        return TermSums(loss, {term: value.detach() for term, value in values.items()})

    def _soft(self, term: str, student: AdaptedFeatures, teacher: AdaptedFeatures, examples: int) -> Tensor:
        labels = student.labels if self.soft.shift else (None,) * len(student.logits)
        values = [
            logit_mse(ours_NC, theirs_NC, denominator=examples)
            if term == "mse"
            else self.soft(ours_NC, theirs_NC, self.temperature, labels_N=labels_N, denominator=examples)
            for ours_NC, theirs_NC, labels_N in zip(student.logits, teacher.logits, labels, strict=True)
        ]
        return torch.stack(values).sum()

    def unfit(self, student: AdaptedFeatures, teacher: AdaptedFeatures | None) -> Iterator[str]:
        """Reasons why the terms cannot be computed from such features; the keys are those of `objective`."""
        if self.weights.get(LABEL) and not (student.losses or student.labels):
            yield "terms.label.weight: the student's adaptor returns neither labels nor losses; use 0"
        soft = next((term for term in ("ce", "mse") if self.weights.get(term)), None)
        if soft and teacher is not None:
            ours, theirs = ([tuple(logits.shape) for logits in side.logits] for side in (student, teacher))
            if not ours or ours != theirs:
                yield (
                    f"terms.{soft}.weight: the adaptors return logits of shapes {ours} of the student and {theirs} of "
                    "the teacher; they must be alike, or use 0"
                )
        if soft and self.soft.shift and not student.labels:
            yield "probability_shift=true: the student's adaptor returns no labels to shift by; use false"
        if self.matches is None or teacher is None:
            return
        for match in self.matches.matches:
            try:
                self.matches(match, student, teacher)
            except (ValueError, RuntimeError) as fault:
                yield f"matches: {match.term}: {' '.join(str(fault).split())}"


def states_of(feature: Tensor) -> Tensor:
    """A feature as (examples, positions, width).

    Args:
        feature: (examples, width) is one position; (examples, length, width) stays; (examples, channels, ...) of images
            has every place as a position.
    """
    if feature.ndim == 2:
        return feature[:, None]
    return feature if feature.ndim == 3 else feature.flatten(2).transpose(1, 2)


def _label(student: AdaptedFeatures, own: int) -> Tensor:
    """Summed over the examples of the micro-batch."""
    if student.losses:
        # A scalar is the micro-batch's mean.
        return torch.stack([loss.sum() if loss.ndim else loss * own for loss in student.losses]).sum()
    pairs = zip(student.logits, student.labels, strict=True)
    return torch.stack(
        [cross_entropy(logits, labels.long(), denominator=1) for logits, labels in pairs]
    ).sum()


def correct(features: AdaptedFeatures) -> tuple[int, int]:
    """How many labels a model meets, and how many there are; -100 is none."""
    met = seen = 0
    for logits_NC, labels_N in zip(features.logits, features.labels, strict=False):
        known_N = labels_N != IGNORED_LABEL
        met += int((logits_NC.argmax(-1) == labels_N)[known_N].sum())
        seen += int(known_N.sum())
    return met, seen


def agreeing(student: AdaptedFeatures, teacher: AdaptedFeatures) -> tuple[int, int]:
    """For how many predictions both models say the same label, and how many there are."""
    pairs = list(zip(student.logits, teacher.logits, strict=False))
    return sum(int((ours.argmax(-1) == theirs.argmax(-1)).sum()) for ours, theirs in pairs), sum(
        len(ours) for ours, _ in pairs
    )


def _found(features: AdaptedFeatures, match: Match, place: Any, key: str) -> Tensor:
    own = features.attention if match.feature == ATTENTION else features.hidden
    if place not in own:
        there = ", ".join(map(str, own)) or "none"
        raise ConfigError(
            f"{key}={place}: the adaptor returns no such {match.feature} feature; there are {there}"
        )
    least, what = (4, "(examples, heads, length, length)") if match.feature == ATTENTION else (2, "a width")
    if own[place].ndim < least:
        raise ConfigError(
            f"{key}={place}: the feature has shape {tuple(own[place].shape)}; it must have {what}"
        )
    return _state(features, match, place)


def _state(features: AdaptedFeatures, match: Match, place: Any) -> Tensor:
    return features.attention[place] if match.feature == ATTENTION else states_of(features.hidden[place])


def _mask(mask: Tensor | None, states: Tensor, is_attention: bool) -> Tensor:
    """(examples, positions); a feature of one position has nothing to mask."""
    length = states.shape[-1] if is_attention else states.shape[1]
    if mask is None or length == 1:
        return torch.ones(len(states), length, dtype=torch.bool, device=states.device)
    return mask.flatten(1)
