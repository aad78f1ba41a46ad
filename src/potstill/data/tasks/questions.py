"""Questions about a text whose answers are pieces of it: the JSON shape of SQuAD, which CMRC 2018 and DRCD share."""

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

LOOK = 100  # questions that a check reads


@dataclass(frozen=True)
class Answer:
    """A reference answer.

    Attributes:
        text: as written in the file.
        start: place of its first character in the context; None where the file names a place at which the context
            reads otherwise.
    """

    text: str
    start: int | None


@dataclass(frozen=True)
class Question:
    """A question about a context.

    Attributes:
        id: as in the file; not always its own (see `QuestionCounts.duplicates`).
        question: the question.
        context: the text that has the answer.
        answers: references, of which any will do; none where the question has no answer.
        answerable: whether the context has an answer.
        known: whether the file says what the answers are.
    """

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]
    answerable: bool
    known: bool = True

    @property
    def references(self) -> tuple[str, ...]:
        """The texts of the answers, which is what metrics need."""
        return tuple(answer.text for answer in self.answers)


@dataclass(frozen=True)
class QuestionCounts:
    """What was found in the files.

    Attributes:
        questions: read, whether kept or not.
        unanswerable: questions said to have no answer.
        misplaced: answers whose place in the context reads otherwise.
        blank: answers without text; they are dropped.
        skipped: questions that lost all their answers, and were left out.
        duplicates: questions whose id an earlier one has. They are kept: questions are told apart by their number,
            and a published set (TyDi QA's English one, in this shape) has 89 ids for 3,696 questions.
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
        items: that can be used.
        counts: what was found.
        name: what messages call the part.
        key: the config key that messages name.
        labelled: whether there are answers to compare with.
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
        """Parts one after another, under the name and key of the first."""
        sums = {
            name: sum(getattr(part.counts, name) for part in parts)
            for name in QuestionCounts.__dataclass_fields__
        }
        items = [item for part in parts for item in part.items]
        return replace(parts[0], items=items, counts=QuestionCounts(**sums))


@dataclass(frozen=True)
class References:
    """What a part needs to be compared with.

    Attributes:
        needed: the part is trained on or validated on; if not, it may be only predicted.
        unanswerable: the benchmark has questions without answers.
    """

    needed: bool = False
    unanswerable: bool = False

    def check(self, questions: Questions) -> Questions:
        """Say whether questions have references: not without the file's answers, nor where all lack one unexpectedly.

        Raises:
            DataError: they have none, and need them.
        """
        answered = any(question.answerable for question in questions.items)
        known = all(question.known for question in questions.items)
        labelled = known and (answered or self.unanswerable)
        if self.needed and not labelled:
            raise DataError(
                f"{questions.key}: '{questions.name}' has no question with an answer; give a file with answers, or, "
                "where its questions have none, benchmark.answer_metric=squad_v2"
            )
        return replace(questions, labelled=labelled)


@dataclass(frozen=True)
class QuestionFile:
    """A JSON file of SQuAD's shape, plain or gzip.

    Attributes:
        path: the file.
        training: every answer must have a place.
        max_examples: only so many questions.
        key: the config key that messages name.
        references: what must be there to compare with.
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
        """Cheap look at the file before any work.

        Raises:
            DataError: it cannot be used; the message names the config key, the file and what would be right.
        """
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
    """A split on the hub with the columns `id`, `question`, `context` and `answers` of SQuAD.

    Attributes:
        training: every answer must have a place.
        references: what must be there to compare with.
    """

    training: bool = False
    references: References = References()

    def read(self) -> Questions:
        """All questions; see `read_questions`.

        Raises:
            DataError: it cannot be loaded, lacks a column, or no question can be used.
        """
        dataset = self.split_rows()
        wanted = ("id", "question", "context", "answers")
        if missing := [column for column in wanted if column not in dataset.features]:
            raise DataError(
                f"{self.key}: '{self.name}' has no column '{missing[0]}'; it has {', '.join(dataset.features)}; use a "
                "data set with those of SQuAD"
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

    An answer that is not where its file says is not looked for: the same words may stand elsewhere for another
    reason. Where the place is needed, which is in training, such an answer is dropped; else its text is kept.

    Args:
        paths: JSON files, plain or gzip, of the shape of SQuAD 1.1 or 2.0.
        training: whether every answer must have a place.
        max_examples: only so many questions are read.
        key: the config key that messages name.

    Returns:
        Questions that can be used, and what was found.

    Raises:
        DataError: a file cannot be read or has another shape, or no question is left; the message says where.
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
                f"{label} question '{asked}': no 'answers', which others have; give every question a list of them, "
                "[] where it has none, or none of them"
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
        raise DataError(f"{label} {why}; give a file of the shape of SQuAD with questions and answers")
    return kept, QuestionCounts(**counts)


def _entries(path: Path, key: str) -> Iterator[Question]:
    """The questions of a file, with all their answers."""
    if fault := fault_of(path):
        raise DataError(f"{key}: '{path}' {fault}; give a JSON file of the shape of SQuAD, plain or gzip")
    try:
        content = parse_json(read_document(path, key))
    except ValueError as error:
        raise DataError(f"{key}: '{path}' is no JSON ({error}); give a file of the shape of SQuAD") from error
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
    # SQuAD 2.0 has the answers that seem right but are not elsewhere, and none here; its own script asks for these.
    known = entry.get("answers") is not None or bool(entry.get("is_impossible"))
    answers = () if entry.get("is_impossible") or not known else tuple(at.members(entry, "answers"))
    found = tuple(
        _answer(at.inside(f"answer {number}"), own, context) for number, own in enumerate(answers, 1)
    )
    return Question(str(name), question, context, found, bool(found), known)


def _answer(at: _Place, entry: Any, context: str) -> Answer:
    text, start = at.text(entry, "text"), at.member(entry, "answer_start")
    if not isinstance(start, int):
        raise at.fault(f"'answer_start' is no whole number ({start!r})")
    # CMRC 2018 has places below 0, which Python would count from the end.
    return Answer(text, start if start >= 0 and context.startswith(text, start) else None)


@dataclass(frozen=True)
class _Place:
    """A place in a file; takes its object apart and names itself in faults."""

    name: str

    def inside(self, name: str) -> _Place:
        return _Place(f"{self.name} {name}")

    def fault(self, what: str) -> DataError:
        return DataError(
            f"{self.name}: {what}; SQuAD's shape is data[].paragraphs[].{{context, qas[].{{id, question, "
            "answers[].{text, answer_start}}}"
        )

    def member(self, entry: Any, name: str) -> Any:
        if not isinstance(entry, Mapping):
            raise self.fault("no JSON object")
        if name not in entry:
            raise self.fault(f"no '{name}'")
        return entry[name]

    def members(self, entry: Any, name: str) -> list[Any]:
        value = self.member(entry, name)
        if not isinstance(value, list):
            raise self.fault(f"'{name}' is no list")
        return value

    def text(self, entry: Any, name: str) -> str:
        value = self.member(entry, name)
        if not isinstance(value, str):
            raise self.fault(f"'{name}' is no text ({value!r})")
        return value
