"""Forms of inputs and targets as token ids: of encoder-decoders, and of decoder-only students."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from potstill.data.common.tokenizers import Vocabulary, load_backend
from potstill.data.tasks.features import BATCH, encode_texts
from potstill.errors import ConfigError, DataError, TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "\ufdd0"  # stands for the user's message in a template; no text has this code point
_WORD = "x"  # a text before another one, so that the second begins as in the middle of a text


@dataclass(frozen=True)
class Tokens:
    """Token ids of one text per row, end to end.

    Attributes:
        ids: `(tokens,)` int32; a target has its end token.
        lengths: `(rows,)` int32; 0 for a row without text.
        truncated: `(rows,)` bool, whether a text was truncated.
    """

    ids: NDArray[np.int32]
    lengths: NDArray[np.int32]
    truncated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class Form:
    """How the texts of a row become token ids.

    An encoder-decoder reads and writes texts as the tokenizer frames them, with its end token. A decoder-only student
    continues a prompt: the chat template with the input as the user's message, or the input and a line break (the end
    token, if the tokenizer adds it to every text). Its targets are bare texts with the end token.

    Attributes:
        vocabulary: of the tokenizer.
        end_id: token that ends a target.
        prompts: whether inputs are prompts of a decoder-only student.
        chat: the chat template before and after the user's message; None for plain prompts.
        separator: text between a label and its rationale in one target; None if they are targets of their own.
    """

    vocabulary: Vocabulary
    end_id: int | None
    prompts: bool = False
    chat: tuple[str, str] | None = None
    separator: str | None = None

    @cached_property
    def backend(self) -> Tokenizer:
        """The tokenizer, without truncation."""
        return load_backend(self.vocabulary.path)

    @property
    def identity(self) -> dict[str, Any]:
        """What features depend on beside texts, prefixes and lengths; empty for targets of an encoder-decoder."""
        parts = {"prompts": self.prompts, "chat": self.chat, "separator": self.separator}
        found = {name: value for name, value in parts.items() if value}
        return {"form": {**found, "end": self.end_id}} if found else {}

    @cached_property
    def separator_ids(self) -> tuple[int, ...]:
        """Tokens of the separator; empty without one.

        Raises:
            TokenizerError: the tokenizer cannot write it.
        """
        if self.separator is None:
            return ()
        (ids,) = self._continuing([self.separator.strip()])
        if not ids or set(ids) == {self.vocabulary.unk_id}:
            raise TokenizerError(
                f"data.explain_prefix={self.separator!r}: separates label and rationale, but the tokenizer "
                f"'{self.vocabulary.path}' has no tokens for it; use other words"
            )
        return tuple(ids)

    def inputs(
        self, texts: Iterable[str | None], prefix: str, most: int, progress: Callable[[int], None] | None = None
    ) -> Tokens:
        """Inputs with a prefix; long ones are cut at the end of their text.

        Args:
            texts: One per row; None gives a row without tokens.
            prefix: Before each text.
            most: Maximum number of tokens.
            progress: Called with the number of rows done.

        Raises:
            DataError: A prompt without its text is longer.
        """
        if not self.prompts:
            return self._framed((None if text is None else f"{prefix}{text}" for text in texts), most, progress)
        before, after = self.chat or ("", "" if self._ends_texts else "\n")
        head = before + prefix
        rows = chain.from_iterable(self._prompts(batch, head, after) for batch in _batches(texts))
        return _tokens((self._cut(encoding, len(head), len(after), most) for encoding in rows), progress)

    def targets(self, texts: Iterable[str | None], most: int, progress: Callable[[int], None] | None = None) -> Tokens:
        """Targets, truncated before their end token; None gives a row without tokens."""
        if not self.prompts:
            return self._framed(texts, most, progress)
        return _tokens((None if text is None else self._ended(self._bare(text), most) for text in texts), progress)

    def joined(self, labels: Sequence[str], rationales: Sequence[str | None], most: int) -> Tokens:
        """Targets of a label, the separator and a rationale, truncated before their end token.

        The tokens of a label are those of a target of its own, and the separator has the same tokens in all rows. A row
        without a rationale has no end token, since a text goes on behind the separator.
        """
        texts = iter(self._continuing([text for text in rationales if text is not None]))
        made = []
        for label, rationale in zip(labels, rationales, strict=True):
            ids = [*self._bare(label), *self.separator_ids]
            made.append((ids[:most], len(ids) > most) if rationale is None else self._ended([*ids, *next(texts)], most))
        return _tokens(made)

    def choice(self, label: str) -> list[int]:
        """A label and what follows it: the end token or the separator, which tells it from a longer label."""
        if self.separator is not None:
            return [*self._bare(label), *self.separator_ids]
        return [*self._bare(label), self._end] if self.prompts else list(self.backend.encode(label).ids)

    def split(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """A generated target as label and rationale, without the separator and the end."""
        ids, size = list(ids), len(self.separator_ids)
        if self.end_id in ids:
            ids = ids[: ids.index(self.end_id)]
        for place in range(len(ids) - size + 1) if size else ():
            if tuple(ids[place : place + size]) == self.separator_ids:
                return ids[:place], ids[place + size :]
        return ids, []

    @property
    def _end(self) -> int:
        assert self.end_id is not None
        return self.end_id

    @cached_property
    def _ends_texts(self) -> bool:
        return bool(self.backend.encode("a").ids[-1:] == [self.end_id])

    def _framed(self, texts: Iterable[str | None], most: int, progress: Callable[[int], None] | None) -> Tokens:
        backend = load_backend(self.vocabulary.path)
        if backend.encode("a").ids[-1:] != [self.vocabulary.end_id]:
            raise TokenizerError(
                f"data.tokenizer: '{self.vocabulary.path}' adds no end token to a text, so a student could not learn "
                "to stop; use the tokenizer of an encoder-decoder, such as T5's"
            )
        backend.enable_truncation(most)
        made = encode_texts(texts, backend, progress=progress)
        return Tokens(made.ids, made.lengths, made.truncated)

    def _prompts(self, texts: Sequence[str | None], head: str, after: str) -> Iterator[Encoding | None]:
        prompts = [f"{head}{text}{after}" for text in texts if text is not None]
        encoded = iter(self.backend.encode_batch(prompts, add_special_tokens=self.chat is None))
        return (None if text is None else next(encoded) for text in texts)

    def _cut(self, encoding: Encoding | None, start: int, after: int, most: int) -> tuple[list[int], bool] | None:
        if encoding is None:
            return None
        ids = list(encoding.ids) or [self._end]  # a blank text and a tokenizer of words
        if len(ids) <= most:
            return ids, False
        last = max(end for _, end in encoding.offsets) - after
        inside = [place for place, (a, b) in enumerate(encoding.offsets) if start <= a < b <= last]
        excess = len(ids) - most
        if excess >= len(inside):
            raise DataError(
                f"data.max_input_length: a prompt without its input has {len(ids) - len(inside)} tokens, and there is "
                f"space for {most}; use a larger one, or data.chat=false"
            )
        dropped = set(inside[-excess:])
        return [token for place, token in enumerate(ids) if place not in dropped], True

    def _bare(self, text: str) -> list[int]:
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def _ended(self, ids: list[int], most: int) -> tuple[list[int], bool]:
        return [*ids[: most - 1], self._end], len(ids) >= most

    def _continuing(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts that follow another one and a blank."""
        skipped = len(self._bare(_WORD))
        encoded = self.backend.encode_batch([f"{_WORD} {text}" for text in texts], add_special_tokens=False)
        return [list(made.ids[skipped:]) for made in encoded]


def chat_frame(tokenizer: PreTrainedTokenizerBase, key: str) -> tuple[str, str]:
    """The chat template before and after the message of a user, up to where the answer begins.

    Templates that can think are asked for an answer without thoughts.

    Args:
        tokenizer: With a chat template.
        key: Configuration key and value, for messages.

    Raises:
        ConfigError: The template cannot be used.
    """
    message: Any = [{"role": "user", "content": _MARK}]
    try:
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        before, after = str(text).split(_MARK)
    except Exception as error:  # the templates raise errors of their own
        raise ConfigError(
            f"{key}: the chat template of '{tokenizer.name_or_path}' cannot be used ({' '.join(str(error).split())}); "
            "data.chat=false"
        ) from error
    return before, after


def _tokens(rows: Iterable[tuple[list[int], bool] | None], progress: Callable[[int], None] | None = None) -> Tokens:
    """Rows of ids, and whether they were truncated, end to end."""
    ids, lengths, truncated = [np.zeros(0, np.int32)], list[int](), list[bool]()
    for batch in _batches(rows):
        for row in batch:
            own, cut = row or ([], False)
            ids.append(np.array(own, np.int32))
            lengths.append(len(own))
            truncated.append(cut)
        if progress is not None:
            progress(len(lengths))
    return Tokens(np.concatenate(ids), np.array(lengths, np.int32), np.array(truncated, np.bool_))


def _batches(rows: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, BATCH)):
        yield batch
