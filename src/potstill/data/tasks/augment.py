"""Noise for small training sets, drawn anew in every epoch: tokens are masked, deleted or moved, texts cut to n-grams.

The label may no longer fit an augmented row. Use a teacher, whose soft targets are computed from the augmented row,
and give the term `label` little weight or none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Augmentation:
    """Probabilities of the augmentation.

    Sources: masking and n-grams as in Tang et al. 2019 (arXiv:1903.12136), section 4.3; deletion and disorder as in
    Lample et al. 2018 (arXiv:1711.00043), section 3.2; all four in Yang et al. 2020 (TextBrewer, arXiv:2002.12620).

    Attributes:
        share: Share of rows that are augmented.
        mask: Probability of replacing a token by the mask token.
        delete: Probability of deleting a token; each text keeps at least one.
        ngram: Probability of cutting each text of a row to an n-gram.
        ngram_size: Largest n.
        disorder: Probability of moving the tokens of a row.
        disorder_distance: Largest distance of a move.
    """

    share: float = 0.0
    mask: float = 0.1
    delete: float = 0.0
    ngram: float = 0.0
    ngram_size: int = 5
    disorder: float = 0.0
    disorder_distance: int = 3


@dataclass(frozen=True)
class Noise:
    """An augmentation and the tokens it needs.

    Attributes:
        how: Probabilities.
        special_ids: Tokens that never change or move.
        mask_id: The mask token; required if `how.mask` is above 0.
    """

    how: Augmentation
    special_ids: tuple[int, ...]
    mask_id: int | None = None


class Augmented(NamedTuple):
    """The augmented tokens of a step.

    Attributes:
        places: `(new tokens,)` original index of each token.
        masked: `(new tokens,)` whether it is masked.
        lengths: `(rows,)` tokens of each augmented row.
    """

    places: Ints
    masked: Flags
    lengths: Ints


def augment(lengths: Ints, special: Flags, how: Augmentation, rng: np.random.Generator) -> Augmented:
    """Augment rows that lie end to end.

    Special tokens never change or move. A text lies between two of them, and no token leaves its text.

    Args:
        lengths: `(rows,)` tokens of each.
        special: `(tokens,)` whether a token is special.
        how: Probabilities.
        rng: Generator of all draws.
    """
    rows = np.repeat(np.arange(len(lengths)), lengths)
    places = np.arange(len(rows))
    # A special token counts as a text of its own.
    texts = np.cumsum(_begins(rows, special)) - 1
    starts = np.flatnonzero(_begins(rows, special))
    sizes = np.diff(np.append(starts, len(rows)))
    within = places - starts[texts]
    changes = rng.random(len(lengths)) < how.share
    free = changes[rows] & ~special

    cut = changes & (rng.random(len(lengths)) < how.ngram)
    wanted = 1 + np.floor(rng.random(len(sizes)) * np.minimum(how.ngram_size, sizes)).astype(np.int64)
    first = np.floor(rng.random(len(sizes)) * (sizes - wanted + 1)).astype(np.int64)
    outside = (within < first[texts]) | (within >= (first + wanted)[texts])
    kept = ~(free & cut[rows] & outside)

    left_out = kept & free & (rng.random(len(rows)) < how.delete)
    survivors = np.bincount(texts[kept & ~left_out], minlength=len(sizes))
    emptied = np.flatnonzero((survivors == 0) & (sizes > 0))
    kept &= ~left_out
    # An emptied text gets its first token back.
    firsts = np.flatnonzero(left_out)
    back = firsts[np.unique(texts[firsts], return_index=True)[1]]
    kept[back[np.isin(texts[back], emptied)]] = True

    places = places[kept]
    moved = free & (changes & (rng.random(len(lengths)) < how.disorder))[rows]
    # Neighbours' keys lie one apart: a key that gains less than distance + 1 passes at most `distance` others.
    order = np.arange(len(places)) + moved[places] * rng.random(len(places)) * (how.disorder_distance + 1)
    places = places[np.lexsort((order, texts[places]))]
    masked = free[places] & (rng.random(len(places)) < how.mask)
    return Augmented(places, masked, np.bincount(rows[places], minlength=len(lengths)))


def _begins(rows: Ints, special: Flags) -> Flags:
    """Whether a token begins a text: at a row's start, at a special token, and after one."""
    begins = np.ones(len(rows), dtype=np.bool_)
    begins[1:] = (rows[1:] != rows[:-1]) | special[1:] | special[:-1]
    return begins
