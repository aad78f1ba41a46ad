"""Conversations as token ids, and the tokens that are learned."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from potstill.data.common.ragged import flat_indices, starts_of
from potstill.data.common.tokenizers import Vocabulary
from potstill.data.conversations.reading import Conversation
from potstill.data.tasks.features import remembered
from potstill.errors import ConfigError, DataError, FormatError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """Sequences end to end.

    Attributes:
        ids: `(tokens,)` int32.
        learned: `(tokens,)` bool, whether a token is predicted in training.
        lengths: `(sequences,)` int32.
        rows: `(sequences,)` int32 numbers of their rows.
        prompts: `(sequences,)` int32 tokens before the last learned turn, 1 at least; -1 where that is cut off.
        cut: Number of rows that are longer than a sequence, and cut at their end.
        dropped: Number of rows whose learned tokens are all cut off.
    """

    ids: NDArray[np.int32]
    learned: NDArray[np.bool_]
    lengths: NDArray[np.int32]
    rows: NDArray[np.int32]
    prompts: NDArray[np.int32]
    cut: int
    dropped: int


class ConversationCorpus:
    """Conversations as a corpus of which some tokens are learned; see `corpus.store.Corpus`.

    Args:
        encoded: The sequences.
        rows: Number of rows that were read.
        vocabulary_size: Of the tokenizer.
    """

    def __init__(self, encoded: Encoded, rows: int, vocabulary_size: int):
        self._encoded, self._rows = encoded, rows
        self._starts = starts_of(encoded.lengths)
        self.lengths, self.rows, self.prompts = encoded.lengths, encoded.rows, encoded.prompts
        self.token_counts: NDArray[np.int64] = np.bincount(encoded.ids, minlength=vocabulary_size)

    def __len__(self) -> int:
        return len(self.lengths)

    def gather(self, indices: ArrayLike) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """`(tokens,)` ids of sequences end to end, and their `(batch,)` lengths."""
        rows = np.asarray(indices)
        return self._encoded.ids[flat_indices(self._starts[rows], self.lengths[rows])], self.lengths[rows]

    def learned(self, indices: ArrayLike) -> NDArray[np.bool_]:
        """`(tokens,)` whether the tokens of sequences are learned."""
        rows = np.asarray(indices)
        return self._encoded.learned[flat_indices(self._starts[rows], self.lengths[rows])]

    def prompt(self, number: int) -> NDArray[np.int32]:
        """`(tokens,)` ids of a sequence before its last learned turn."""
        start = int(self._starts[number])
        return self._encoded.ids[start : start + int(self.prompts[number])]

    def with_completions(self, completions: Mapping[int, NDArray[np.integer]]) -> ConversationCorpus:
        """The corpus with other completions of the last turn, (tokens,) ids by the number of the sequence."""
        own = self._encoded
        starts, ids, learned = self._starts, [], []
        for number, length in enumerate(self.lengths.tolist()):
            here = slice(int(starts[number]), int(starts[number]) + length)
            ids.append(own.ids[here])
            learned.append(own.learned[here])
            if (given := completions.get(number)) is not None:
                prompt = int(self.prompts[number])
                ids[-1] = np.concatenate([ids[-1][:prompt], given]).astype(np.int32)
                learned[-1] = np.arange(len(ids[-1])) >= prompt
        lengths = np.array([len(part) for part in ids], np.int32)
        made = replace(own, ids=np.concatenate(ids), learned=np.concatenate(learned), lengths=lengths)
        return ConversationCorpus(made, self._rows, len(self.token_counts))

    @property
    def ends(self) -> NDArray[np.int32]:
        """The last learned token of every sequence, which are the tokens that end a turn unless it is cut."""
        places = np.flatnonzero(self._encoded.learned)
        last = np.searchsorted(places, self._starts + self.lengths) - 1
        return np.unique(self._encoded.ids[places[last]])

    def describe(self) -> dict[str, int]:
        """Counts of rows, sequences and tokens."""
        own = self._encoded
        return {
            "rows": self._rows,
            "sequences": len(own.lengths),
            "tokens": len(own.ids),
            "learned": int(own.learned.sum()),
            "cut": own.cut,
            "dropped": own.dropped,
        }


@dataclass
class _Collected:
    ids: list[NDArray[np.int32]] = field(default_factory=list)
    learned: list[NDArray[np.bool_]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    cut: int = 0
    dropped: int = 0


def encode(
    rows: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    *,
    template: str | None,
    max_length: int,
    cache: Path,
    progress: Callable[[int], None] | None = None,
) -> ConversationCorpus:
    """Tokenize conversations once, and remember them.

    A plain prompt and completion get the tokenizer's special tokens, and its end token behind the completion, which is
    learned too. Of messages the texts of assistant turns are learned, with what the template closes them with.

    Args:
        rows: The conversations.
        tokenizer: Of the student.
        vocabulary: Of the same tokenizer.
        template: Chat template; None: that of the tokenizer.
        max_length: Most tokens of a sequence; longer rows are cut at their end.
        cache: Folder of stored features.
        progress: Called with the number of rows done.

    Raises:
        ConfigError: Messages without a chat template.
        DataError: No row has a learned token within `max_length`, or the template does not fit a row.
    """
    template = template or tokenizer.chat_template
    if template is None and any(row.texts is None for row in rows):
        raise ConfigError(
            f"data.chat_template=null: the tokenizer {vocabulary.path} has no chat template; give one, or its file"
        )

    def make() -> Encoded:
        found = _Collected()
        for number, row in enumerate(rows):
            _add(found, number, *_tokens(row, tokenizer, vocabulary, template), max_length)
            if progress is not None and number % 100 == 99:
                progress(number + 1)
        return Encoded(
            np.concatenate([*found.ids, np.empty(0, np.int32)]),
            np.concatenate([*found.learned, np.empty(0, np.bool_)]),
            np.array([len(ids) for ids in found.ids], np.int32),
            np.array(found.rows, np.int32),
            np.array(found.prompts, np.int32),
            found.cut,
            found.dropped,
        )

    shown = hashlib.sha256((template or "").encode()).hexdigest()
    options = {"kind": "turns", "max_length": max_length, "template": shown}
    encoded = remembered(Encoded, make, cache, (row.parts for row in rows), vocabulary, options)
    if not len(encoded.lengths):
        raise DataError(
            f"data.max_length={max_length}: the completions of all {len(rows)} rows begin beyond it; use a larger one"
        )
    return ConversationCorpus(encoded, len(rows), vocabulary.size)


def _add(
    found: _Collected, row: int, ids: NDArray[np.int32], learned: NDArray[np.bool_], prompt: int, most: int
) -> None:
    found.cut += len(ids) > most
    ids, learned = ids[:most], learned[:most]
    if learned[1:].any():  # the first token is never predicted
        found.ids.append(ids)
        found.learned.append(learned)
        found.rows.append(row)
        found.prompts.append(max(prompt, 1) if prompt < most else -1)
    else:
        found.dropped += 1


def _tokens(
    row: Conversation, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, template: str | None
) -> tuple[NDArray[np.int32], NDArray[np.bool_], int]:
    """Ids, which of them are learned, and the number of tokens before the last learned turn."""
    if row.texts is not None:
        prompt, completion = row.texts
        text, spans = prompt + completion, [(len(prompt), len(prompt) + len(completion))]
    else:
        text, spans = _rendered(row, tokenizer, template)
    made = tokenizer(text, add_special_tokens=row.texts is not None, return_offsets_mapping=True, verbose=False)
    ids, offsets = np.array(made["input_ids"], np.int32), np.array(made["offset_mapping"]).reshape(-1, 2)
    learned, before = np.zeros(len(ids), np.bool_), len(ids)
    for start, end in spans:
        # A token on the border belongs to the completion, of which it is the first that can be predicted.
        own = (offsets[:, 1] > start) & (offsets[:, 0] < end)
        learned |= own
        before = int(own.argmax()) if own.any() else len(ids)
    if row.texts is not None and vocabulary.end_id is not None:
        if not len(ids) or ids[-1] != vocabulary.end_id:
            ids, learned = np.append(ids, np.int32(vocabulary.end_id)), np.append(learned, True)
        learned[-1] = True
    return ids, learned, before


def _rendered(
    row: Conversation, tokenizer: PreTrainedTokenizerBase, template: str | None
) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and the spans of its learned turns: all behind the turn's generation prompt.

    A span ends with what the template closes the turn with, without white space, which separates it from the next one.
    """

    def render(count: int, *, asked: bool = False) -> str:
        messages: Any = [dict(message) for message in row.messages[:count]]
        try:
            return str(
                tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=asked
                )
            )
        except Exception as error:  # the templates raise errors of their own
            raise FormatError(f"{row.place}: the chat template rejects it ({' '.join(str(error).split())})") from error

    whole, spans = render(len(row.messages)), []
    for number in sorted(row.learned):
        before, alone = render(number, asked=True), render(number + 1).rstrip()
        # Templates of reasoning models write a turn differently once others follow, but not its text.
        text = row.messages[number]["content"].strip()
        ending = alone[max(alone.rfind(text), 0) :]
        at = whole.find(ending, len(before))
        if at < 0 or not whole.startswith(before):
            raise FormatError(
                f"{row.place}: the chat template writes earlier turns differently as the conversation grows, so "
                "its turns cannot be found; use another data.chat_template"
            )
        spans.append((len(before), at + len(ending)))
    return whole, spans
