"""Noise for small training sets: tokens hidden, left out or moved, texts cut down to an n-gram, anew in every epoch.

The label of a row may no longer fit what is left of it: use it with a teacher, whose soft targets are of the row as
it has become, and give the term `label` little weight or none.
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
    """How training rows change.

    Sources: masking and n-grams as in Tang et al. 2019 (arXiv:1903.12136), section 4.3; left out and moved tokens as
    in Lample et al. 2018 (arXiv:1711.00043), section 3.2; all four in the small sets' recipes of Yang et al. 2020
    (TextBrewer, arXiv:2002.12620).

    Attributes:
        share: of the rows that change; the rest stays as it is.
        mask: probability that a token of such a row is hidden behind the mask token.
        delete: probability that it is left out; each text keeps a token at least.
        ngram: probability that each text of such a row is cut down to an n-gram of it,
        ngram_size: of 1 to this many tokens.
        disorder: probability that the tokens of such a row are moved,
        disorder_distance: by up to this many places.
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
    """An augmentation, and the tokens that it needs to know.

    Attributes:
        how: the probabilities.
        special_ids: tokens that stay what and where they are.
        mask_id: what hides a token; needed where `how.mask` is above 0.
    """

    how: Augmentation
    special_ids: tuple[int, ...]
    mask_id: int | None = None


class Augmented(NamedTuple):
    """What becomes of the tokens of a step.

    Attributes:
        places: `(new tokens,)` where each token was.
        masked: `(new tokens,)` whether it is hidden.
        lengths: `(rows,)` tokens of each row now.
    """

    places: Ints
    masked: Flags
    lengths: Ints


def augment(lengths: Ints, special: Flags, how: Augmentation, rng: np.random.Generator) -> Augmented:
    """Draw what becomes of rows that lie end to end.

    Special tokens stay what and where they are; a text is what lies between two of them, and no token leaves its text.

    Args:
        lengths: `(rows,)` tokens of each.
        special: `(tokens,)` whether a token is special.
        how: the probabilities.
        rng: everything is a function of its state.
    """
    rows = np.repeat(np.arange(len(lengths)), lengths)
    places = np.arange(len(rows))
    # A special token is a text of its own, and so is what lies between.
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
    # The first of those that were left out comes back.
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
