"""Pairs of base and source, and swapped positions: functions of lengths and a random generator.

In every example the i-th swapped position of the base takes the value at the i-th swapped position of its source.
Source: Wu et al. 2022 (arXiv:2112.02505), section 3.2, and the published code (`prepare_interchange_mask`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

NOBODY = -1
PAIR = 2  # sequences that swap with each other stay together when a step is cut


@dataclass(frozen=True)
class PlanSettings:
    """The keys of `objective.interchange` with the same names.

    Attributes:
        proportion: Share of the shorter of two sequences that is swapped, rounded down, in (0, 1].
        max_tokens: Maximum number of swapped positions of a sequence; None for no limit.
        positions: `consecutive` spans, `free` positions, or `masked`: a share of the base's masked positions takes
            values at free positions of the source.
        pairing: `in_batch`: the source is another sequence of the batch; `dataset`: a second one of similar length is
            drawn; `shuffled`: one permutation of the data set pairs all sequences.
        crossway: Whether to swap in both directions, at the same positions.
    """

    proportion: float = 0.3
    max_tokens: int | None = None
    positions: str = "consecutive"
    pairing: str = "in_batch"
    crossway: bool = False


class Swaps(NamedTuple):
    """Swapped positions, in order of the base's row and column.

    Attributes:
        base_row, base_column: `(swaps,)` positions of the base, which are written.
        source_row, source_column: `(swaps,)` positions of the source, which are read.
    """

    base_row: Ints
    base_column: Ints
    source_row: Ints
    source_column: Ints


def partners(count: int, *, crossway: bool = False) -> Ints:
    """The source of each sequence: its neighbour, or the next one in a ring of the last three of an odd number.

    Neighbours stay together for any cut of a step into micro-batches and over ranks. Crossway needs mutual pairs, so
    the last sequence of an odd number has no source.

    Args:
        count: Number of sequences.
        crossway: Whether to form mutual pairs only.

    Returns:
        `(count,)` indices, a permutation without fixed points; `NOBODY` for no source.
    """
    partner = np.arange(count) ^ 1
    if count % 2:
        if count < 3 or crossway:
            partner[-1] = NOBODY
        else:
            partner[-3:] = count - 2, count - 1, count - 3
    return partner


def draw_swaps(
    lengths: Ints,
    partner: Ints,
    settings: PlanSettings,
    rng: np.random.Generator,
    *,
    source_lengths: Ints | None = None,
    masked: list[Ints] | None = None,
) -> Swaps:
    """Draw the swapped positions.

    Args:
        lengths: `(bases,)` real tokens of each sequence; padding is never swapped.
        partner: `(bases,)` row of the source, `NOBODY` for none.
        settings: Number and kind of positions.
        rng: Generator; the number of its draws depends on the lengths alone.
        source_lengths: `(sources,)` real tokens; None if sources are among the bases.
        masked: Columns of the masked positions of each base, ascending; required for `positions="masked"`.
    """
    sources = lengths if source_lengths is None else source_lengths
    rows = np.flatnonzero(partner != NOBODY)
    mutual = settings.crossway and source_lengths is None
    if mutual:  # a pair's positions are drawn once
        rows = rows[rows < partner[rows]]
    source_rows = partner[rows]
    sizes = [lengths[rows], sources[source_rows]]
    eligible = None
    if settings.positions == "masked":
        assert masked is not None
        eligible = _wide([masked[row] for row in rows])
        sizes[0] = (eligible >= 0).sum(1)
    shares = np.floor(settings.proportion * np.minimum(*sizes) + 1e-9).astype(np.int64)
    counts = shares if settings.max_tokens is None else np.minimum(shares, settings.max_tokens)
    taken = [
        _consecutive(size, counts, rng) if settings.positions == "consecutive" else _free(size, counts, rng)
        for size in sizes
    ]
    which = np.repeat(np.arange(len(rows)), counts)
    if eligible is not None:
        taken[0] = eligible[which, taken[0]]
    base_row, source_row = rows[which], source_rows[which]
    if not mutual:
        return Swaps(base_row, taken[0], source_row, taken[1])
    both = [np.concatenate(parts) for parts in ((base_row, source_row), taken, (source_row, base_row), taken[::-1])]
    order = np.argsort(both[0], kind="stable")
    return Swaps(*(part[order] for part in both))


def swappable(lengths: Ints, settings: PlanSettings) -> int:
    """Number of sequences that are long enough to swap a token with one of the same length."""
    return int((np.floor(settings.proportion * lengths + 1e-9) >= 1).sum())


def _consecutive(sizes: Ints, counts: Ints, rng: np.random.Generator) -> Ints:
    """A span of `counts` places within each of `sizes`, end to end."""
    starts = np.floor(rng.random(len(sizes)) * (sizes - counts + 1)).astype(np.int64)
    return np.arange(counts.sum()) + np.repeat(starts - (np.cumsum(counts) - counts), counts)


def _free(sizes: Ints, counts: Ints, rng: np.random.Generator) -> Ints:
    """`counts` distinct places within each of `sizes`, ascending, end to end."""
    width = int(sizes.max(initial=0))
    keys = rng.random((len(sizes), width))
    keys[np.arange(width) >= sizes[:, None]] = np.inf
    ranks = np.argsort(np.argsort(keys, axis=1), axis=1)
    return np.nonzero(ranks < counts[:, None])[1].astype(np.int64)


def _wide(columns: list[Ints]) -> Ints:
    """Lists of columns as rows of one array, padded with -1."""
    table = np.full((len(columns), max(map(len, columns), default=0)), -1, dtype=np.int64)
    for row, places in zip(table, columns, strict=True):
        row[: len(places)] = places
    return table


def cut_swaps(
    swaps: Swaps, rows: Ints, width: int, source_rows: Ints | None = None, source_width: int | None = None
) -> tuple[Ints, Ints]:
    """The swaps of some rows as indices into their padded, flattened positions.

    Args:
        swaps: Swaps of a whole step.
        rows: `(batch,)` rows of the step in the micro-batch.
        width: Padded length of the micro-batch.
        source_rows: The same for the sources; None if sources are among `rows`.
        source_width: Padded length of the sources.

    Returns:
        `(swaps,)` indices of base positions, and of source positions.
    """
    slot = _slots(rows)
    source_slot = slot if source_rows is None else _slots(source_rows)
    mine = np.isin(swaps.base_row, rows)
    base = slot[swaps.base_row[mine]] * width + swaps.base_column[mine]
    return base, source_slot[swaps.source_row[mine]] * (source_width or width) + swaps.source_column[mine]


def reached_tokens(lengths: Ints, rows: Ints, columns: Ints, *, causal: bool) -> Bools:
    """Whether an intervention can change each real token.

    Args:
        lengths: `(batch,)` real tokens of each sequence.
        rows: `(swaps,)` rows of the swapped positions.
        columns: `(swaps,)` columns of the swapped positions.
        causal: Whether a swap reaches later positions only, instead of the whole sequence.

    Returns:
        `(tokens,)` values of all sequences, end to end.
    """
    first = np.full(len(lengths), np.iinfo(np.int64).max)
    np.minimum.at(first, rows, columns if causal else 0)
    column = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return column >= np.repeat(first, lengths)


def _slots(rows: Ints) -> Ints:
    slot = np.zeros(int(rows.max(initial=-1)) + 1, dtype=np.int64)
    slot[rows] = np.arange(len(rows))
    return slot
