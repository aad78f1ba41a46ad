"""Rows with rationales: selecting, splitting, joining, and preparing for training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from potstill.errors import ConfigError, DataError, LabelError

PREDICT, EXPLAIN = "predict", "explain"  # the tasks of a row
SOFT = "soft"  # the loss term of label probabilities
LABELS = ("gt", "llm")  # gold labels, or those of the LLM
VALIDATION_SHARE = 0.1  # of the training rows, for a set without validation part
VALIDATION_SEED = 0


@dataclass(frozen=True)
class RationaleRows:
    """Rows of a part, column by column.

    Attributes:
        inputs: Inputs without task prefix.
        labels: Gold labels.
        llm_labels: Labels of the LLM; None if missing or unparsed.
        rationales: Rationales of the LLM; None if missing or unparsed.
        choices: Possible labels; None for free labels.
        unparsed: Whether a row's output lacks its rationale or label.
        places: Place of each row, such as `line 7`.
        name: Name of the part for messages.
        key: Config key for messages.
        counts: Counts of records: `read`, `answered` (with an output), `unparsed`, `unanswered` (without an output),
            `off_label` (labels that are not among the choices), `left_out` (unusable).
        soft: An LLM's probabilities by choice, or None.
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
        """Some rows, in the given order; the counts stay those of the whole part."""
        columns: dict[str, Any] = {name: [getattr(self, name)[row] for row in rows] for name in _COLUMNS}
        return replace(self, **columns)


_COLUMNS = ("inputs", "labels", "llm_labels", "rationales", "choices", "unparsed", "places", "soft")


class Draw(NamedTuple):
    """A random share of rows, and its seed."""

    share: float
    seed: int

    def of(self, count: int) -> NDArray[np.int64]:
        """Numbers of the rows that are drawn of `count`, shuffled, at least one.

        The draw is that of the published runs, `datasets`' `train_test_split(test_size=1 - share, seed=seed)`.
        """
        order = np.random.default_rng(self.seed).permutation(count)
        return order[min(math.ceil((1.0 - self.share) * count), count - 1) :] if self.share < 1 else np.arange(count)


EVERY = Draw(1.0, 0)


def split_validation(
    rows: RationaleRows, numbers: Sequence[int] | None = None, whole: int | None = None, drawn: Draw = EVERY
) -> tuple[RationaleRows, RationaleRows]:
    """Split training rows into nine tenths for training and a tenth for validation, each in the order of the rows.

    The split is that of the published runs: `datasets`' `train_test_split(test_size=0.1, seed=0)`. It is drawn from the
    whole part, so it does not depend on which rows are available.

    Args:
        rows: Rows of the part.
        numbers: Number of each row in the whole part, from 0; None if all are available.
        whole: Number of rows of the whole part; None for `len(rows)`.
        drawn: What is split of the whole part; the other rows are in neither part.

    Raises:
        DataError: There are not enough rows for both parts.
    """
    whole = len(rows) if whole is None else whole
    kept = drawn.of(whole)
    count = math.ceil(len(kept) * VALIDATION_SHARE)
    if count >= len(kept):
        raise DataError(
            f"{rows.key}: {len(kept)} rows of '{rows.name}' are too few to hold out some for validation; set "
            "data.eval_files"
        )
    order = kept[np.random.default_rng(VALIDATION_SEED).permutation(len(kept))]
    part = {int(number): place < count for place, number in enumerate(order)}
    places: tuple[list[int], list[int]] = ([], [])
    for place, number in enumerate(range(len(rows)) if numbers is None else numbers):
        if number in part:
            places[part[number]].append(place)
    if not all(places):
        raise DataError(
            f"data.rationales: {len(rows):,} of {whole:,} rows of '{rows.name}' have an output, none of them for "
            f"{'training' if places[1] else 'validation'}; give outputs of more rows"
        )
    return rows.select(places[0]), rows.select(places[1])


def subsample(rows: RationaleRows, share: float, seed: int) -> RationaleRows:
    """A random share of the rows, in their order; with the same seed, a smaller share is a subset of a larger one.

    Args:
        rows: All rows.
        share: Above 0, at most 1; at least one row is drawn.
        seed: Seed of the draw.

    Raises:
        ConfigError: `share` is out of range.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"data.share={share}: must be above 0 and at most 1")
    return rows.select(sorted(map(int, Draw(share, seed).of(len(rows)))))


def for_training(rows: RationaleRows, labels: str) -> RationaleRows:
    """The rows to train on, without unparsed ones, with gold labels or those of the LLM.

    Args:
        rows: Rows of a part.
        labels: `gt` for gold labels, `llm` for those of the LLM.

    Raises:
        ConfigError: Another value of `labels`.
        DataError: A row has no label of the LLM, or no row is left.
    """
    if labels not in LABELS:
        raise ConfigError(f"data.labels={labels}: must be one of {', '.join(LABELS)}")
    kept = rows.select([row for row, failed in enumerate(rows.unparsed) if not failed])
    if not kept:
        raise DataError(f"{rows.key}: '{rows.name}' has no row with a parsed output; check data.rationales")
    if labels == "gt":
        return kept
    if None in kept.llm_labels:
        place = kept.places[kept.llm_labels.index(None)]
        raise LabelError(
            f"data.labels=llm: '{rows.name}' {place} has no label of an LLM; set data.rationales with labels, or "
            "data.labels=gt"
        )
    return replace(kept, labels=[label for label in kept.llm_labels if label is not None])


def with_others_rationales(rows: RationaleRows, seed: int) -> RationaleRows:
    """Give each row the rationale of another one, a control: rationales of the same kind that explain another label.

    The rows form one cycle in a random order, so no row keeps its own (a derangement), and each rationale is used once.

    Args:
        rows: At least two.
        seed: Seed of the order.

    Raises:
        DataError: There is one row.
    """
    if len(rows) < 2:
        raise DataError(f"data.shuffle_rationales=true: '{rows.name}' has one row; it needs another one's rationale")
    order = np.random.default_rng(seed).permutation(len(rows))
    rationales = list(rows.rationales)
    for row, other in zip(order, np.roll(order, 1), strict=True):
        rationales[row] = rows.rationales[other]
    return replace(rows, rationales=rationales)


def join(first: RationaleRows, second: RationaleRows) -> RationaleRows:
    """Concatenate rows; counts are summed, places name their part."""
    columns: dict[str, Any] = {name: [*getattr(first, name), *getattr(second, name)] for name in _COLUMNS}
    columns["places"] = [f"{rows.name} {place}" for rows in (first, second) for place in rows.places]
    counts = {name: first.counts.get(name, 0) + second.counts.get(name, 0) for name in first.counts | second.counts}
    return replace(first, **columns, name=f"{first.name} and {second.name}", counts=counts)
