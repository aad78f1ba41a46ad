"""Intermediate matches: losses between features of a teacher's and a student's runs, each read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import ConfigError
from potstill.losses.attention import attention_ce, attention_ce_mean, attention_mse, attention_mse_sum
from potstill.losses.hidden import fsp, hidden_cosine, hidden_mse, nst, pkd
from potstill.losses.relations import relation_kl
from potstill.losses.transport import earth_movers_distance, layer_costs, transport_plan
from potstill.models.backbone import Backbone
from potstill.objectives.features import Features, Wanted, module_widths, scores
from potstill.objectives.matching import (
    ATTENTION,
    EMD,
    HIDDEN,
    MODULE,
    PAIRS,
    RELATION,
    SEQUENCES,
    TWO_LAYERS,
    Match,
)
from potstill.objectives.schedules import Schedule, weight_schedule

_OF_ONE: dict[str, Callable[..., Tensor]] = {"hidden_mse": hidden_mse, "cos": hidden_cosine}
_OF_TWO: dict[str, Callable[..., Tensor]] = {"fsp": fsp, "nst": nst}
_OF_SCORES: dict[str, Callable[..., Tensor]] = {
    "attention_mse": attention_mse, "attention_mse_sum": attention_mse_sum, "attention_ce": attention_ce,
    "attention_ce_mean": attention_ce_mean,
}  # fmt: skip
_LETTERS = {"q": "query", "k": "key", "v": "value"}
INITIAL_STD = 0.02  # of a projection's weights, as the toolkit's


class MatchTerms:
    """The matches of one objective as terms: their weights, and what trains with the student.

    Args:
        matches: as they were read.
    """

    def __init__(self, matches: Sequence[Match]):
        self.matches = tuple(matches)
        self.projections = nn.ModuleDict()
        # In the order in which the optimizer gets them: those of one learning rate together.
        self.rates: dict[str, float | None] = {}

    def project(self, match: Match, width: int, target: int, generator: torch.Generator) -> None:
        """Give a match the projection that it asks for, from the student's width to the teacher's."""
        if match.projection is not None:
            self.projections[match.name] = _projection(match.projection, width, target, generator)
            self.rates[match.name] = match.projection_lr

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms, in order."""
        return tuple(match.term for match in self.matches)

    @property
    def schedules(self) -> dict[str, Schedule]:
        """Schedules of the matches whose weight changes."""
        return {
            match.term: weight_schedule(
                match.schedule, match.weight, match.end, match.steps, match.schedule_args
            )
            for match in self.matches
            if match.schedule != "constant"
        }

    @property
    def weights(self) -> dict[str, float]:
        """The highest weight of each term."""
        return {match.term: max(match.weight, match.end or 0.0) for match in self.matches}


class Matches(MatchTerms):
    """The matches of one objective, and their projections.

    The projections are parameters of the module that trains the student (`projections` is registered there): they are
    optimised and in checkpoints, but no part of the student.

    Args:
        matches: as read by `read_matches`.
        teachers: their backbones.
        student: its backbone.
        seed: of the projections' weights.

    Raises:
        ConfigError: a submodule that does not exist, or two of unequal width without a projection.

    Example:
        A student of width 8 whose block 1 is compared with block 4 of a teacher of width 16.

        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from potstill.models import backbone_of
        >>> from potstill.objectives import Match, Matches
        >>> teacher, student = (
        ...     backbone_of(BertForMaskedLM(BertConfig(vocab_size=50, hidden_size=width, num_hidden_layers=depth,
        ...                                            num_attention_heads=2, intermediate_size=16)))
        ...     for width, depth in ((16, 4), (8, 2))
        ... )
        >>> match = Match("last", "hidden", "hidden_mse", teacher=(4,), student=(1,), projection="linear")
        >>> matches = Matches([match], [teacher], student, seed=0)
        >>> matches.projections["last"].weight.shape, matches.wanted(None, matches.terms).layers
        (torch.Size([16, 8]), frozenset({1}))
    """

    def __init__(
        self, matches: Sequence[Match], teachers: Sequence[Backbone], student: Backbone, *, seed: int
    ):
        super().__init__(matches)
        self.heads = ([teacher.heads for teacher in teachers], student.heads)
        generator = torch.Generator().manual_seed(seed)
        for match in self.matches:
            sizes = _widths(match, teachers[match.teacher_index], student)
            self.project(match, *sizes, generator)
            if (
                match.projection is None
                and sizes[0] != sizes[1]
                and match.feature == MODULE
                and match.loss != "nst"
            ):
                raise ConfigError(
                    f"objective.matches: {match.term} compares widths {sizes[0]} of the student and {sizes[1]} of the "
                    "teacher; give projection=linear (or relu, tanh)"
                )

    def counts(self, step: Any) -> dict[str, int]:
        """Denominator of each term in a whole step: tokens, pairs of tokens, or sequences."""
        of = {PAIRS: step.pairs, SEQUENCES: step.sequences}
        return {match.term: of.get(match.over, step.tokens) for match in self.matches}

    def wanted(self, teacher: int | None, active: Sequence[str]) -> Wanted:
        """Features that the active terms read of a teacher (by its number) or of the student (None)."""
        layers: set[int] = set()
        vectors: set[tuple[int, str]] = set()
        modules: set[str] = set()
        for match in self.matches:
            if match.term not in active or teacher not in (None, match.teacher_index):
                continue
            places: Any = match.student if teacher is None else match.teacher
            if match.feature == HIDDEN:
                layers |= set(places)
            elif match.feature == MODULE:
                modules |= set(places)
            else:
                parts = ("query", "key") if match.feature == ATTENTION else _parts(match.loss)
                vectors |= {(block, part) for block in places for part in parts}
        return Wanted(frozenset(layers), frozenset(vectors), frozenset(modules))

    def __call__(
        self,
        student: Sequence[Features],
        teachers: Sequence[Sequence[Features]],
        masks: Sequence[Tensor],
        denominators: Mapping[str, float],
        active: Sequence[str],
    ) -> dict[str, Tensor]:
        """Each active term's share of the step's mean, scalars with gradient.

        Args:
            student: features of each base of a micro-batch.
            teachers: the same for each teacher.
            masks: (batch, length) of each base, nonzero where a token is.
            denominators: by term, of the whole step.
            active: names of the terms that are computed.
        """
        values = {}
        for match in self.matches:
            if match.term not in active:
                continue
            shares = [
                self._share(match, ours, theirs, mask, denominators[match.term])
                for ours, theirs, mask in zip(student, teachers[match.teacher_index], masks, strict=True)
            ]
            values[match.term] = torch.stack(shares).sum()
        return values

    def _share(
        self, match: Match, ours: Features, theirs: Features, mask_BL: Tensor, denominator: float
    ) -> Tensor:
        if match.feature == RELATION:
            return _relation(match, ours, theirs, mask_BL, denominator)
        heads = (self.heads[1], self.heads[0][match.teacher_index])
        student, teacher = (
            [_state(match, features, place, own) for place in places]
            for features, places, own in ((ours, match.student, heads[0]), (theirs, match.teacher, heads[1]))
        )
        if match.name in self.projections:
            project = self.projections[match.name]
            student = [project(states) for states in student]
        if match.loss == EMD:
            loss = attention_mse if match.feature == ATTENTION else hidden_mse
            costs = layer_costs(student, teacher, partial(loss, mask_BL=mask_BL, denominator=denominator))
            # The plan is that of costs of any scale; those of a share may be too small for the solver.
            return earth_movers_distance(costs, transport_plan(costs.detach() * denominator))
        if match.loss in TWO_LAYERS:
            return _OF_TWO[match.loss](tuple(student), tuple(teacher), mask_BL, denominator=denominator)
        if match.loss == "pkd":
            return pkd(student[0], teacher[0], denominator=denominator)
        losses = _OF_SCORES if match.feature == ATTENTION else _OF_ONE
        return losses[match.loss](student[0], teacher[0], mask_BL, denominator=denominator)


def _state(match: Match, features: Features, place: Any, heads: int) -> Tensor:
    if match.feature == ATTENTION:
        return scores(features.vectors[place, "query"], features.vectors[place, "key"], heads)
    return features.layers[place] if match.feature == HIDDEN else features.modules[place]


def _parts(loss: str) -> list[str]:
    """`relation_qk` reads queries and keys."""
    return [_LETTERS[letter] for letter in loss.removeprefix("relation_")]


def _relation(match: Match, ours: Features, theirs: Features, mask_BL: Tensor, denominator: float) -> Tensor:
    first, second = _parts(match.loss)
    keys = {}
    if first != second:
        keys = {
            "student_keys_BLD": ours.vectors[match.student[0], second],  # type: ignore[index]
            "teacher_keys_BLE": theirs.vectors[match.teacher[0], second],  # type: ignore[index]
        }
    return relation_kl(
        ours.vectors[match.student[0], first],  # type: ignore[index]
        theirs.vectors[match.teacher[0], first],  # type: ignore[index]
        mask_BL,
        heads=match.heads,
        denominator=denominator,
        **keys,
    )


def _widths(match: Match, teacher: Backbone, student: Backbone) -> tuple[int, int]:
    """Widths of the student's states and of the teacher's."""
    if match.feature != MODULE:
        return student.width, teacher.width
    found = []
    for side, backbone, places in (("student", student, match.student), ("teacher", teacher, match.teacher)):
        widths = set(module_widths(backbone, frozenset(map(str, places)), side).values())
        if len(widths) > 1:
            raise ConfigError(f"objective.matches: {match.term} reads widths {sorted(widths)} of the {side}")
        found.append(widths.pop())
    return found[0], found[1]


def _projection(kind: str, width: int, target: int, generator: torch.Generator) -> nn.Module:
    linear = nn.Linear(width, target)
    nn.init.normal_(linear.weight, std=INITIAL_STD, generator=generator)
    nn.init.zeros_(linear.bias)
    if kind == "linear":
        return linear
    return nn.Sequential(linear, nn.ReLU() if kind == "relu" else nn.Tanh())
