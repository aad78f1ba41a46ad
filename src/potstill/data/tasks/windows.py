"""Questions with contexts as token ids, in windows that slide over long contexts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from potstill.data.common.tokenizers import Vocabulary, load_backend
from potstill.data.tasks.questions import Question
from potstill.errors import ConfigError

BATCH = 1000  # texts tokenized together
NULL = 0  # position for "no answer in this window": its first token, such as [CLS]


@dataclass(frozen=True)
class Windows:
    """Windows of questions, end to end: the tokens of a question and of a piece of its context, as a pair.

    Attributes:
        ids: `(tokens,)` int32, with special tokens.
        types: `(tokens,)` uint8 token types: 0 and 1 for BERT, 0 for RoBERTa.
        lengths: `(windows,)` int32, tokens of each window.
        question: `(windows,)` int32, number of the question; ascending.
        begin: `(windows,)` int32, position of the first context token in the window.
        first: `(windows,)` int32, index of this token in the context.
        pieces: `(windows,)` int32, number of context tokens in the window.
        context: `(questions,)` int32, number of the context.
        offsets: `(context tokens, 2)` int32, start and end characters of the tokens of all contexts, without white
            space.
        starts: `(contexts + 1,)` int64, start of each context in `offsets`, and their number.
        cut: `(questions,)` bool, whether a question was truncated.
    """

    ids: NDArray[np.int32]
    types: NDArray[np.uint8]
    lengths: NDArray[np.int32]
    question: NDArray[np.int32]
    begin: NDArray[np.int32]
    first: NDArray[np.int32]
    pieces: NDArray[np.int32]
    context: NDArray[np.int32]
    offsets: NDArray[np.int32]
    starts: NDArray[np.int64]
    cut: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.lengths)

    def offsets_of(self, question: int) -> NDArray[np.int32]:
        """`(context tokens, 2)` offsets of the context of a question."""
        context = self.context[question]
        return self.offsets[self.starts[context] : self.starts[context + 1]]


def windows_of(
    questions: Sequence[Question],
    vocabulary: Vocabulary,
    *,
    max_length: int,
    stride: int,
    max_question_length: int,
    progress: Callable[[int], None] | None = None,
) -> Windows:
    """Questions and contexts in windows, as in BERT's own code (Devlin et al. 2019, `run_squad.py`).

    Question and context are tokenized separately.

    Args:
        questions: In the order of the windows.
        vocabulary: Vocabulary of the tokenizer.
        max_length: Maximum number of tokens of a window, with special tokens.
        stride: Tokens of the context between the starts of two windows. (In transformers `stride` is the overlap.)
        max_question_length: Maximum number of tokens of a question; longer ones are truncated.
        progress: Called with the number of questions done.

    Raises:
        ConfigError: The stride is larger than a window's piece of context.
    """
    tokenizer = load_backend(vocabulary.path)
    frame = _frame(tokenizer)
    capacity = max_length - max_question_length - len(frame.ids)
    if not 0 < stride < capacity:
        raise ConfigError(
            f"benchmark.stride={stride}: must be 1 to {capacity - 1}, less than the {capacity} context tokens of a "
            f"window (data.max_length={max_length} without {max_question_length} tokens of the question and "
            f"{len(frame.ids)} special tokens)"
        )
    numbers: dict[str, int] = {}
    context_of = [numbers.setdefault(question.context, len(numbers)) for question in questions]
    contexts = [
        (np.array(own.ids, np.int32), _trimmed(own.offsets, text))
        for text, own in zip(numbers, _encoded(tokenizer, list(numbers)), strict=True)
    ]
    build = _Builder(frame, max_length, stride)
    cut = np.zeros(len(questions), np.bool_)
    asked = _encoded(tokenizer, [question.question for question in questions])
    for number, (own, context) in enumerate(zip(asked, context_of, strict=True)):
        cut[number] = len(own.ids) > max_question_length
        build.add(number, np.array(own.ids[:max_question_length], np.int32), contexts[context][0])
        if progress is not None and ((number + 1) % BATCH == 0 or number + 1 == len(questions)):
            progress(number + 1)
    offsets = [np.zeros((0, 2), np.int32), *(own for _, own in contexts)]
    return Windows(
        **build.arrays(),
        context=np.array(context_of, np.int32),
        offsets=np.concatenate(offsets),
        starts=np.cumsum([len(own) for own in offsets], dtype=np.int64),
        cut=cut,
    )


def targets_of(windows: Windows, questions: Sequence[Question]) -> NDArray[np.int32]:
    """Training targets: the first and last token of the first answer of each question, in each window.

    Both are `NULL` for a window that does not contain the whole answer.

    Args:
        windows: Windows of the questions.
        questions: Questions as read for training, so that answers have places.

    Returns:
        `(windows, 2)` int32 positions in the window.
    """
    spans = np.array([_span(windows, n, own) for n, own in enumerate(questions)], np.int32).reshape(-1, 2)
    own = spans[windows.question] - windows.first[:, None]
    inside = (spans[windows.question, 0] >= 0) & (own[:, 0] >= 0) & (own[:, 1] < windows.pieces)
    return np.where(inside[:, None], own + windows.begin[:, None], NULL).astype(np.int32)


def _span(windows: Windows, number: int, question: Question) -> tuple[int, int]:
    """First and last context token of the first answer with a place; -1 without any."""
    answer = next((own for own in question.answers if own.start is not None), None)
    if answer is None or answer.start is None:
        return -1, -1
    offsets = windows.offsets_of(number)
    touching = (offsets[:, 0] < answer.start + len(answer.text)) & (offsets[:, 1] > answer.start)
    (found,) = np.nonzero(touching & (offsets[:, 0] < offsets[:, 1]))
    return (int(found[0]), int(found[-1])) if len(found) else (-1, -1)


@dataclass(frozen=True)
class _Frame:
    """Special tokens of a pair of texts, and token types.

    Attributes:
        ids: Special tokens before, between and after the texts.
        types: Their types.
        ends: Number of special tokens before the first text, and before the second.
        text_types: Types of both texts.
    """

    ids: NDArray[np.int32]
    types: NDArray[np.uint8]
    ends: tuple[int, int]
    text_types: tuple[int, int]

    def around(self, question: NDArray[np.int32], piece: NDArray[np.int32]) -> tuple[NDArray, NDArray]:
        """Ids and types of a window."""
        before, middle = self.ends
        ids = (self.ids[:before], question, self.ids[before:middle], piece, self.ids[middle:])
        types = (
            self.types[:before],
            np.full(len(question), self.text_types[0], np.uint8),
            self.types[before:middle],
            np.full(len(piece), self.text_types[1], np.uint8),
            self.types[middle:],
        )
        return np.concatenate(ids), np.concatenate(types)


def _frame(tokenizer: Tokenizer) -> _Frame:
    pair = tokenizer.encode("a", "a")
    of = pair.sequence_ids
    special = [place for place, text in enumerate(of) if text is None]
    texts = [of.index(0), of.index(1)]
    return _Frame(
        np.array([pair.ids[place] for place in special], np.int32),
        np.array([pair.type_ids[place] for place in special], np.uint8),
        (sum(place < texts[0] for place in special), sum(place < texts[1] for place in special)),
        (pair.type_ids[texts[0]], pair.type_ids[texts[1]]),
    )


class _Builder:
    """Cuts contexts into windows and collects them."""

    def __init__(self, frame: _Frame, max_length: int, stride: int):
        self.frame, self.max_length, self.stride = frame, max_length, stride
        self.ids: list[NDArray] = [np.zeros(0, np.int32)]
        self.types: list[NDArray] = [np.zeros(0, np.uint8)]
        self.rows: list[tuple[int, int, int, int, int]] = []

    def add(self, number: int, question: NDArray[np.int32], context: NDArray[np.int32]) -> None:
        capacity = self.max_length - len(question) - len(self.frame.ids)
        begin = len(question) + self.frame.ends[1]
        first, reached = 0, -1
        while reached < len(context):  # also once for a context without tokens
            piece = context[first : first + capacity]
            ids, types = self.frame.around(question, piece)
            self.ids.append(ids)
            self.types.append(types)
            self.rows.append((len(ids), number, begin, first, len(piece)))
            reached, first = first + capacity, first + self.stride

    def arrays(self) -> dict[str, NDArray]:
        rows = np.ascontiguousarray(np.array(self.rows, np.int32).reshape(-1, 5).T)
        arrays = dict(zip(("lengths", "question", "begin", "first", "pieces"), rows, strict=True))
        return arrays | {"ids": np.concatenate(self.ids), "types": np.concatenate(self.types)}


def _encoded(tokenizer: Tokenizer, texts: list[str]) -> Iterator[Encoding]:
    for start in range(0, len(texts), BATCH):
        yield from tokenizer.encode_batch(texts[start : start + BATCH], add_special_tokens=False)


def _trimmed(offsets: Sequence[tuple[int, int]], text: str) -> NDArray[np.int32]:
    """Offsets without white space, which byte-level tokens may include."""
    trimmed = np.array(offsets, np.int32).reshape(-1, 2)
    for number, (start, end) in enumerate(offsets):
        piece = text[start:end]
        if piece and (piece[0].isspace() or piece[-1].isspace()):
            start += len(piece) - len(piece.lstrip())
            trimmed[number] = start, max(start, start + len(piece.strip()))
    return trimmed
