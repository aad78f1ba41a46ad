"""Conversations of JSON and Parquet files. Imports no torch.

A row has `messages`, a list of `{role, content}` whose assistant turns are learned; or `prompt` and `completion`, two
texts that are joined as they are, or two lists of messages. It may have an `answer` or a `reference`, with which what a
model writes for its last turn is compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from potstill.data.common.records import (
    Placed,
    Record,
    RecordError,
    check_file,
    field_of,
    read_entries,
    read_parquet,
    suffix_of,
)
from potstill.data.common.store import canonical
from potstill.data.corpus.sources import HubDataset
from potstill.errors import DataError, FormatError
from potstill.runtime.ranges import is_number

ROLES = ("system", "user", "assistant", "tool")
ASSISTANT = "assistant"
WANTED = "rows with messages, or with prompt and completion"
_PARTS = 2**32

Message = Mapping[str, str]


@dataclass(frozen=True)
class RowFormat:
    """What the columns of rows hold.

    Attributes:
        columns: Columns by the names that they would have; empty: they have them.
        as_messages: Plain prompts and completions are a user's and an assistant's message.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    as_messages: bool = False


PLAIN = RowFormat()


@dataclass(frozen=True)
class Conversation:
    """A row.

    Attributes:
        messages: All turns; empty if the row has two plain texts.
        learned: Numbers of the turns that are learned.
        texts: Prompt and completion as they are; None for messages.
        place: Key, file and line of the row.
        answer: Right answer to the last prompt, if the row has one.
        reference: Text that an answer is compared with, if the row has one.
    """

    messages: tuple[Message, ...]
    learned: frozenset[int]
    texts: tuple[str, str] | None
    place: str
    answer: str | None = None
    reference: str | None = None

    @property
    def prompt(self) -> Any:
        """What comes before the first learned text, which decides whether a row is held out."""
        return self.texts[0] if self.texts else list(self.messages[: min(self.learned)])

    @property
    def completion(self) -> str:
        """The last learned text."""
        return self.texts[1] if self.texts else self.messages[max(self.learned)]["content"]

    @property
    def expected(self) -> str:
        """What a model should write: the answer, else the reference, else the given completion."""
        return next(text for text in (self.answer, self.reference, self.completion) if text is not None)

    @property
    def prompt_text(self) -> str:
        """The prompt of the last learned text, as text: of messages one paragraph for each."""
        if self.texts:
            return self.texts[0]
        before = self.messages[: max(self.learned)]
        return "\n".join(f"{message['role']}: {message['content']}" for message in before)

    @property
    def parts(self) -> Iterator[str]:
        """All its texts, with the roles of its turns."""
        if self.texts:
            yield from self.texts
        for number, message in enumerate(self.messages):
            yield from (message["role"], message["content"], str(number in self.learned))


def read_conversations(
    files: Iterable[str], key: str, most: int | None = None, skip: str | None = None, form: RowFormat = PLAIN
) -> list[Conversation]:
    """The rows of several files.

    Args:
        files: JSON lines, JSON lists (plain or gzip) or Parquet.
        key: Config key for messages.
        most: Rows read of each file; None for all.
        skip: Regular expression of lines of JSON lines to leave out.
        form: What the columns hold.

    Raises:
        DataError: A file cannot be read, or a row is no conversation; the message names its place.
    """
    found = []
    for name in files:
        path = Path(name).expanduser()
        found += _collected(_records(path, key, skip), f"{key}: '{path}'", most, form)
    return found


def read_datasets(
    sources: Iterable[HubDataset], most: int | None = None, form: RowFormat = PLAIN
) -> list[Conversation]:
    """The rows of several data sets; see `read_conversations`."""
    found = []
    for source in sources:
        placed = ((f"row {number}", row) for number, row in enumerate(source.rows(), 1))
        found += _collected(placed, f"{source.key}: '{source.name}'", most, form)
    return found


def _collected(records: Iterable[Placed], source: str, most: int | None, form: RowFormat) -> list[Conversation]:
    found: list[Conversation] = []
    for place, record in records:
        if len(found) == most:
            break
        try:
            found.append(_conversation(_renamed(record, form.columns), f"{source} {place}", form.as_messages))
        except RecordError as error:
            raise FormatError(f"{source} {place}: {error}; use {WANTED}") from error
    if not found:
        raise FormatError(f"{source} has no rows; use {WANTED}")
    return found


def _renamed(record: Record, columns: Mapping[str, str]) -> Record:
    """The fields of a row whose columns are called otherwise; its own answer and reference stay."""
    if not columns:
        return record
    missing = [column for column in columns.values() if column not in record]
    if missing:
        raise RecordError(f"'{missing[0]}' of data.columns is missing (found {', '.join(map(str, record))})")
    kept = {name: record[name] for name in ("answer", "reference") if name in record}
    return kept | {name: record[column] for name, column in columns.items()}


def held_out(rows: Sequence[Conversation], share: float) -> tuple[list[Conversation], list[Conversation]]:
    """Rows for training and for evaluation: a share of the prompts by their content, whatever the order of the rows.

    Raises:
        DataError: One of the parts would be empty.
    """
    parts: tuple[list[Conversation], list[Conversation]] = ([], [])
    for row in rows:
        digest = hashlib.sha256(canonical([row.prompt])).digest()
        parts[int.from_bytes(digest[:4], "little") < share * _PARTS].append(row)
    if not parts[0] or (share and not parts[1]):
        raise DataError(
            f"data.eval_share={share}: {len(rows)} rows have {len(parts[0])} for training and {len(parts[1])} for "
            "evaluation; give data.eval_files, or another share"
        )
    return parts


def _records(path: Path, key: str, skip: str | None) -> Iterator[Placed]:
    if suffix_of(path) != ".parquet":
        check_file(path, key, "JSON lines, a JSON list (plain or gzip) or Parquet")
        yield from read_entries(path, key, objects=True, skip=skip)
        return
    yield from read_parquet(path, key, WANTED)


def _conversation(record: Record, place: str, as_messages: bool) -> Conversation:
    found = _turns(record, place)
    if as_messages and found.texts:
        turns = zip(("user", ASSISTANT), found.texts, strict=True)
        messages = tuple({"role": role, "content": text} for role, text in turns)
        found = Conversation(messages, frozenset([1]), None, place)
    return replace(found, answer=_optional(record, "answer"), reference=_optional(record, "reference"))


def _optional(record: Record, name: str) -> str | None:
    value = record.get(name)
    if value is None:
        return None
    return str(value) if is_number(value) else str(field_of(record, name))


def _turns(record: Record, place: str) -> Conversation:
    if "messages" in record:
        messages = _messages(record, "messages")
        learned = frozenset(number for number, message in enumerate(messages) if message["role"] == ASSISTANT)
        if not learned:
            raise RecordError("no message has the role assistant, so nothing is learned")
        return Conversation(messages, learned, None, place)
    prompt = field_of(record, "prompt", (str, list))
    if isinstance(prompt, str):
        completion = field_of(record, "completion")
        if not completion.strip():
            raise RecordError("'completion' is empty")
        return Conversation((), frozenset(), (prompt, completion), place)
    before, after = _messages(record, "prompt"), _messages(record, "completion")
    if after[0]["role"] != ASSISTANT:
        raise RecordError(f"'completion' begins with the role {after[0]['role']}, not assistant")
    learned = frozenset(n for n, own in enumerate(after, len(before)) if own["role"] == ASSISTANT)
    return Conversation((*before, *after), learned, None, place)


def _messages(record: Record, field: str) -> tuple[Message, ...]:
    found = []
    for message in field_of(record, field, list):
        role, content = field_of(message, "role"), field_of(message, "content")
        if role not in ROLES:
            raise RecordError(f"'{field}' has the role {role!r:.40}; roles are {', '.join(ROLES)}")
        found.append({"role": role, "content": content})
    if not found:
        raise RecordError(f"'{field}' is empty")
    return tuple(found)
