"""Extractive question answering in the JSON format of SQuAD, which CMRC 2018 and DRCD share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar

from potstill.data.common.records import RecordError, field_of, read_json_document
from potstill.data.tasks.sources import DataFile, PartSource
from potstill.errors import FormatError, LabelError

FORMAT = "data[].paragraphs[].{context, qas[].{id, question, answers[].{text, answer_start}}}"


@dataclass(frozen=True)
class Answer:
    """A reference answer.

    Attributes:
        text: Text as in the file.
        start: Index of its first character in the context; None if the context differs there.
    """

    text: str
    start: int | None


@dataclass(frozen=True)
class Question:
    """A question about a context.

    Attributes:
        id: Id in the file, not always unique.
        question: Text of the question.
        context: Text with the answer.
        answers: Alternative reference answers; empty for an unanswerable question.
        answerable: Whether the context has an answer.
        known: Whether the file has answers.
    """

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]
    answerable: bool
    known: bool = True

    @property
    def references(self) -> tuple[str, ...]:
        """Texts of the answers."""
        return tuple(answer.text for answer in self.answers)


@dataclass(frozen=True)
class QuestionCounts:
    """Counts of the questions read.

    Attributes:
        questions: All questions.
        unanswerable: Questions marked as unanswerable.
        misplaced: Answers that are not at their stated place.
        blank: Answers without text, which are dropped.
        skipped: Questions without remaining answers, which are dropped.
        duplicates: Questions with the id of an earlier one. They are kept: TyDi QA's English set has 89 ids for 3,696
            questions.
    """

    questions: int = 0
    unanswerable: int = 0
    misplaced: int = 0
    blank: int = 0
    skipped: int = 0
    duplicates: int = 0


@dataclass(frozen=True)
class Questions:
    """The questions of a part.

    Attributes:
        items: Usable questions.
        counts: Counts of the questions read.
        name: Name of the part for messages.
        key: Config key for messages.
        labelled: Whether there are reference answers.
    """

    items: list[Question]
    counts: QuestionCounts
    name: str
    key: str
    labelled: bool = True

    def __len__(self) -> int:
        return len(self.items)

    @staticmethod
    def joined(parts: Sequence[Questions]) -> Questions:
        """Concatenate parts, under the name and key of the first."""
        sums = {name: sum(getattr(part.counts, name) for part in parts) for name in QuestionCounts.__dataclass_fields__}
        items = [item for part in parts for item in part.items]
        return replace(parts[0], items=items, counts=QuestionCounts(**sums))


@dataclass(frozen=True)
class QuestionSource(PartSource):
    """Questions of a JSON file in the format of SQuAD 1.1 or 2.0, or of a data set with the columns of SQuAD.

    Attributes:
        training: Whether answers that are not at their stated place are dropped; otherwise their text is kept.
        unanswerable: Whether the part may have unanswerable questions alone.
    """

    training: bool = False
    unanswerable: bool = False

    wanted: ClassVar[str] = "a JSON file in the format of SQuAD"
    checked_examples: ClassVar[int] = 100

    def read_first(self, count: int | None) -> Questions:
        """See `PartSource`."""
        found = self._entries(self.source) if isinstance(self.source, DataFile) else self._rows()
        entries = list(islice(found, count))
        return usable_questions(entries, self, partial=len(entries) == count != self.max_examples)

    def _entries(self, file: DataFile) -> Iterator[Question]:
        place = ""
        try:
            articles = field_of(read_json_document(file.path, file.key), "data", list)
            for article_number, article in enumerate(articles, 1):
                place = f" article {article_number}"
                for number, paragraph in enumerate(field_of(article, "paragraphs", list), 1):
                    place = f" article {article_number} paragraph {number}"
                    context, entries = field_of(paragraph, "context"), field_of(paragraph, "qas", list)
                    for entry_number, entry in enumerate(entries, 1):
                        place = f" article {article_number} paragraph {number} question {entry_number}"
                        yield _question(entry, context)
        except RecordError as error:
            raise FormatError(f"{file.prefix}{place}: {error}; the format is {FORMAT}") from error

    def _rows(self) -> Iterator[Question]:
        for place, row in self.source.records():
            try:
                yield _row_question(row)
            except RecordError as error:
                raise FormatError(f"{self.source.prefix} {place}: {error}; use the columns of SQuAD") from error


def usable_questions(entries: Iterable[Question], part: QuestionSource, *, partial: bool = False) -> Questions:
    """Usable questions, in order.

    Args:
        entries: Questions as written.
        part: The part that they are from.
        partial: Whether there are more questions, so that the first answer may come later.

    Raises:
        DataError: There are none, or required answers are missing; the message names the question.
    """
    kept: list[Question] = []
    counts = dict.fromkeys(QuestionCounts.__dataclass_fields__, 0)
    seen: set[str] = set()
    first: Question | None = None
    for question in entries:
        counts["questions"] += 1
        counts["duplicates"] += question.id in seen
        seen.add(question.id)
        if question.known != (first := first or question).known:
            asked = question.id if first.known else first.id
            raise FormatError(
                f"{part.source.prefix} question '{asked}': no 'answers', unlike others; add a list to every question "
                "([] if it is unanswerable), or to none"
            )
        if not question.answerable:
            counts["unanswerable"] += question.known
            kept.append(question)
            continue
        written = [answer for answer in question.answers if answer.text.strip()]
        placed = [answer for answer in written if answer.start is not None]
        counts["blank"] += len(question.answers) - len(written)
        counts["misplaced"] += len(written) - len(placed)
        if answers := tuple(placed if part.training else written):
            kept.append(replace(question, answers=answers))
        else:
            counts["skipped"] += 1
    if not kept:
        problem = "has no question with an answer in its context" if counts["questions"] else "has no questions"
        raise FormatError(f"{part.source.prefix} {problem}; use a file in the format of SQuAD")
    labelled = kept[0].known and (part.unanswerable or any(question.answerable for question in kept))
    if part.labelled and not labelled and not (partial and kept[0].known):
        raise LabelError(
            f"{part.source.prefix} has no question with an answer; use a file with answers, or "
            "benchmark.answer_metric=squad_v2 for unanswerable questions"
        )
    return Questions(kept, QuestionCounts(**counts), part.source.name, part.source.key, labelled)


def _row_question(row: Any) -> Question:
    """A question of a row with the columns of SQuAD."""
    name, question, context = (str(field_of(row, column, object)) for column in ("id", "question", "context"))
    written = field_of(row, "answers", object)
    answers = written or {"text": [], "answer_start": []}
    pairs = zip(field_of(answers, "text", list), field_of(answers, "answer_start", list), strict=True)
    found = tuple(_answer(text, start, context) for text, start in pairs)
    return Question(name, question, context, found, bool(found), written is not None)


def _question(entry: Any, context: str) -> Question:
    name, question = field_of(entry, "id", object), field_of(entry, "question")
    # SQuAD 2.0 keeps the plausible but wrong answers in another field.
    impossible = bool(entry.get("is_impossible"))
    known = impossible or entry.get("answers") is not None
    answers = field_of(entry, "answers", list) if known and not impossible else []
    found = tuple(_answer(field_of(one, "text"), field_of(one, "answer_start", int), context) for one in answers)
    return Question(str(name), question, context, found, bool(found), known)


def _answer(text: str, start: int, context: str) -> Answer:
    # CMRC 2018 has negative places, which Python would count from the end.
    return Answer(text, start if start >= 0 and context.startswith(text, start) else None)
