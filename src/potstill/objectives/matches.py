"""Intermediate matches: losses between features of a teacher and of the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import ConfigError, PairError
from potstill.losses.attention import attention_ce, attention_ce_mean, attention_mse, attention_mse_sum
from potstill.losses.hidden import cka, fsp, hidden_cosine, hidden_mse, nst, pkd
from potstill.losses.relations import relation_kl
from potstill.losses.transport import earth_movers_distance, layer_costs, transport_plan
from potstill.models.backbone import Backbone
from potstill.objectives.features import Features, Wanted, module_widths
from potstill.objectives.matching import (
    ATTENTION,
    BASE,
    COUNTERFACTUAL,
    EMD,
    HIDDEN,
    KEY,
    LOSSES,
    MODULE,
    PAIRS,
    RELATION,
    SEQUENCES,
    Match,
    Place,
    loss_of,
    width_error,
)
from potstill.objectives.own import EXAMPLES, own_loss, own_projection
from potstill.objectives.schedules import WeightSchedule
from potstill.runtime.dotted import is_path

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "hidden_mse": hidden_mse, "cos": hidden_cosine, "fsp": fsp, "nst": nst, "cka": cka, "attention_mse": attention_mse,
    "attention_mse_sum": attention_mse_sum, "attention_ce": attention_ce, "attention_ce_mean": attention_ce_mean,
}  # fmt: skip
_LETTERS = {"q": "query", "k": "key", "v": "value"}
ADDED_SCORE = -10000.0  # of padded keys, the additive mask of the models that the toolkit was written for
INITIAL_STD = 0.02  # of the weights of projections, as in TextBrewer


class Matches:
    """The matches of one objective, and their projections.

    The projections are parameters of the module that trains the student (`projections` is registered there): they are
    optimized and in checkpoints, but not part of the student.

    Args:
        matches: from `read_matches`.
        teachers: backbones, or the features of one batch of a user's own modules.
        student: as `teachers`.
        seed: seed of the weights of projections.

    Raises:
        ConfigError: a submodule or feature that does not exist, or two of unequal width without a projection.

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
        >>> matches.projections["last"].weight.shape, matches.wanted(None, matches.terms).hidden
        (torch.Size([16, 8]), frozenset({1}))
    """

    def __init__(
        self,
        matches: Sequence[Match],
        teachers: Sequence[Backbone | Features],
        student: Backbone | Features,
        *,
        seed: int,
    ):
        self.matches = tuple(matches)
        self.projections = nn.ModuleDict()
        # Learning rates in the order in which the optimizer gets the projections; None: that of the optimizer.
        self.rates: dict[str, float | None] = {}
        self._own: dict[str, Callable[..., Tensor]] = {}  # functions of the user's own, by their path
        generator = torch.Generator().manual_seed(seed)
        for number, match in enumerate(self.matches):
            key = f"{KEY}[{number}]"
            ours = _widths(student, match, match.student, f"{key}.student")
            theirs = _widths(teachers[match.teacher_index], match, match.teacher, f"{key}.teacher")
            any_width, own = loss_of(match.loss).any_width, is_path(match.loss)
            several = theirs if match.loss == EMD else max(ours, theirs, key=lambda widths: len({*widths}))
            if (match.projection or any_width) and not own and len({*several}) > 1:
                raise PairError(f"{key}: reads widths {ours} of the student and {theirs} of the teacher; one of each")
            if match.projection is not None:
                place = f"{key}.projection"
                projected = ours if match.loss == EMD else ours[:1]
                made = [_projection(place, match.projection, width, theirs[0], generator) for width in projected]
                self.projections[match.name] = nn.ModuleList(made) if match.loss == EMD else made[0]
                self.rates[match.name] = match.projection_lr
            elif not any_width:
                pairs = product(ours, theirs) if match.loss == EMD else zip(ours, theirs, strict=False)
                for width, other in pairs:
                    if width != other:
                        raise PairError(f"{key}.{width_error(match, width, other)}")
            if own:
                self._own[match.loss] = self._try(f"{key}.loss", match, student, teachers[match.teacher_index])

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms, in order."""
        return tuple(match.term for match in self.matches)

    @property
    def schedules(self) -> dict[str, WeightSchedule]:
        """Schedules of the weights that change."""
        return {
            match.term: WeightSchedule(match.schedule, match.weight, match.end or 0.0, match.steps, match.schedule_args)
            for match in self.matches
            if match.schedule != "constant"
        }

    @property
    def weights(self) -> dict[str, float]:
        """Highest weight of each term."""
        return {match.term: max(match.weight, match.end or 0.0) for match in self.matches}

    def counts(self, step: Any) -> dict[str, int]:
        """Denominator of each term in a whole step: tokens, pairs of tokens, or sequences."""
        units = {PAIRS: "pairs", SEQUENCES: "sequences"}
        return {match.term: getattr(step, units.get(match.over, "tokens")) for match in self.matches}

    def units(self, student: Features) -> dict[str, Tensor]:
        """Units of each term in one batch: kept positions, pairs of them, or sequences, as integers."""
        return {match.term: _units(match, _states(student, match, match.student)[0], student) for match in self.matches}

    def wanted(self, teacher: int | None, active: Sequence[str]) -> Wanted:
        """Features that the active terms read of a teacher (by its index) or of the student (None)."""
        hidden: set[Place] = set()
        causal: set[Any] = set()
        attention: set[Any] = set()
        relations: set[Any] = set()
        for match in self.matches:
            if match.term not in active or teacher not in (None, match.teacher_index):
                continue
            places = match.student if teacher is None else match.teacher
            if match.run == COUNTERFACTUAL:
                causal.update(places)
            elif match.feature == RELATION:
                relations |= {(block, part) for block in places for part in _parts(match)}
            else:
                (attention if match.feature == ATTENTION else hidden).update(places)
        return Wanted(frozenset(hidden), frozenset(causal), frozenset(attention), frozenset(relations))

    def __call__(
        self,
        student: Sequence[Features],
        teachers: Sequence[Sequence[Features]],
        denominators: Mapping[str, float],
        active: Sequence[str],
        run: str = BASE,
    ) -> dict[str, Tensor]:
        """Each active term's share of the step's mean, scalars with gradient.

        Args:
            student: features of each run over a micro-batch.
            teachers: the same for each teacher.
            denominators: by term, of the whole step.
            active: names of the terms that are computed.
            run: which runs the features are of; matches of other runs are not computed.
        """
        return {
            match.term: torch.stack(
                [
                    self._share(match, ours, theirs, denominators[match.term])
                    for ours, theirs in zip(student, teachers[match.teacher_index], strict=True)
                ]
            ).sum()
            for match in self.matches
            if match.term in active and match.run == run
        }

    def _share(self, match: Match, student: Features, teacher: Features, denominator: float) -> Tensor:
        ours, theirs = _states(student, match, match.student), _states(teacher, match, match.teacher)
        units, mask_BL = _units(match, ours[0], student), _mask(match, ours[0], student)
        ours = self._projected(match, ours)
        if match.loss in self._own:
            return self._own[match.loss](_sides(ours), _sides(theirs), mask=mask_BL) * units / denominator
        if match.published:
            (own,), (other,) = ([_with_added_mask(scores, mask_BL) for scores in side] for side in (ours, theirs))
            return _FUNCTIONS[match.loss](own, other, published=True) * units / denominator
        return _loss(match, ours, theirs, mask_BL, denominator)

    def _projected(self, match: Match, states: list[Tensor]) -> list[Tensor]:
        if match.name not in self.projections:
            return states
        made: Any = self.projections[match.name]
        each = made if match.loss == EMD else [made] * len(states)
        return [project(own) for project, own in zip(each, states, strict=True)]

    def _try(
        self, key: str, match: Match, student: Backbone | Features, teacher: Backbone | Features
    ) -> Callable[..., Tensor]:
        """The user's function of a match, after it was called with states of two sequences."""
        ours, theirs = _example(student, match, match.student), _example(teacher, match, match.teacher)
        with torch.no_grad():
            ours = self._projected(match, ours)
        if isinstance(student, Backbone):
            mask_BL: Tensor | None = torch.ones(ours[0].shape[0], 3, dtype=torch.bool)
        else:
            mask_BL = _mask(match, ours[0], student)
        return own_loss(key, match.loss, _sides(ours), _sides(theirs), mask=mask_BL)


def _mask(match: Match, states: Tensor, features: Features) -> Tensor | None:
    """The input mask of the student as (batch, length); None if all positions count."""
    if features.mask is None:
        return None
    mask_BL, length = features.mask.flatten(1), states.shape[-1 if match.feature == ATTENTION else 1]
    return None if length == 1 < mask_BL.shape[1] else mask_BL  # a feature of one position has nothing to mask


def _units(match: Match, states: Tensor, features: Features) -> Tensor:
    """Number of units of a match in a batch, an integer."""
    if match.over == SEQUENCES:
        return torch.tensor(len(states), device=states.device)
    mask_BL = _mask(match, states, features)
    if mask_BL is None:
        length = states.shape[-1 if match.feature == ATTENTION else 1]
        kept_B = torch.full((len(states),), length, device=states.device)
    else:
        kept_B = mask_BL.bool().sum(1)
    return (kept_B.square() if match.over == PAIRS else kept_B).sum()


def _with_added_mask(scores_BHLL: Tensor, mask_BL: Tensor | None) -> Tensor:
    """Scores with those of padded keys replaced, as far below all others as an additive mask puts them."""
    if mask_BL is None:
        return scores_BHLL
    return scores_BHLL.masked_fill(~mask_BL.bool()[:, None, None], ADDED_SCORE)


def _sides(states: list[Tensor]) -> Any:
    return states[0] if len(states) == 1 else states


def _example(model: Backbone | Features, match: Match, places: tuple[Place, ...]) -> list[Tensor]:
    """States of a match: those of an adaptor, or as many as a model's, of two sequences of three tokens."""
    if isinstance(model, Features):
        return [states.detach() for states in _states(model, match, places)]
    if match.feature == ATTENTION:
        return [torch.zeros(EXAMPLES, model.spec.heads, 3, 3)] * len(places)
    return [torch.zeros(EXAMPLES, 3, width) for width in _widths(model, match, places, match.name)]


def _loss(
    match: Match, ours: list[Tensor], theirs: list[Tensor], mask_BL: Tensor | None, denominator: float | None = None
) -> Tensor:
    """The loss of a match between states of the student and of the teacher; None divides by the units of the batch."""
    if match.feature == RELATION:
        keys = dict(zip(("student_keys_BLD", "teacher_keys_BLE"), (*ours[1:], *theirs[1:]), strict=False))
        return relation_kl(ours[0], theirs[0], mask_BL, heads=match.heads, denominator=denominator, **keys)
    if match.loss == EMD:
        assert denominator is not None
        function = attention_mse if match.feature == ATTENTION else hidden_mse
        costs = layer_costs(ours, theirs, partial(function, mask_BL=mask_BL, denominator=denominator))
        # The plan does not depend on the scale of the costs; those of a share may be too small for the solver.
        return earth_movers_distance(costs, transport_plan(costs.detach() * denominator))
    if match.loss == "pkd":
        return pkd(ours[0], theirs[0], denominator=denominator)
    two = LOSSES[match.loss].layers == 2
    sides: tuple[Any, Any] = (tuple(ours), tuple(theirs)) if two else (ours[0], theirs[0])
    return _FUNCTIONS[match.loss](*sides, mask_BL, denominator=denominator)


def _states(features: Features, match: Match, places: tuple[Place, ...]) -> list[Tensor]:
    if match.feature == RELATION:
        return [features.vectors[place, part] for place in places for part in _parts(match)]  # type: ignore[index]
    source = features.attention if match.feature == ATTENTION else features.hidden
    return [source[place] for place in places]


def _parts(match: Match) -> list[str]:
    """Vectors of a relation: `relation_qk` reads queries and keys, `relation_vv` values."""
    return [_LETTERS[letter] for letter in dict.fromkeys(match.loss.removeprefix("relation_"))]


def _widths(model: Backbone | Features, match: Match, places: tuple[Place, ...], key: str) -> list[int]:
    """Widths of the states that a match reads of one model; [] for attention and relations."""
    if isinstance(model, Features):
        what, found = (ATTENTION, model.attention) if match.feature == ATTENTION else (HIDDEN, model.hidden)
        for place in places:
            if place not in found:
                there = ", ".join(map(str, found)) or "none"
                raise ConfigError(f"{key}={place}: the adaptor returns no such {what} feature; there are {there}")
            if found[place].ndim != (4 if what == ATTENTION else 3):
                shape = "(examples, heads, length, length)" if what == ATTENTION else "(examples, ..., width)"
                raise ConfigError(f"{key}={place}: must have shape {shape}, not {tuple(found[place].shape)}")
        return [] if what == ATTENTION else [found[place].shape[-1] for place in places]
    if match.feature == MODULE:
        widths = module_widths(model, frozenset(map(str, places)), key.rpartition(".")[2])
        return [widths[str(place)] for place in places]
    return [model.width] * len(places) if match.feature == HIDDEN else []


def _projection(key: str, kind: str, width: int, target: int, generator: torch.Generator) -> nn.Module:
    if is_path(kind):
        return own_projection(key, kind, width, target, generator)
    linear = nn.Linear(width, target)
    nn.init.normal_(linear.weight, std=INITIAL_STD, generator=generator)
    nn.init.zeros_(linear.bias)
    if kind == "linear":
        return linear
    return nn.Sequential(linear, nn.ReLU() if kind == "relu" else nn.Tanh())
