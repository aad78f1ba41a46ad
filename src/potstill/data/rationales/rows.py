"""Rows with rationales: taken in part, put together, and made ready for training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from potstill.errors import ConfigError, DataError

PREDICT, EXPLAIN = "predict", "explain"  # the two tasks of a row
SOFT = "soft"  # the term of label probabilities
LABELS = ("gt", "llm")  # the gold labels, or those of the LLM
VALIDATION_SHARE = 0.1  # of the training rows, where a set has no part for validation
VALIDATION_SEED = 0


@dataclass(frozen=True)
class RationaleRows:
    """Rows of a part, column by column.

    Attributes:
        inputs: without the tasks' prefixes.
        labels: gold labels, as they are to be written.
        llm_labels: what the LLM answered; None where it did not, or its output was not understood.
        rationales: what it reasoned; None likewise.
        choices: what each label can be; None where it can be anything.
        unparsed: whether the row's output was there, but lacked its rationale or its label.
        places: where each row stands, such as `line 7`.
        name: what messages call the part.
        key: the config key that messages name.
        soft: an LLM's probabilities of the choices, by choice; None where it has none.
        counts: what came of the records: `read`, `answered` (rows with an output), `unparsed`, `unanswered` (records
            that were cut off), `off_label` (answers that are none of the choices), `left_out` (records that are no
            use).
    """

    inputs: list[str]
    labels: list[str]
    llm_labels: list[str | None]
    rationales: list[str | None]
    choices: list[tuple[str, ...] | None]
    unparsed: list[bool]
    places: list[str]
    name: str
    key: str
    counts: dict[str, int] = field(default_factory=dict)
    soft: list[Mapping[str, float] | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.soft:
            self.soft.extend([None] * len(self.inputs))

    def __len__(self) -> int:
        return len(self.inputs)

    def select(self, rows: Sequence[int]) -> RationaleRows:
        """These rows, in this order; the counts stay those of the part that was read."""
        columns: dict[str, Any] = {name: [getattr(self, name)[row] for row in rows] for name in _COLUMNS}
        return replace(self, **columns)


_COLUMNS = ("inputs", "labels", "llm_labels", "rationales", "choices", "unparsed", "places", "soft")


def split_validation(
    rows: RationaleRows, numbers: Sequence[int] | None = None, whole: int | None = None
) -> tuple[RationaleRows, RationaleRows]:
    """Training rows cut into nine tenths for training and a tenth for validation, each in the order of the rows.

    The tenth is the one of the published runs: `datasets`' `train_test_split(test_size=0.1, seed=0)`, whose rows are
    the first ones of numpy's `default_rng(0).permutation`. It is drawn from the whole part: a row is on the same side
    however many of the others are there.

    Args:
        rows: of the part.
        numbers: which of the part's rows each is, from 0; None for all of them.
        whole: how many rows the part has; None for as many as there are.

    Raises:
        DataError: there are not enough rows for both parts.
    """
    whole = len(rows) if whole is None else whole
    count = math.ceil(whole * VALIDATION_SHARE)
    if count >= whole:
        raise DataError(
            f"{rows.key}: '{rows.name}' has {whole} rows, too few to keep some for validation; give a file for it"
        )
    order = np.random.default_rng(VALIDATION_SEED).permutation(whole)
    held_out = set(map(int, order[:count]))
    places: tuple[list[int], list[int]] = ([], [])
    for place, number in enumerate(range(len(rows)) if numbers is None else numbers):
        places[number in held_out].append(place)
    if not all(places):
        raise DataError(
            f"data.rationales: of the {whole:,} rows of '{rows.name}' {len(rows):,} have an output, none of them one "
            f"{'for training' if places[1] else 'that is kept for validation'}; give outputs of more rows"
        )
    return rows.select(places[0]), rows.select(places[1])


def subsample(rows: RationaleRows, share: float, seed: int) -> RationaleRows:
    """A share of the rows, in their order; with the same seed, a smaller share is a part of a larger one.

    Args:
        rows: to draw from.
        share: above 0, at most 1; at least one row is drawn.
        seed: the draw is a function of it and of the number of rows.

    Raises:
        ConfigError: `share` is out of range.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"data.share={share}: must be above 0 and at most 1")
    count = max(round(len(rows) * share), 1)
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.select(sorted(map(int, order[:count])))


def for_training(rows: RationaleRows, labels: str) -> RationaleRows:
    """The rows to train on: unparsed ones left out, and the wanted labels in `labels`.

    Args:
        rows: of a part.
        labels: `gt` for the gold labels, `llm` for those of the LLM, right or wrong, as published.

    Raises:
        ConfigError: `labels` is neither.
        DataError: a row has no label of the LLM, or no row is left.
    """
    if labels not in LABELS:
        raise ConfigError(f"data.labels={labels}: must be one of {', '.join(LABELS)}")
    kept = rows.select([row for row, failed in enumerate(rows.unparsed) if not failed])
    if not kept:
        raise DataError(
            f"{rows.key}: '{rows.name}' has no row whose output was understood; check data.rationales"
        )
    if labels == "gt":
        return kept
    if None in kept.llm_labels:
        place = kept.places[kept.llm_labels.index(None)]
        raise DataError(
            f"data.labels=llm: '{rows.name}' {place} has no label of an LLM; give data.rationales with labels, or "
            "data.labels=gt"
        )
    return replace(kept, labels=[label for label in kept.llm_labels if label is not None])


def join(first: RationaleRows, second: RationaleRows) -> RationaleRows:
    """Both one after the other, as SVAMP's training rows with ASDiv's; counts are summed, places name their part."""
    columns: dict[str, Any] = {name: [*getattr(first, name), *getattr(second, name)] for name in _COLUMNS}
    columns["places"] = [f"{rows.name} {place}" for rows in (first, second) for place in rows.places]
    counts = {
        name: first.counts.get(name, 0) + second.counts.get(name, 0) for name in first.counts | second.counts
    }
    return replace(first, **columns, name=f"{first.name} and {second.name}", counts=counts)
