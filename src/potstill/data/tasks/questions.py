"""Extractive question answering in the JSON format of SQuAD, which CMRC 2018 and DRCD share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from potstill.data.common.text_files import fault_of, read_document
from potstill.data.tasks.readers import TaskHub
from potstill.errors import DataError
from potstill.runtime.json_text import parse_json

LOOK = 100  # questions read by a check


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
        sums = {
            name: sum(getattr(part.counts, name) for part in parts)
            for name in QuestionCounts.__dataclass_fields__
        }
        items = [item for part in parts for item in part.items]
        return replace(parts[0], items=items, counts=QuestionCounts(**sums))


@dataclass(frozen=True)
class References:
    """Requirements on reference answers.

    Attributes:
        needed: Whether references are required, as in training and validation.
        unanswerable: Whether the benchmark has unanswerable questions.
    """

    needed: bool = False
    unanswerable: bool = False

    def check(self, questions: Questions) -> Questions:
        """Set `labelled` of questions.

        Raises:
            DataError: Required references are missing.
        """
        answered = any(question.answerable for question in questions.items)
        known = all(question.known for question in questions.items)
        labelled = known and (answered or self.unanswerable)
        if self.needed and not labelled:
            raise DataError(
                f"{questions.key}: '{questions.name}' has no question with an answer; use a file with answers, or "
                "benchmark.answer_metric=squad_v2 for unanswerable questions"
            )
        return replace(questions, labelled=labelled)


@dataclass(frozen=True)
class QuestionFile:
    """A JSON file in the format of SQuAD, plain or gzip.

    Attributes:
        path: Path of the file.
        training: Whether answers without a place are dropped.
        max_examples: Maximum number of questions.
        key: Config key for messages.
        references: Requirements on reference answers.
    """

    path: Path
    training: bool
    max_examples: int | None = None
    key: str = "benchmark.train_file"
    references: References = References()

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    def check(self) -> None:
        """See `PartSource`; reads the first questions."""
        items, counts = read_questions([self.path], training=self.training, max_examples=LOOK, key=self.key)
        if counts.questions < LOOK or not items[0].known:  # else an answer may come later
            self.references.check(Questions(items, counts, self.name, self.key))

    def read(self) -> Questions:
        """All questions; see `read_questions`."""
        items, counts = read_questions(
            [self.path], training=self.training, max_examples=self.max_examples, key=self.key
        )
        return self.references.check(Questions(items, counts, self.name, self.key))


@dataclass(frozen=True)
class HubQuestions(TaskHub):
    """A split on the hub with the columns `id`, `question`, `context` and `answers` of SQuAD; see `QuestionFile`."""

    training: bool = False
    references: References = References()

    def read(self) -> Questions:
        """All questions; see `read_questions`."""
        dataset = self.split_rows()
        wanted = ("id", "question", "context", "answers")
        if missing := [column for column in wanted if column not in dataset.features]:
            raise DataError(
                f"{self.key}: '{self.name}' has no column '{missing[0]}', but {', '.join(dataset.features)}; use a "
                "data set with the columns of SQuAD"
            )
        items, counts = _usable(map(_hub_question, dataset), self.training, f"{self.key}: '{self.name}'")
        return self.references.check(Questions(items, counts, self.name, self.key))


def _hub_question(row: Mapping[str, Any]) -> Question:
    answers, context = row["answers"] or {"text": [], "answer_start": []}, str(row["context"])
    found = tuple(
        Answer(text, start if start >= 0 and context.startswith(text, start) else None)
        for text, start in zip(answers["text"], answers["answer_start"], strict=True)
    )
    return Question(
        str(row["id"]), str(row["question"]), context, found, bool(found), row["answers"] is not None
    )


def read_questions(
    paths: Sequence[Path],
    *,
    training: bool,
    max_examples: int | None = None,
    key: str = "benchmark.train_file",
) -> tuple[list[Question], QuestionCounts]:
    """All questions of SQuAD files, in order.

    An answer that is not at its stated place is dropped in training; otherwise its text is kept.

    Args:
        paths: JSON files in the format of SQuAD 1.1 or 2.0, plain or gzip.
        training: Whether answers without a place are dropped.
        max_examples: Maximum number of questions.
        key: Config key for messages.

    Returns:
        Usable questions, and counts of all.

    Raises:
        DataError: A file cannot be read or has another format, or no question is left; the message names the place.
    """
    entries = (entry for path in paths for entry in _entries(path, key))
    shown = ", ".join(f"'{path}'" for path in paths)
    return _usable(islice(entries, max_examples), training, f"{key}: {shown}")


def _usable(entries: Iterable[Question], training: bool, label: str) -> tuple[list[Question], QuestionCounts]:
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
            raise DataError(
                f"{label} question '{asked}': no 'answers', unlike others; add a list to every question ([] if it is "
                "unanswerable), or to none"
            )
        if not question.answerable:
            counts["unanswerable"] += question.known
            kept.append(question)
            continue
        written = [answer for answer in question.answers if answer.text.strip()]
        placed = [answer for answer in written if answer.start is not None]
        counts["blank"] += len(question.answers) - len(written)
        counts["misplaced"] += len(written) - len(placed)
        if answers := tuple(placed if training else written):
            kept.append(Question(question.id, question.question, question.context, answers, True))
        else:
            counts["skipped"] += 1
    if not kept:
        why = (
            "has no questions" if not counts["questions"] else "has no question with an answer in its context"
        )
        raise DataError(f"{label} {why}; use a file in the format of SQuAD")
    return kept, QuestionCounts(**counts)


def _entries(path: Path, key: str) -> Iterator[Question]:
    if fault := fault_of(path):
        raise DataError(f"{key}: '{path}' {fault}; use a JSON file in the format of SQuAD, plain or gzip")
    try:
        content = parse_json(read_document(path, key))
    except ValueError as error:
        raise DataError(
            f"{key}: '{path}' is not JSON ({error}); use a file in the format of SQuAD"
        ) from error
    file = _Place(f"{key}: '{path}'")
    for article_number, article in enumerate(file.members(content, "data"), 1):
        at_article = file.inside(f"article {article_number}")
        for number, paragraph in enumerate(at_article.members(article, "paragraphs"), 1):
            at_paragraph = at_article.inside(f"paragraph {number}")
            context = at_paragraph.text(paragraph, "context")
            for entry_number, entry in enumerate(at_paragraph.members(paragraph, "qas"), 1):
                yield _question(at_paragraph.inside(f"question {entry_number}"), entry, context)


def _question(at: _Place, entry: Any, context: str) -> Question:
    name, question = at.member(entry, "id"), at.text(entry, "question")
    # SQuAD 2.0 keeps the plausible but wrong answers in another field.
    known = entry.get("answers") is not None or bool(entry.get("is_impossible"))
    answers = () if entry.get("is_impossible") or not known else tuple(at.members(entry, "answers"))
    found = tuple(
        _answer(at.inside(f"answer {number}"), own, context) for number, own in enumerate(answers, 1)
    )
    return Question(str(name), question, context, found, bool(found), known)


def _answer(at: _Place, entry: Any, context: str) -> Answer:
    text, start = at.text(entry, "text"), at.member(entry, "answer_start")
    if not isinstance(start, int):
        raise at.fault(f"'answer_start' is not an integer ({start!r})")
    # CMRC 2018 has negative places, which Python would count from the end.
    return Answer(text, start if start >= 0 and context.startswith(text, start) else None)


@dataclass(frozen=True)
class _Place:
    """Access to the members of an object, with its place in the file for errors."""

    name: str

    def inside(self, name: str) -> _Place:
        return _Place(f"{self.name} {name}")

    def fault(self, what: str) -> DataError:
        return DataError(
            f"{self.name}: {what}; the format is data[].paragraphs[].{{context, qas[].{{id, question, "
            "answers[].{text, answer_start}}}"
        )

    def member(self, entry: Any, name: str) -> Any:
        if not isinstance(entry, Mapping):
            raise self.fault("not a JSON object")
        if name not in entry:
            raise self.fault(f"no '{name}'")
        return entry[name]

    def members(self, entry: Any, name: str) -> list[Any]:
        value = self.member(entry, name)
        if not isinstance(value, list):
            raise self.fault(f"'{name}' is not a list")
        return value

    def text(self, entry: Any, name: str) -> str:
        value = self.member(entry, name)
        if not isinstance(value, str):
            raise self.fault(f"'{name}' is not text ({value!r})")
        return value
