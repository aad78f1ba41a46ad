"""Sentences of words as token ids, with one label per word.

The first token of a word has its label, the others have none (Devlin et al. 2019, section 5.3). A sentence that is too
long is split between words into as few windows as possible, of similar lengths, or cut. Words that are cut off are
predicted as `O`, and their tags still count.
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

BATCH = 1000  # sentences tokenized together
SPLIT, CUT = "split", "cut"
UNSEEN = -1  # index of the first token for a word without tokens


@dataclass(frozen=True)
class TokenFeatures:
    """Token ids of all windows, end to end, and the places of words in them.

    Attributes:
        ids: `(tokens,)` int32, with special tokens.
        lengths: `(windows,)` int32, tokens of each window.
        sentences: `(windows,)` int32, number of the sentence; ascending.
        firsts: `(words,)` int64, index in `ids` of each word's first token; -1 for a word without tokens.
        widths: `(words,)` int32, tokens of each word; 0 for a word without tokens.
        counts: `(sentences,)` int32, words of each sentence.
        cut: Number of words cut off from long sentences.
        shortened: Number of words longer than a window, cut to its length.
        blank: Number of words without tokens, such as control characters.
    """

    ids: NDArray[np.int32]
    lengths: NDArray[np.int32]
    sentences: NDArray[np.int32]
    firsts: NDArray[np.int64]
    widths: NDArray[np.int32]
    counts: NDArray[np.int32]
    cut: int
    shortened: int
    blank: int

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def words(self) -> NDArray[np.int64]:
        """`(tokens,)` number of the word, over all sentences, for its first token; -1 for other tokens."""
        words = np.full(len(self.ids), UNSEEN, np.int64)
        (seen,) = np.nonzero(self.firsts != UNSEEN)
        words[self.firsts[seen]] = seen
        return words

    @property
    def words_of_all(self) -> NDArray[np.int64]:
        """`(tokens,)` number of the word for each of its tokens; -1 for special tokens."""
        words = np.full(len(self.ids), UNSEEN, np.int64)
        within = np.arange(self.widths.sum()) - np.repeat(np.cumsum(self.widths) - self.widths, self.widths)
        words[np.repeat(self.firsts, self.widths) + within] = np.repeat(np.arange(len(self.firsts)), self.widths)
        return words


def token_features(
    sentences: Sequence[Sequence[str]],
    vocabulary: Vocabulary,
    *,
    max_length: int,
    too_long: str = SPLIT,
    progress: Callable[[int], None] | None = None,
) -> TokenFeatures:
    """Tokenize sentences as transformers' fast tokenizers do (`is_split_into_words=True`), in windows.

    Byte-level BPE and SentencePiece get a space before every word (`add_prefix_space=True`). A word without tokens
    becomes the unknown token, or -1 if the tokenizer has none.

    Args:
        sentences: Words of each sentence.
        vocabulary: Vocabulary of the tokenizer.
        max_length: Maximum number of tokens of a window, with special tokens.
        too_long: `split` long sentences, or `cut` them at the end.
        progress: Called with the number of sentences done.

    Raises:
        ConfigError: `max_length` is too small for a word.
    """
    if too_long not in (SPLIT, CUT):
        raise ValueError(f"too_long={too_long}: must be {SPLIT} or {CUT}")
    tokenizer = load_backend(vocabulary.path)
    before, after = _frame(tokenizer)
    capacity = max_length - len(before) - len(after)
    if capacity < 1:
        raise ConfigError(
            f"data.max_length={max_length}: the tokenizer adds {len(before) + len(after)} special tokens; "
            f"use {max_length - capacity + 1} or more"
        )
    made = _Windows(before, after, capacity, vocabulary.pad_id, too_long)
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


def token_labels(
    features: TokenFeatures, numbers: NDArray[np.int64], later: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """`(tokens,)` labels of tokens: the number of a word's label at its first token, -100 elsewhere.

    Args:
        features: Features of the sentences.
        numbers: `(words,)` label numbers from `tag_numbers`.
        later: `(words,)` label numbers of the tokens after the first; None: -100.

    Raises:
        ValueError: The number of labels differs from the number of words.
    """
    if numbers.shape != features.firsts.shape:
        raise ValueError(f"{len(numbers)} labels of {len(features.firsts)} words")
    labels = np.full(len(features.ids), IGNORED, np.int64)
    if later is not None:
        words = features.words_of_all
        labels[words != UNSEEN] = later[words[words != UNSEEN]]
    seen = features.firsts != UNSEEN
    labels[features.firsts[seen]] = numbers[seen]
    return labels


class _Windows:
    """Collects windows of words, sentence after sentence."""

    def __init__(self, before: list[int], after: list[int], capacity: int, pad_id: int, too_long: str):
        self.before, self.after, self.capacity, self.pad_id = before, after, capacity, pad_id
        self.too_long = too_long
        self.ids: list[int] = []
        self.lengths: list[int] = []
        self.sentences: list[int] = []
        self.firsts: list[int] = []
        self.widths: list[int] = []
        self.counts: list[int] = []
        self.cut = self.shortened = self.blank = 0

    def add(self, words: list[list[int]]) -> None:
        """Add a sentence, given as the tokens of its words."""
        self.shortened += sum(len(word) > self.capacity for word in words)
        words = [word[: self.capacity] for word in words]
        bounds = _bounds([len(word) for word in words], self.capacity)
        if self.too_long == CUT:
            bounds = _filled([len(word) for word in words], self.capacity)[:2]
        for start, end in pairwise(bounds):
            self._add_window(words[start:end])
        self.cut += len(words) - bounds[-1]
        self.firsts += [UNSEEN] * (len(words) - bounds[-1])
        self.widths += [0] * (len(words) - bounds[-1])
        self.counts.append(len(words))

    def _add_window(self, words: list[list[int]]) -> None:
        start = len(self.ids)
        self.ids += self.before
        for word in words:
            self.firsts.append(len(self.ids) if word else UNSEEN)
            self.widths.append(len(word))
            self.ids += word
        self.ids += self.after
        if len(self.ids) == start:  # a model needs at least one token
            self.ids.append(self.pad_id)
        self.lengths.append(len(self.ids) - start)
        self.sentences.append(len(self.counts))

    def features(self) -> TokenFeatures:
        return TokenFeatures(
            np.array(self.ids, np.int32),
            np.array(self.lengths, np.int32),
            np.array(self.sentences, np.int32),
            np.array(self.firsts, np.int64),
            np.array(self.widths, np.int32),
            np.array(self.counts, np.int32),
            self.cut,
            self.shortened,
            self.blank,
        )


def _bounds(lengths: list[int], capacity: int) -> list[int]:
    """Bounds of windows in words: as few windows as possible, with the longest as short as possible."""
    bounds = _filled(lengths, capacity)
    if len(bounds) <= 2:
        return bounds
    # Filled to the brim, the last window could be a word without any context.
    least = max(max(lengths), -(-sum(lengths) // (len(bounds) - 1)))
    trials = (_filled(lengths, limit) for limit in range(least, capacity + 1))
    return next(trial for trial in trials if len(trial) == len(bounds))


def _filled(lengths: list[int], capacity: int) -> list[int]:
    """Bounds of windows that are filled greedily."""
    bounds, filled = [0], 0
    for word, length in enumerate(lengths):
        if filled + length > capacity:
            bounds.append(word)
            filled = 0
        filled += length
    return [*bounds, len(lengths)]


def _pieces(batch: Sequence[Sequence[str]], tokenizer: Tokenizer, spaced: bool) -> list[list[list[int]]]:
    """Tokens by sentence and word, without special tokens."""
    written = [[f" {word}" for word in words] if spaced else list(words) for words in batch]
    found = []
    encoded = tokenizer.encode_batch(written, is_pretokenized=True, add_special_tokens=False)
    for words, encoding in zip(batch, encoded, strict=True):
        pieces: list[list[int]] = [[] for _ in words]
        for token, word in zip(encoding.ids, encoding.word_ids, strict=True):
            if word is not None:
                pieces[word].append(token)
        found.append(pieces)
    return found


def _frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text."""
    framed = tokenizer.encode("a")
    own = [not special for special in framed.special_tokens_mask]
    first = own.index(True) if any(own) else len(own)
    last = len(own) - own[::-1].index(True) if any(own) else len(own)
    return framed.ids[:first], framed.ids[last:]


def _needs_space(tokenizer: Tokenizer) -> bool:
    """Whether words need a space before them to be tokenized as in running text."""
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
