"""Matches of adapted modules as they are written: between features that adaptors return, by number or by name.

Nothing here imports torch, so a faulty match is refused at once; whether the features are there is seen on the first
batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from potstill.errors import ConfigError
from potstill.objectives.matching import (
    ATTENTION,
    HIDDEN,
    KEY,
    PROJECTIONS,
    TWO_LAYERS,
    Match,
    Place,
    check_scalars,
    number_in,
    schedule_of,
)
from potstill.runtime.ranges import LEARNING_RATE, WEIGHT

LOSSES: dict[str, tuple[str, ...]] = {
    HIDDEN: ("hidden_mse", "cos", "fsp", "nst"),
    ATTENTION: ("attention_mse", "attention_mse_sum", "attention_ce", "attention_ce_mean"),
}
_KEYS = (
    "name", "teacher", "student", "feature", "loss", "weight", "projection", "projection_lr", "schedule", "end",
    "steps", "schedule_args",
)  # fmt: skip
EXAMPLE = "[{teacher: 1, student: 0, loss: hidden_mse}]"


def read_adapted_matches(value: Any, key: str = KEY) -> tuple[Match, ...]:
    """Read matches between features that adaptors return.

    Args:
        value: an entry or a list of entries; None: none. `teacher` and `student` are numbers from 0 in the adaptor's
            list, or names where it returns a dictionary; two of them of `fsp` and `nst`.
        key: for messages.

    Raises:
        ConfigError: something unknown, or of the wrong form.
    """
    entries = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    matches = tuple(_read(entry, str(number), f"{key}[{number}]") for number, entry in enumerate(entries))
    names = [match.name for match in matches]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{key}: two matches have the name {twice}; give each its own")
    return matches


def _read(entry: Any, name: str, key: str) -> Match:
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{key}={entry}: no match between features of adaptors; write {EXAMPLE}")
    if unknown := next((own for own in entry if own not in _KEYS), None):
        raise ConfigError(f"{key}.{unknown}={entry[unknown]}: no such key; one of {', '.join(_KEYS)}")
    given = {own: value for own, value in entry.items() if value is not None}
    check_scalars(given, key)
    feature, loss = _feature(given, key)
    match = Match(
        name=str(given.get("name", name)),
        feature=feature,
        loss=loss,
        teacher=_places(given, "teacher", loss, key),
        student=_places(given, "student", loss, key),
        weight=number_in(given, "weight", 1.0, key, WEIGHT),
        projection=given.get("projection"),
        projection_lr=number_in(given, "projection_lr", None, key, LEARNING_RATE),
        **schedule_of(given, key),
    )
    if not re.fullmatch(r"\w+", match.name):
        raise ConfigError(f"{key}.name={match.name}: letters, digits and _ only; a term is called so")
    if fault := _projection_fault(match) or match.schedule_fault:
        raise ConfigError(f"{key}.{fault}")
    return match


def _feature(given: Mapping[str, Any], key: str) -> tuple[str, str]:
    loss, feature = given.get("loss"), given.get("feature")
    known = sum(LOSSES.values(), ())
    if loss not in known:
        raise ConfigError(f"{key}.loss={loss or 'null'}: of adapted modules one of {', '.join(known)}")
    of = next(own for own in LOSSES if loss in LOSSES[own])
    if feature not in (None, of):
        raise ConfigError(f"{key}.feature={feature}: {loss} compares {of}")
    return of, str(loss)


def _places(given: Mapping[str, Any], side: str, loss: str, key: str) -> tuple[Place, ...]:
    value = given.get(side)
    places = tuple(value) if isinstance(value, list | tuple) else (value,)
    for place in places:
        number = isinstance(place, int) and not isinstance(place, bool) and place >= 0
        if not number and not (isinstance(place, str) and place):
            raise ConfigError(
                f"{key}.{side}={'null' if value is None else value}: a number from 0 in the adaptor's list, or a name"
            )
    wanted = 2 if loss in TWO_LAYERS else 1
    if len(places) != wanted:
        how = "two features, [k,k] for one with itself" if wanted == 2 else "one feature"
        raise ConfigError(f"{key}.{side}={value}: {loss} compares {how}")
    return places


def _projection_fault(match: Match) -> str | None:
    if match.projection is None:
        if match.projection_lr is None:
            return None
        return f"projection_lr={match.projection_lr}: there is no projection; give projection=linear"
    if match.projection not in PROJECTIONS:
        return f"projection={match.projection}: one of {', '.join(PROJECTIONS)}, or null"
    if match.feature == ATTENTION:
        return f"projection={match.projection}: attention has no width to project; leave it out"
    return None
