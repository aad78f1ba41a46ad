"""Sequences of a corpus in a teacher's tokens, and the positions at which both models have read the same text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from potstill.data.common.batching import Ints
from potstill.data.common.tokenizers import Vocabulary, load_backend

Span = tuple[int, int]


class Aligned(NamedTuple):
    """Sequences in other tokens, end to end.

    Attributes:
        ids: `(tokens,)` int32, with special tokens.
        lengths: `(sequences,)` int64, tokens of each sequence.
        row: `(positions,)` int64, sequence of an aligned position; ascending.
        student: `(positions,)` int64, its index in the student's tokens of the sequence.
        teacher: `(positions,)` int64, its index in the teacher's tokens of the sequence.
    """

    ids: NDArray[np.int32]
    lengths: Ints
    row: Ints
    student: Ints
    teacher: Ints


class Retokeniser:
    """Decodes sequences and encodes their text with a teacher's tokenizer.

    Stores have no text, so it is decoded from the tokens, and encoded again for the offsets. If the tokens differ (a
    cut word, an unknown character), only positions before the difference are aligned.

    Args:
        student: Vocabulary of the stored tokens.
        teacher: Vocabulary of the teacher's tokenizer.
        max_length: Maximum number of tokens that the teacher reads.
    """

    def __init__(self, student: Vocabulary, teacher: Vocabulary, max_length: int):
        self.student, self.teacher, self.max_length = student, teacher, max_length
        self._student, self._teacher = load_backend(student.path), load_backend(teacher.path)

    def __call__(self, sequences: Sequence[NDArray]) -> Aligned:
        """Sequences of the student's tokens in the teacher's."""
        bare = [self._unframed(own.tolist()) for own in sequences]
        texts = self._student.decode_batch([ids for _, ids in bare], skip_special_tokens=False)
        again = self._student.encode_batch(texts, add_special_tokens=False)
        theirs = self._teacher.encode_batch(texts, add_special_tokens=False)
        before = [own for own in (self.teacher.start_id,) if own is not None]
        after = [own for own in (self.teacher.end_id,) if own is not None]
        limit = max(self.max_length - len(before) - len(after), 0)
        ids, lengths, places = [], [], []
        for (first, own), ours, other in zip(bare, again, theirs, strict=True):
            framed = [*before, *other.ids[:limit], *after] or [self.teacher.pad_id]
            ids += framed
            lengths.append(len(framed))
            same = _common(own, ours.ids, self.student.unk_id)
            student, teacher = aligned_ends(_read(ours.offsets, same), _read(other.offsets, limit))
            places.append((student + first, teacher + len(before)))
        counts = [len(student) for student, _ in places]
        return Aligned(
            np.array(ids, np.int32),
            np.array(lengths, np.int64),
            np.repeat(np.arange(len(places)), counts),
            *(np.concatenate([np.zeros(0, np.int64), *own]) for own in zip(*places, strict=True)),
        )

    def _unframed(self, ids: list[int]) -> tuple[int, list[int]]:
        """Start of the text, and its tokens without special tokens."""
        first = int(bool(ids) and self.student.start_id is not None and ids[0] == self.student.start_id)
        last = len(ids)
        if last > first and self.student.end_id is not None and ids[-1] == self.student.end_id:
            last -= 1
        return first, ids[first:last]


def aligned_ends(first: ArrayLike, second: ArrayLike) -> tuple[Ints, Ints]:
    """The tokens of two tokenizations that end at the same character.

    After such tokens both models have read the same text, so their predictions can be compared. Tokens without
    characters (special tokens, padding) never align. For several tokens that end at one character, such as the bytes of
    one letter, the last one counts.

    Args:
        first: `(tokens, 2)` start and end characters of one text, as of `return_offsets_mapping`.
        second: `(tokens, 2)` of another tokenizer for the same text.

    Returns:
        Two arrays `(aligned,)`: positions in the first and in the second tokenization, ascending.

    Raises:
        ValueError: The ends decrease.
    """
    first_tokens, first_ends = _last_tokens(first)
    second_tokens, second_ends = _last_tokens(second)
    _, in_first, in_second = np.intersect1d(first_ends, second_ends, assume_unique=True, return_indices=True)
    return first_tokens[in_first], second_tokens[in_second]


def _last_tokens(offsets: ArrayLike) -> tuple[Ints, Ints]:
    """The last token that ends at each character, and the character; both ascending."""
    spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    tokens = np.flatnonzero(spans[:, 1] > spans[:, 0])
    ends = spans[tokens, 1]
    if (np.diff(ends) < 0).any():
        raise ValueError("ends of offsets decrease: they are not of one text")
    last = np.append(np.diff(ends) > 0, True)[: len(ends)]
    return tokens[last], ends[last]


def _common(first: list[int], second: list[int], unknown: int | None) -> int:
    """Length of the common prefix before an unknown token, whose text is lost."""
    pairs = zip(first, second, strict=False)
    differ = (place for place, (a, b) in enumerate(pairs) if a != b or a == unknown)
    return next(differ, min(len(first), len(second)))


def _read(offsets: list[Span], count: int) -> list[Span]:
    """Offsets of the first `count` tokens, without a final incomplete character."""
    kept = offsets[:count]
    if count < len(offsets):
        while kept and kept[-1][1] > offsets[count][0]:
            kept.pop()
    return kept
