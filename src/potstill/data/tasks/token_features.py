"""Sentences of words as token ids, a label a word.

A word is judged by its first token, which carries its label; the other tokens of a word have none (Devlin et al. 2019,
section 5.3). A sentence that is longer than a model reads is split between words into as few windows as it takes, about
equally long, so that every word is seen, trained on and scored; or it is cut, where all models that a result is
compared with are cut. Words that are not seen are predicted `O` and their tags still count, so that no score is better
for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from potstill.data.common.batching import IGNORED
from potstill.data.common.tokenizers import Vocabulary, load_backend
from potstill.errors import ConfigError

BATCH = 1000  # sentences that are tokenised together
SPLIT, CUT = "split", "cut"
UNSEEN = -1  # in the place of a token, of a word that has none


@dataclass(frozen=True)
class TokenFeatures:
    """Token ids of all windows, end to end, and where the words are in them.

    Attributes:
        ids: `(tokens,)` int32, special tokens counted.
        lengths: `(windows,)` int32, tokens of each.
        sentences: `(windows,)` int32, the sentence that each is of; the windows of one follow each other.
        firsts: `(words,)` int64, the index in `ids` of each word's first token; -1 of a word that no window has.
        counts: `(sentences,)` int32, words of each.
        cut: words that were cut off, of sentences that are too long.
        shortened: words that are longer than a window by themselves; their first tokens are kept.
        blank: words that the tokenizer makes no token of, such as a control character.
    """

    ids: NDArray[np.int32]
    lengths: NDArray[np.int32]
    sentences: NDArray[np.int32]
    firsts: NDArray[np.int64]
    counts: NDArray[np.int32]
    cut: int
    shortened: int
    blank: int

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def words(self) -> NDArray[np.int64]:
        """`(tokens,)` the number of the word that a token is the first of, over all sentences; -1 of other tokens."""
        words = np.full(len(self.ids), UNSEEN, np.int64)
        (seen,) = np.nonzero(self.firsts != UNSEEN)
        words[self.firsts[seen]] = seen
        return words


def token_features(
    sentences: Sequence[Sequence[str]],
    vocabulary: Vocabulary,
    *,
    max_length: int,
    too_long: str = SPLIT,
    progress: Callable[[int], None] | None = None,
) -> TokenFeatures:
    """The sentences as transformers' fast tokenizers have them (`is_split_into_words=True`), in windows.

    Where a tokenizer tells words by the space before them (byte-level BPE, SentencePiece), every word has one, the
    first of a sentence too (`add_prefix_space=True`, which transformers demands of these). A word that no token is made
    of stands as the unknown token; where the tokenizer has none, it has no place (-1). Neither moves other words.

    Args:
        sentences: words.
        vocabulary: of the tokenizer.
        max_length: most tokens of a window, special ones counted.
        too_long: what becomes of a longer sentence: `split`, or `cut` at the end.
        progress: called with the number of sentences done.

    Raises:
        ConfigError: `max_length` leaves no room for a word.
    """
    if too_long not in (SPLIT, CUT):
        raise ValueError(f"'{too_long}' is unknown; give {SPLIT} or {CUT}")
    tokenizer = load_backend(vocabulary.path)
    before, after = _frame(tokenizer)
    room = max_length - len(before) - len(after)
    if room < 1:
        raise ConfigError(
            f"data.max_length={max_length}: the tokenizer adds {len(before) + len(after)} tokens, none is left "
            f"for words; use {max_length - room + 1} or more"
        )
    made = _Windows(before, after, room, vocabulary.pad_id, too_long)
    spaced = _needs_space(tokenizer)
    filler = [] if vocabulary.unk_id is None else [vocabulary.unk_id]
    for start in range(0, len(sentences), BATCH):
        batch = sentences[start : start + BATCH]
        for pieces in _pieces(batch, tokenizer, spaced):
            made.blank += sum(not word for word in pieces)
            made.add([word or filler for word in pieces])
        if progress is not None:
            progress(start + len(batch))
    return made.features()


def token_labels(features: TokenFeatures, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels of tokens: `(tokens,)`, a word's number at its first token, -100 elsewhere.

    Args:
        features: of the sentences.
        numbers: `(words,)` of all sentences, as `tag_numbers` gives them.

    Raises:
        ValueError: there is not one number a word.
    """
    if numbers.shape != features.firsts.shape:
        raise ValueError(f"{len(numbers)} labels of {len(features.firsts)} words")
    labels = np.full(len(features.ids), IGNORED, np.int64)
    seen = features.firsts != UNSEEN
    labels[features.firsts[seen]] = numbers[seen]
    return labels


class _Windows:
    """Gathers windows of words, sentence after sentence."""

    def __init__(self, before: list[int], after: list[int], room: int, pad_id: int, too_long: str):
        self.before, self.after, self.room, self.pad_id = before, after, room, pad_id
        self.too_long = too_long
        self.ids: list[int] = []
        self.lengths: list[int] = []
        self.sentences: list[int] = []
        self.firsts: list[int] = []
        self.counts: list[int] = []
        self.cut = self.shortened = self.blank = 0

    def add(self, words: list[list[int]]) -> None:
        """Add a sentence, given by the tokens of its words."""
        self.shortened += sum(len(word) > self.room for word in words)
        words = [word[: self.room] for word in words]
        bounds = _bounds([len(word) for word in words], self.room)
        if self.too_long == CUT:
            bounds = _filled([len(word) for word in words], self.room)[:2]
        for start, end in pairwise(bounds):
            self._add_window(words[start:end])
        self.cut += len(words) - bounds[-1]
        self.firsts += [UNSEEN] * (len(words) - bounds[-1])
        self.counts.append(len(words))

    def _add_window(self, words: list[list[int]]) -> None:
        start = len(self.ids)
        self.ids += self.before
        for word in words:
            self.firsts.append(len(self.ids) if word else UNSEEN)
            self.ids += word
        self.ids += self.after
        if len(self.ids) == start:  # no token at all: a model needs one to read
            self.ids.append(self.pad_id)
        self.lengths.append(len(self.ids) - start)
        self.sentences.append(len(self.counts))

    def features(self) -> TokenFeatures:
        return TokenFeatures(
            np.array(self.ids, np.int32),
            np.array(self.lengths, np.int32),
            np.array(self.sentences, np.int32),
            np.array(self.firsts, np.int64),
            np.array(self.counts, np.int32),
            self.cut,
            self.shortened,
            self.blank,
        )


def _bounds(lengths: list[int], room: int) -> list[int]:
    """Where windows start and end, in words: as few as `room` allows, the longest as short as can be."""
    bounds = _filled(lengths, room)
    if len(bounds) <= 2:
        return bounds
    # Filled to the brim, the last window could be a word without any context.
    least = max(max(lengths), -(-sum(lengths) // (len(bounds) - 1)))
    trials = (_filled(lengths, limit) for limit in range(least, room + 1))
    return next(trial for trial in trials if len(trial) == len(bounds))


def _filled(lengths: list[int], room: int) -> list[int]:
    """Where windows start and end that each take as many words as have room."""
    bounds, filled = [0], 0
    for word, length in enumerate(lengths):
        if filled + length > room:
            bounds.append(word)
            filled = 0
        filled += length
    return [*bounds, len(lengths)]


def _pieces(batch: Sequence[Sequence[str]], tokenizer: Tokenizer, spaced: bool) -> list[list[list[int]]]:
    """Tokens by sentence and word, without special ones."""
    written = [[f" {word}" for word in words] if spaced else list(words) for words in batch]
    found = []
    encoded = tokenizer.encode_batch(written, is_pretokenized=True, add_special_tokens=False)
    for words, encoding in zip(batch, encoded, strict=True):
        pieces: list[list[int]] = [[] for _ in words]
        for token, word in zip(encoding.ids, encoding.word_ids, strict=True):
            if word is not None:  # special tokens, of which there are none here
                pieces[word].append(token)
        found.append(pieces)
    return found


def _frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer itself puts before and after a text."""
    framed = tokenizer.encode("a")
    own = [not special for special in framed.special_tokens_mask]
    first = own.index(True) if any(own) else len(own)
    last = len(own) - own[::-1].index(True) if any(own) else len(own)
    return framed.ids[:first], framed.ids[last:]


def _needs_space(tokenizer: Tokenizer) -> bool:
    """Whether a word must be given with a space before it to be tokenised as in running text."""
    step = json.loads(tokenizer.to_str())["pre_tokenizer"]
    return any(
        part["type"] == "ByteLevel"
        or (part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "always")
        for part in _steps(step)
    )


def _steps(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    if step is None:
        return []
    return step["pretokenizers"] if step["type"] == "Sequence" else [step]
