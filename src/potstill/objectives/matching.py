"""Matches as they are configured: which features of teacher and student are compared, and by which loss.

A layer is a number as in TextBrewer. Of hidden states 0 is the output of the embeddings and k the output of block k,
counted from 1 (the last one after the final norm, if there is one). Of attention and relations k is block k.

Nothing here imports torch, so an invalid match is rejected before anything is loaded.

Source: Yang et al. 2020 (TextBrewer, arXiv:2002.12620), section 3, intermediate matches and their presets.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from potstill.errors import ConfigError, KeyNameError, PackageError, PairError
from potstill.models.specs import ModelSpec
from potstill.objectives.presets import EXAMPLE, preset_matches
from potstill.objectives.schedules import schedule_problem
from potstill.runtime.dotted import is_path
from potstill.runtime.ranges import LEARNING_RATE, WEIGHT, WHOLE, Range

KEY = "objective.matches"
HIDDEN, ATTENTION, RELATION, MODULE = "hidden", "attention", "relation", "module"
POSITIONS, PAIRS, SEQUENCES = "positions", "pairs", "sequences"
EMD, ALL = "emd", "all"
BASE, COUNTERFACTUAL = RUNS = "base", "counterfactual"


@dataclass(frozen=True)
class MatchLoss:
    """Properties of a loss that decide what it can compare.

    Attributes:
        features: kinds of features.
        over: units of the mean.
        layers: number of layers of each model; 0 for any number.
        any_width: whether states may differ in width.
        of_other_heads: the loss for models with different numbers of attention heads; None: this one.
        custom: whether features of a user's own modules can be compared.
    """

    features: tuple[str, ...]
    over: str = POSITIONS
    layers: int = 1
    any_width: bool = False
    of_other_heads: str | None = None
    custom: bool = True


_STATES = (HIDDEN, MODULE)
_OWN = MatchLoss((HIDDEN, MODULE, ATTENTION), layers=0, any_width=True)
LOSSES = {
    "hidden_mse": MatchLoss(_STATES),
    "cos": MatchLoss(_STATES),
    "pkd": MatchLoss(_STATES, SEQUENCES),
    "fsp": MatchLoss(_STATES, SEQUENCES, layers=2),
    "nst": MatchLoss(_STATES, PAIRS, layers=2, any_width=True),
    "cka": MatchLoss(_STATES, SEQUENCES, any_width=True),
    EMD: MatchLoss((HIDDEN, ATTENTION), layers=0, of_other_heads="attention_mse_sum"),
    "attention_mse": MatchLoss((ATTENTION,), PAIRS, of_other_heads="attention_mse_sum"),
    "attention_mse_sum": MatchLoss((ATTENTION,), PAIRS),
    "attention_ce": MatchLoss((ATTENTION,), of_other_heads="attention_ce_mean"),
    "attention_ce_mean": MatchLoss((ATTENTION,)),
    **{f"relation_{letters}": MatchLoss((RELATION,), custom=False) for letters in ("qq", "kk", "vv", "qk")},
}
PROJECTIONS = ("linear", "relu", "tanh")
# Names of the published code.
_PUBLISHED_LOSSES = {"mmd": "nst", "gram": "fsp"}
_KEYS = (
    "name", "teacher", "student", "feature", "loss", "weight", "projection", "projection_lr", "schedule", "end",
    "steps", "schedule_args", "published", "teacher_index",
)  # fmt: skip
_MODEL_KEYS = ("module", "heads", "run")
_NESTED = ("teacher", "student", "module", "schedule_args")

Place = int | str


@dataclass(frozen=True)
class Match:
    """One comparison between features of a teacher and of the student.

    Attributes:
        name: the term is `match_<name>`.
        feature: `hidden`, `attention`, `relation` or `module`.
        loss: a loss of `LOSSES` for the feature; or the dotted path of a function of student states, teacher states
            and `mask` (batch, length) that returns a mean. States are a tensor, or a list for several layers.
        teacher: layers, or names of submodules; two for `fsp` and `nst`, any number for `emd`, one for the others.
        student: as `teacher`.
        weight: weight of the term at the first step.
        projection: `linear`, `relu` or `tanh`, or the dotted path of a function of both widths that returns a module:
            makes the student's states as wide as the teacher's; None for none. `emd` has one per layer of the student.
        projection_lr: learning rate of the projection; None: that of the optimizer.
        heads: relation heads.
        teacher_index: index of the teacher, from 0.
        schedule: schedule of the weight: `constant`, `linear`, `cosine`, or one of `TORCH_SCHEDULES`.
        end: last weight of `linear` and `cosine`.
        steps: optimizer steps until `end`.
        schedule_args: arguments of a torch schedule.
        run: `base`, or `counterfactual`: the states after the intervention of the objective.
        published: the toolkit's rule of attention without an input mask: scores at or below -1e-3 count as masked, and
            the mean is over all positions of a batch, padding included; batches weigh by their sequences.

    Example:
        >>> from potstill.objectives import Match
        >>> match = Match("last", feature="hidden", loss="hidden_mse", teacher=(12,), student=(3,))
        >>> match.term, match.over
        ('match_last', 'positions')
    """

    name: str
    feature: str
    loss: str
    teacher: tuple[Place, ...]
    student: tuple[Place, ...]
    weight: float = 1.0
    projection: str | None = None
    projection_lr: float | None = None
    heads: int = 1
    teacher_index: int = 0
    schedule: str = "constant"
    end: float | None = None
    steps: int = 0
    schedule_args: Mapping[str, Any] = field(default_factory=dict)
    run: str = BASE
    published: bool = False

    @property
    def term(self) -> str:
        """Name of the term."""
        return f"match_{self.name}"

    @property
    def over(self) -> str:
        """Units of the mean: `positions`, `pairs` of positions, or `sequences`."""
        if self.published:
            return SEQUENCES
        return PAIRS if self.loss == EMD and self.feature == ATTENTION else loss_of(self.loss).over


def loss_of(name: str) -> MatchLoss:
    """Properties of a loss, or of a function of the user's own."""
    return _OWN if is_path(name) else LOSSES[name]


def read_matches(
    value: Any, teachers: Sequence[ModelSpec | None] = (None,), student: ModelSpec | None = None, key: str = KEY
) -> tuple[Match, ...]:
    """Read matches, and check them against the sizes of the models.

    Args:
        value: name of a preset, an entry, or a list of both; None for no matches.
        teachers: sizes of each teacher; None for a user's own module.
        student: sizes of the student; None: the models are a user's own modules. Then `teacher` and `student` of an
            entry are indices from 0 in the features that an adaptor returns, or their names; there are no presets.
        key: configuration key for messages.

    Raises:
        ConfigError: an unknown name or key, a layer that does not exist, or features that cannot be compared.

    Example:
        >>> from potstill.objectives import read_matches
        >>> from potstill.models.specs import spec_from_settings
        >>> sizes = {"model_type": "bert", "vocab_size": 100, "hidden_size": 768, "num_attention_heads": 12}
        >>> teacher, student = (spec_from_settings({**sizes, "num_hidden_layers": n}, "BERT") for n in (12, 3))
        >>> [match.teacher for match in read_matches("L3_hidden_mse", [teacher], student)]
        [(0,), (4,), (8,), (12,)]
        >>> read_matches({"teacher": 12, "student": 3, "loss": "cos"}, [teacher], student)[0].term
        'match_0'
    """
    written: list[Any] = []
    for entry in [] if value is None else value if isinstance(value, list | tuple) else [value]:
        if isinstance(entry, str) and student is not None and teachers[0] is not None:
            written += preset_matches(entry, teachers[0], student, key)
        else:
            written.append(entry)
    matches = tuple(
        _read(entry, str(number), teachers, student, f"{key}[{number}]") for number, entry in enumerate(written)
    )
    names = [match.name for match in matches]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{key}: two matches have the name {twice}; the names must differ")
    return matches


def _read(entry: Any, name: str, teachers: Sequence[ModelSpec | None], student: ModelSpec | None, key: str) -> Match:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{key}={entry}: not a match, such as {EXAMPLE}")
    known = _KEYS if student is None else (*_KEYS, *_MODEL_KEYS)
    if unknown := next((own for own in entry if own not in known), None):
        raise KeyNameError(f"{key}.{unknown}={entry[unknown]}: no such key; one of {', '.join(known)}")
    given = {own: value for own, value in entry.items() if value is not None}
    for own, value in given.items():
        if own not in _NESTED and isinstance(value, list | tuple | Mapping):
            raise ConfigError(f"{key}.{own}={value}: must be a single value")
    feature, loss = _feature(given, key, student is None)
    index = _number(given, "teacher_index", 0, key, WHOLE)
    if index >= len(teachers):
        raise ConfigError(f"{key}.teacher_index={index}: the teachers are 0 to {len(teachers) - 1}")
    teacher = teachers[index]
    match = Match(
        name=str(given.get("name", name)),
        feature=feature,
        loss=loss,
        teacher=_places(given, "teacher", feature, loss, teacher, key),
        student=_places(given, "student", feature, loss, student, key),
        weight=_number(given, "weight", 1.0, key, WEIGHT),
        projection=given.get("projection"),
        projection_lr=_number(given, "projection_lr", None, key, LEARNING_RATE),
        heads=_number(given, "heads", 1 if teacher is None else teacher.heads, key, WHOLE),
        teacher_index=index,
        schedule=given.get("schedule", "constant"),
        end=_number(given, "end", None, key, WEIGHT),
        steps=_number(given, "steps", 0, key, WHOLE),
        schedule_args=given.get("schedule_args") or {},
        run=given.get("run", BASE),
        published=given.get("published", False),
    )
    if not re.fullmatch(r"\w+", match.name):
        raise ConfigError(f"{key}.name={match.name}: only letters, digits and _ are valid in the name of a term")
    if error := schedule_problem(match.schedule, match.end, match.steps, match.schedule_args):
        raise ConfigError(f"{key}.{error}")
    _check_projection(match, key)
    _check_run(match, key)
    _check_published(match, key)
    if match.loss == EMD and importlib.util.find_spec("ot") is None:
        raise PackageError(f"{key}.loss=emd: POT is not installed; pip install 'potstill[emd]'")
    if teacher is not None and student is not None:
        _check_sizes(match, teacher, student, key)
    return match


def _feature(given: Mapping[str, Any], key: str, custom: bool) -> tuple[str, str]:
    """Feature and loss of an entry; the feature is that of the loss if it is not given."""
    usable = {name: loss for name, loss in LOSSES.items() if loss.custom or not custom}
    loss = _PUBLISHED_LOSSES.get(given.get("loss"), given.get("loss"))  # type: ignore[arg-type]
    if loss is None:
        raise ConfigError(f"{key}.loss=null: one of {', '.join(usable)}")
    usable |= {loss: _OWN} if is_path(loss) else {}
    default = MODULE if "module" in given else LOSSES[loss].features[0] if loss in LOSSES else HIDDEN
    feature = given.get("feature", default)
    features = dict.fromkeys(feature for own in usable.values() for feature in own.features)
    if feature not in features:
        raise ConfigError(f"{key}.feature={feature}: one of {', '.join(features)}")
    of_feature = [name for name, own in usable.items() if feature in own.features]
    if loss not in of_feature:
        raise ConfigError(
            f"{key}.loss={loss}: must be one of {', '.join(of_feature)} for feature={feature}, or a dotted path"
        )
    if (feature == MODULE) != ("module" in given):
        raise ConfigError(
            f"{key}.module={given.get('module', 'null')}: feature=module needs the name of a submodule, other "
            "features have none"
        )
    return feature, loss


def _places(
    given: Mapping[str, Any], side: str, feature: str, loss: str, spec: ModelSpec | None, key: str
) -> tuple[Place, ...]:
    """Layers of a model, names of its submodules, or places in the features that an adaptor returns."""
    name, value = side, given.get(side, ALL if loss == EMD else None)
    is_valid: Callable[[Any], bool]
    if spec is None:
        valid = "an index from 0 in the features that the adaptor returns, or a name"
        is_valid = lambda place: place in WHOLE or (isinstance(place, str) and place != "")  # noqa: E731
    elif feature == MODULE:
        own = given["module"]
        name, value = "module", own.get(side) if isinstance(own, Mapping) else own
        valid = "a name such as encoder.layer.3.output, or {teacher: <name>, student: <name>}, instead of layers"
        is_valid = lambda place: isinstance(place, str) and place != "" and side not in given  # noqa: E731
    elif value == ALL and loss == EMD:
        return tuple(range(1, spec.depth + 1))
    else:
        layers = Range(0 if feature == HIDDEN else 1, spec.depth, whole=True)
        valid = f"a layer of the {side}, {layers} (k for block k, 0 for the embeddings)"
        is_valid = layers.__contains__
    places = tuple(value) if isinstance(value, list | tuple) else (value,)
    problem = f"{key}.{name}={'null' if value is None else value}"
    if not all(map(is_valid, places)):
        raise ConfigError(f"{problem}: must be {valid}")
    wanted = loss_of(loss).layers
    if len(places) != wanted if wanted else not places:
        count = "two, [k,k] to compare one with itself" if wanted == 2 else "one" if wanted else "one or more"
        raise ConfigError(f"{problem}: the number of features that {loss} compares is {count}")
    return places


def _check_projection(match: Match, key: str) -> None:
    if match.projection is None:
        if match.projection_lr is not None:
            raise ConfigError(f"{key}.projection_lr={match.projection_lr}: needs projection=linear, relu or tanh")
        return
    if match.projection not in PROJECTIONS and not is_path(match.projection):
        raise ConfigError(
            f"{key}.projection={match.projection}: one of {', '.join(PROJECTIONS)}, a dotted path, or null"
        )
    if match.feature not in _STATES:
        raise ConfigError(f"{key}.projection={match.projection}: {match.feature} has no width to project; use null")


def _check_run(match: Match, key: str) -> None:
    if match.run not in RUNS:
        raise ConfigError(f"{key}.run={match.run}: one of {', '.join(RUNS)}")
    if match.run == COUNTERFACTUAL and (match.feature != HIDDEN or match.teacher_index):
        raise ConfigError(
            f"{key}.run=counterfactual: reads hidden states of the first teacher alone; use feature=hidden and "
            "teacher_index=0, or run=base"
        )


def _check_published(match: Match, key: str) -> None:
    able = [name for name, loss in LOSSES.items() if loss.features == (ATTENTION,)]
    if not isinstance(match.published, bool) or (match.published and match.loss not in able):
        raise ConfigError(
            f"{key}.published={match.published}: true or false, and true for loss={', '.join(able)} alone; "
            f"loss={match.loss}"
        )


def _check_sizes(match: Match, teacher: ModelSpec, student: ModelSpec, key: str) -> None:
    if error := next(_size_errors(match, teacher, student), None):
        raise PairError(f"{key}.{error}")


def _size_errors(match: Match, teacher: ModelSpec, student: ModelSpec) -> Iterator[str]:
    """Reasons why two features cannot be compared, as far as the sizes of the models show."""
    loss = loss_of(match.loss)
    if match.feature == HIDDEN and not loss.any_width and match.projection is None and teacher.width != student.width:
        yield width_error(match, student.width, teacher.width)
    for side, spec in (("teacher", teacher), ("student", student)):
        if match.feature not in _STATES and not spec.has_scores:
            yield (
                f"feature={match.feature}: the {side} ({spec.model_type}) has no bidirectional attention of all tokens "
                "whose scores are products of queries and keys; match its hidden states"
            )
        if match.feature == RELATION and (match.heads < 1 or spec.width % match.heads):
            yield f"heads={match.heads}: does not divide the {side}'s width {spec.width}; use a divisor of both widths"
    if match.feature == ATTENTION and loss.of_other_heads and teacher.heads != student.heads:
        yield (
            f"loss={match.loss}: the student has {student.heads} attention heads, the teacher {teacher.heads}; use "
            f"{loss.of_other_heads}"
        )


def width_error(match: Match, student: int, teacher: int) -> str:
    """Error of a match between states of different widths."""
    return (
        f"loss={match.loss}: the student's states are {student} wide, the teacher's {teacher}; add "
        "projection=linear (or relu, tanh)"
    )


def _number(given: Mapping[str, Any], name: str, default: float | None, key: str, allowed: Range) -> Any:
    """A number of an entry, or the default."""
    value = given.get(name, default)
    if value is None or value in allowed:
        return value
    raise ConfigError(f"{key}.{name}={value}: {allowed}")
