"""Intermediate matches as they are written: which features of teacher and student are compared, and how.

A layer is a number as the toolkit has it: of hidden states 0 is the embeddings' output and k the output of block k,
counted from 1 (the last one after the final norm, where there is one); of attention and relations k is block k. Nothing
here imports torch, so an invalid match is rejected immediately.

Source: Yang et al. 2020 (TextBrewer, arXiv:2002.12620), section 3, intermediate matches and their presets.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from potstill.errors import ConfigError
from potstill.models.specs import ModelSpec
from potstill.runtime.ranges import LEARNING_RATE, WEIGHT, WHOLE, Range

KEY = "objective.matches"
HIDDEN, ATTENTION, RELATION, MODULE = "hidden", "attention", "relation", "module"
EMD, ALL = "emd", "all"
TWO_LAYERS = ("fsp", "nst")
# The denominator of a loss, and whether it takes models of unequal width or of unequal numbers of heads.
POSITIONS, PAIRS, SEQUENCES = "positions", "pairs", "sequences"
_ON_STATES = ("hidden_mse", "cos", "pkd", "fsp", "nst", EMD)
LOSSES: dict[str, tuple[str, ...]] = {
    HIDDEN: _ON_STATES,
    ATTENTION: ("attention_mse", "attention_mse_sum", "attention_ce", "attention_ce_mean", EMD),
    RELATION: ("relation_qq", "relation_kk", "relation_vv", "relation_qk"),
    MODULE: ("hidden_mse", "cos", "pkd", "fsp", "nst"),
}
_SAME_HEADS = {
    "attention_mse": "attention_mse_sum", "attention_ce": "attention_ce_mean", EMD: "attention_mse_sum",
}  # fmt: skip
_OVER = {"pkd": SEQUENCES, "fsp": SEQUENCES, "nst": PAIRS, "attention_mse": PAIRS, "attention_mse_sum": PAIRS}
PROJECTIONS = ("linear", "relu", "tanh")
SCHEDULES = ("constant", "linear", "cosine")
# Of torch.optim.lr_scheduler: those that need no function, metric or known end.
TORCH_SCHEDULES = (
    "StepLR", "MultiStepLR", "ConstantLR", "LinearLR", "ExponentialLR", "PolynomialLR", "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
)  # fmt: skip
# Student layers that are matched, and whether the published student is narrower than its teacher.
_PRESETS = {
    "L3": ((0, 1, 2, 3), 3, False),
    "L3_small": ((0, 1, 2, 3), 3, True),
    "L4_tiny": ((0, 1, 2, 3, 4), 4, True),
    "L6": ((0, 1, 2, 3, 4, 5, 6), 6, False),
    "L12_nano": ((0, 2, 4, 6, 8, 10, 12), 12, True),
}
_FORMS = ("hidden_mse", "nst")
_KEYS = (
    "name", "teacher", "student", "feature", "loss", "weight", "projection", "projection_lr", "module", "heads",
    "teacher_index", "schedule", "end", "steps", "schedule_args",
)  # fmt: skip
_NESTED = ("teacher", "student", "module", "schedule_args")
EXAMPLE = "[{teacher: 12, student: 3, loss: hidden_mse}]"

Place = int | str


@dataclass(frozen=True)
class Match:
    """One comparison.

    Attributes:
        name: the term is `match_<name>`.
        feature: `hidden`, `attention`, `relation` or `module`.
        loss: one of `LOSSES` of the feature.
        teacher: layers, or names of submodules; two of `fsp` and `nst`, any number of `emd`, one of the others.
        student: as `teacher`.
        weight: of the term, at the first step.
        projection: what makes the student's states as wide as the teacher's; None where nothing does.
        projection_lr: its learning rate; None: the optimizer's.
        heads: relation heads.
        teacher_index: which of several teachers, from 0.
        schedule: of the weight: `constant`, `linear` or `cosine`, or one of `TORCH_SCHEDULES`.
        end: the weight that linear and cosine go to.
        steps: optimizer steps until then.
        schedule_args: arguments of a torch schedule.

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

    @property
    def schedule_fault(self) -> str | None:
        """Error of the schedule of the weight; None if it is valid."""
        return schedule_fault(self.schedule, self.end, self.steps, self.schedule_args)

    @property
    def term(self) -> str:
        """Name of the term."""
        return f"match_{self.name}"

    @property
    def over(self) -> str:
        """Units of the mean: `positions`, `pairs` of positions, or `sequences`."""
        if self.loss == EMD:
            return PAIRS if self.feature == ATTENTION else POSITIONS
        return _OVER.get(self.loss, POSITIONS)


def preset_names() -> list[str]:
    """Every name that `objective.matches` takes: a student's, with both forms or with one of them."""
    return [name + end for name in _PRESETS for end in ("", *(f"_{form}" for form in _FORMS))]


def read_matches(
    value: Any, teachers: Sequence[ModelSpec], student: ModelSpec, key: str = KEY
) -> tuple[Match, ...]:
    """Read matches, and check them against the models' sizes.

    Args:
        value: a preset's name, an entry, or a list of both; None: none.
        teachers: facts of each.
        student: its facts.
        key: for messages.

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
    entries = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    written: list[Mapping[str, Any]] = []
    for entry in entries:
        written += _preset(entry, teachers[0], student, key) if isinstance(entry, str) else [entry]
    matches = tuple(
        _read(entry, str(number), teachers, student, f"{key}[{number}]")
        for number, entry in enumerate(written)
    )
    names = [match.name for match in matches]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{key}: two matches have the name {twice}; give each its own")
    return matches


def _preset(name: str, teacher: ModelSpec, student: ModelSpec, key: str) -> list[dict[str, Any]]:
    """A published list, its teacher's layers moved to where this teacher has them."""
    if name not in preset_names():
        raise ConfigError(f"{key}={name}: one of {', '.join(preset_names())}, or a list {EXAMPLE}")
    base = next(known for known in sorted(_PRESETS, key=len, reverse=True) if name.startswith(known))
    layers, depth, narrow = _PRESETS[base]
    if student.depth != depth:
        raise ConfigError(f"{key}={name}: is for a student of {depth} blocks; this one has {student.depth}")
    if teacher.depth < depth:
        raise ConfigError(
            f"{key}={name}: needs a teacher of {depth} blocks or more; this one has {teacher.depth}"
        )
    forms = [form for form in _FORMS if name in (base, f"{base}_{form}")]
    projection = "linear" if narrow or teacher.width != student.width else None
    return [
        {
            "name": f"{form}_{layer}",
            "teacher": [round(layer * teacher.depth / depth)] * (2 if form == "nst" else 1),
            "student": [layer] * (2 if form == "nst" else 1),
            "loss": form,
            "projection": projection if form == "hidden_mse" else None,
        }
        for form in forms
        for layer in layers
    ]


def _read(entry: Any, name: str, teachers: Sequence[ModelSpec], student: ModelSpec, key: str) -> Match:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{key}={entry}: not a match; write {EXAMPLE}")
    if unknown := next((own for own in entry if own not in _KEYS), None):
        raise ConfigError(f"{key}.{unknown}={entry[unknown]}: no such key; one of {', '.join(_KEYS)}")
    given = {own: value for own, value in entry.items() if value is not None}
    check_scalars(given, key)
    feature, loss = _feature(given, key)
    index = number_in(given, "teacher_index", 0, key, WHOLE)
    if index >= len(teachers):
        raise ConfigError(f"{key}.teacher_index={index}: the teachers are 0 to {len(teachers) - 1}")
    teacher = teachers[index]
    places = dict(_places(given, feature, loss, {"teacher": teacher, "student": student}, key))
    match = Match(
        name=str(given.get("name", name)),
        feature=feature,
        loss=loss,
        teacher=places["teacher"],
        student=places["student"],
        weight=number_in(given, "weight", 1.0, key, WEIGHT),
        projection=given.get("projection"),
        projection_lr=number_in(given, "projection_lr", None, key, LEARNING_RATE),
        heads=number_in(given, "heads", teacher.heads, key, WHOLE),
        teacher_index=index,
        **schedule_of(given, key),
    )
    if not re.fullmatch(r"\w+", match.name):
        raise ConfigError(f"{key}.name={match.name}: letters, digits and _ only; a term is called so")
    if fault := next(_unfit(match, teacher, student), None) or match.schedule_fault:
        raise ConfigError(f"{key}.{fault}")
    return match


def _feature(given: Mapping[str, Any], key: str) -> tuple[str, str]:
    loss = given.get("loss")
    if loss is None:
        raise ConfigError(f"{key}.loss=null: one of {', '.join(dict.fromkeys(sum(LOSSES.values(), ())))}")
    feature = given.get("feature")
    if feature is None:
        feature = (
            MODULE if "module" in given else next((own for own in LOSSES if loss in LOSSES[own]), HIDDEN)
        )
    if feature not in LOSSES:
        raise ConfigError(f"{key}.feature={feature}: one of {', '.join(LOSSES)}")
    if loss not in LOSSES[feature]:
        raise ConfigError(f"{key}.loss={loss}: of feature={feature} one of {', '.join(LOSSES[feature])}")
    if (feature == MODULE) != ("module" in given):
        raise ConfigError(
            f"{key}.module={given.get('module', 'null')}: feature=module takes a submodule's "
            "name, and nothing else does"
        )
    return feature, loss


def _places(
    given: Mapping[str, Any], feature: str, loss: str, specs: Mapping[str, ModelSpec], key: str
) -> Iterator[tuple[str, tuple[Place, ...]]]:
    """Layers of either model, or names of submodules."""
    for side, spec in specs.items():
        if feature == MODULE:
            own = given["module"]
            own = own.get(side) if isinstance(own, Mapping) else own
            names = list(own) if isinstance(own, list | tuple) else [own]
            if side in given or not all(isinstance(name, str) and name for name in names):
                raise ConfigError(
                    f"{key}.module={given['module']}: a name such as encoder.layer.3.output, or "
                    "{teacher: <name>, student: <name>}, in place of layers"
                )
            yield side, _counted(tuple(map(str, names)), loss, f"{key}.module={own}")
            continue
        first = 0 if feature == HIDDEN else 1
        value = given.get(side, ALL if loss == EMD else None)
        if value is None:
            raise ConfigError(f"{key}.{side}=null: a layer, {first} to {spec.depth}")
        if value == ALL and loss == EMD:
            yield side, tuple(range(1, spec.depth + 1))
            continue
        layers = list(value) if isinstance(value, list | tuple) else [value]
        for layer in layers:
            if isinstance(layer, bool) or not isinstance(layer, int) or not first <= layer <= spec.depth:
                what = "0 are the embeddings, " if feature == HIDDEN else ""
                raise ConfigError(
                    f"{key}.{side}={value}: the {side} has the layers {first} to {spec.depth} ({what}k is block k)"
                )
        yield side, _counted(tuple(layers), loss, f"{key}.{side}={value}")


def _counted(places: tuple[Place, ...], loss: str, said: str) -> tuple[Place, ...]:
    wanted = 2 if loss in TWO_LAYERS else 1
    if loss == EMD and places:
        return places
    if len(places) != wanted:
        how = "two layers, [k,k] for one with itself" if wanted == 2 else "one layer"
        raise ConfigError(f"{said}: {loss} compares {how}")
    return places


def _unfit(match: Match, teacher: ModelSpec, student: ModelSpec) -> Iterator[str]:
    """Reasons why two features cannot be compared, as far as the models' sizes say."""
    states = match.feature in (HIDDEN, MODULE)
    yield from _unfit_projection(match, states)
    compared = match.feature == HIDDEN and match.loss != "nst" and match.projection is None
    if compared and teacher.width != student.width:
        yield (
            f"loss={match.loss}: the student's states are {student.width} wide, the teacher's {teacher.width}; "
            "give projection=linear (or relu, tanh)"
        )
    for side, spec in (("teacher", teacher), ("student", student)):
        if not states and not spec.has_scores:
            yield (
                f"feature={match.feature}: the {side} ({spec.model_type}) has no bidirectional attention to read; "
                "match its hidden states"
            )
        if match.feature == RELATION and (match.heads < 1 or spec.width % match.heads):
            yield f"heads={match.heads}: does not divide the {side}'s width {spec.width}; give a divisor of both"
    if match.feature == ATTENTION and match.loss in _SAME_HEADS and teacher.heads != student.heads:
        yield (
            f"loss={match.loss}: the student has {student.heads} attention heads, the teacher {teacher.heads}; use "
            f"{_SAME_HEADS[match.loss]}"
        )
    if match.loss == EMD and importlib.util.find_spec("ot") is None:
        yield "loss=emd: POT is not installed; pip install 'potstill[emd]'"


def _unfit_projection(match: Match, states: bool) -> Iterator[str]:
    if match.projection is not None and match.projection not in PROJECTIONS:
        yield f"projection={match.projection}: one of {', '.join(PROJECTIONS)}, or null"
    if match.projection is not None and not states:
        yield f"projection={match.projection}: {match.feature} has no width to project; leave it out"
    if match.projection_lr is not None and match.projection is None:
        yield f"projection_lr={match.projection_lr}: there is no projection; give projection=linear"


def schedule_of(given: Mapping[str, Any], key: str) -> dict[str, Any]:
    """How the weight of an entry changes, as the fields of a `Match`.

    Raises:
        ConfigError: an invalid `end` or `steps`.
    """
    return {
        "schedule": given.get("schedule", "constant"),
        "end": number_in(given, "end", None, key, WEIGHT),
        "steps": number_in(given, "steps", 0, key, WHOLE),
        "schedule_args": given.get("schedule_args") or {},
    }


def schedule_fault(schedule: str, end: float | None, steps: int, arguments: Any) -> str | None:
    """Error of the schedule of a weight; None if it is valid."""
    if schedule in TORCH_SCHEDULES:
        return _torch_schedule_fault(schedule, end, steps, arguments)
    if schedule not in SCHEDULES:
        return f"schedule={schedule}: one of {', '.join(SCHEDULES + TORCH_SCHEDULES)}"
    if arguments:
        return f"schedule_args={arguments}: schedule={schedule} takes none; torch's do, such as ExponentialLR"
    if schedule == "constant":
        if end is not None or steps:
            return f"schedule=constant: keeps its weight, without end={end} and steps={steps}; use linear or cosine"
        return None
    if end is None:
        return f"end=null: schedule={schedule} needs the weight that it goes to"
    return f"steps={steps}: schedule={schedule} needs 1 or more" if steps < 1 else None


def _torch_schedule_fault(schedule: str, end: float | None, steps: int, arguments: Any) -> str | None:
    if end is not None or steps:
        return f"end={end}, steps={steps}: schedule={schedule} takes schedule_args={{...}} instead"
    if not isinstance(arguments, Mapping):
        return f"schedule_args={arguments}: the arguments of torch's {schedule} by name"
    from potstill.objectives.schedules import TorchSchedule

    if wrong := [name for name, value in arguments.items() if not _moves(value)]:
        return f"schedule_args.{wrong[0]}={arguments[wrong[0]]}: a number, 0 or more, or a list of them"
    try:
        TorchSchedule(schedule, 1.0, arguments)(1)
    except ConfigError as fault:
        return str(fault)
    return None


def _moves(value: Any) -> bool:
    """Whether an argument of a schedule keeps a weight finite and above 0."""
    return all(
        n in WEIGHT or isinstance(n, bool) for n in (value if isinstance(value, list | tuple) else [value])
    )


def number_in(given: Mapping[str, Any], name: str, default: float | None, key: str, allowed: Range) -> Any:
    """A number of an entry; None where it has none.

    Raises:
        ConfigError: it is something else, or out of its range.
    """
    value = given.get(name, default)
    if value is None or value in allowed:
        return value
    raise ConfigError(f"{key}.{name}={value}: {allowed}")


def check_scalars(given: Mapping[str, Any], key: str) -> None:
    """Refuse a list or a dictionary where an entry has a single value.

    Raises:
        ConfigError: there is one.
    """
    for name, value in given.items():
        if name not in _NESTED and isinstance(value, list | tuple | Mapping):
            raise ConfigError(f"{key}.{name}={value}: a single value")
