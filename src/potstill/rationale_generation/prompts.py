"""Chain-of-thought prompts with demonstrations (Wei et al. 2022), from one file per task.

A file has templates of questions and answers, and worked examples. A user's own file has the same keys.
"""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from potstill.data.rationales.thoughts import final_answer
from potstill.errors import ConfigError, DataError, FormatError, LabelError
from potstill.runtime.small_files import small_text

FOLDER = Path(__file__).with_name("demonstrations")
MAX_VALUES = 100_000  # in a file of prompts, with expanded aliases
TEXTS = ("instruction", "question", "cue", "answer", "label_field")
KEYS = (*TEXTS, "stop", "demonstrations")

_FIELD = re.compile(r"\{(\w+)\}")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Prompts:
    """Prompts of a task.

    Attributes:
        instruction: Instruction for the model.
        question: Template of a question, with `{field}` for the fields of a row, and `{lettered_choices}` for lines
            "(a) ..." of a list `choices`.
        cue: Text between question and answer.
        answer: Template of an answer, with `{rationale}` and `{label}`, and `{letter}` of the label among choices.
        label_field: Field of the label.
        label_names: Names of labels given by number; empty for labels given as text.
        stop: Strings that end an answer.
        demonstrations: Rows with labels and a field `rationale`.
    """

    instruction: str
    question: str
    cue: str
    answer: str
    label_field: str
    label_names: tuple[str, ...]
    stop: tuple[str, ...]
    demonstrations: tuple[Mapping[str, Any], ...]

    def completion(self, row: Mapping[str, Any]) -> str:
        """The prompt as one text, for a completion.

        Raises:
            DataError: The row lacks a field.
        """
        worked = [f"{self._question(shown)}\n{self.cue} {self._answer(shown)}" for shown in self.demonstrations]
        # No blank after the cue: tokenizers attach it to the next word.
        return "\n\n".join([self.instruction, *worked, f"{self._question(row)}\n{self.cue}"])

    def chat(self, row: Mapping[str, Any]) -> list[dict[str, str]]:
        """The prompt as messages: the instruction, each demonstration as a turn, the question.

        Raises:
            DataError: The row lacks a field.
        """
        turns = [("system", self.instruction)]
        for shown in self.demonstrations:
            turns += [("user", self._question(shown)), ("assistant", self._answer(shown))]
        turns.append(("user", self._question(row)))
        return [{"role": role, "content": content} for role, content in turns]

    def label(self, row: Mapping[str, Any]) -> str:
        """The row's label as text.

        Raises:
            LabelError: The row has no label, or a number without a name.
        """
        if row.get(self.label_field) is None:
            raise LabelError(f"a row has no label '{self.label_field}' (it has: {', '.join(row)})")
        value = row[self.label_field]
        if isinstance(value, bool):
            raise LabelError(f"{self.label_field}={str(value).lower()}: expected a text or a number")
        if not self.label_names or isinstance(value, str):
            return str(value)
        if value not in range(len(self.label_names)):
            raise LabelError(f"{self.label_field}={value}: expected 0 to {len(self.label_names) - 1}")
        return self.label_names[int(value)]

    def clean(self, text: str) -> str | None:
        """An answer without thoughts, the repeated cue, outer blanks, and further questions; None if it is incomplete.

        Half of a surrogate pair, which files cannot contain, becomes U+FFFD.
        """
        text = _SURROGATE.sub("\ufffd", text).strip().removeprefix(self.cue).lstrip()
        answer = final_answer(text, stop=self.stop, template=self.answer)
        return None if answer is None else answer.strip().removeprefix(self.cue).strip()

    def _question(self, row: Mapping[str, Any]) -> str:
        return _fill(self.question, {**row, **_lettered(row)})

    def _answer(self, row: Mapping[str, Any]) -> str:
        label = self.label(row)
        fields = {**row, "label": label}
        choices = row.get("choices", [])
        if label in choices:
            fields["letter"] = string.ascii_lowercase[choices.index(label)]
        return _fill(self.answer, fields)


def load_prompts(task: str, file: str | Path | None = None, shots: int | None = None) -> Prompts:
    """The prompts of a task.

    Args:
        task: `cqa`, `svamp`, `esnli` or `anli1`; with `file` any name.
        file: A user's YAML file, which replaces the built-in one.
        shots: Number of demonstrations, the first ones; None for all.

    Raises:
        ConfigError: An unknown task, or too many shots.
        DataError: The file does not exist.
        FormatError: The file is not valid.
    """
    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if file is None and task not in known:
        raise ConfigError(f"generation.task={task}: must be one of {', '.join(known)}, or set generation.prompts=FILE")
    path = FOLDER / f"{task}.yaml" if file is None else Path(file).expanduser()
    prompts = _read(path)
    if shots is None:
        return prompts
    if not 0 <= shots <= len(prompts.demonstrations):
        raise ConfigError(
            f"generation.shots={shots}: expected 0 to {len(prompts.demonstrations)}, "
            f"the number of demonstrations in {path}"
        )
    return replace(prompts, demonstrations=prompts.demonstrations[:shots])


def _read(path: Path) -> Prompts:
    try:
        content = yaml.safe_load(small_text(path, "generation.prompts"))
        largest = _expanded(content, {})
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a ValueError: a date such as 2024-99-99
        raise FormatError(f"generation.prompts={path}: cannot be read ({' '.join(str(error).split())})") from None
    if largest > MAX_VALUES:
        raise FormatError(f"generation.prompts={path}: has more than {MAX_VALUES:,} values with expanded aliases")
    try:
        return _prompts_of(content)
    except DataError as error:
        raise FormatError(f"generation.prompts={path}: {error}") from None


def _prompts_of(content: Any) -> Prompts:
    """The prompts of a YAML document; errors do not name the file."""
    if not isinstance(content, dict):
        raise DataError(f"expected the keys {', '.join(KEYS)}")
    for error, names in (
        ("lacks", set(KEYS) - content.keys()),
        ("has the unknown key", content.keys() - {*KEYS, "label_names"}),
    ):
        if names:
            raise DataError(
                f"{error} {', '.join(sorted(map(str, names)))}; expected {', '.join(KEYS)} and optionally label_names"
            )
    fields: dict[str, Any] = {name: _text(content, name) for name in TEXTS}
    for name, kind in (("label_names", str), ("stop", str), ("demonstrations", dict)):
        fields[name] = tuple(_list_of(content, name, kind))
    for field in ("rationale", "label"):
        if f"{{{field}}}" not in fields["answer"]:
            raise DataError(f"answer: lacks {{{field}}}; expected such as '{{rationale}} The answer is {{label}}.'")
    prompts = Prompts(**fields)
    for number, row in enumerate(prompts.demonstrations, 1):
        try:
            for name, value in row.items():
                if isinstance(value, bool):  # YAML's meaning of yes, no, on and off
                    raise DataError(f"{name} is {str(value).lower()}; quote a text such as 'yes' or 'no'")
            prompts._question(row)
            prompts._answer(row)
        except DataError as error:
            raise DataError(f"demonstration {number}: {error}") from None
    return prompts


def _text(content: Mapping[str, Any], name: str) -> str:
    text = content[name]
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{name}={text}: expected a text")
    return text


def _list_of(content: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    value = content.get(name, [])
    if not isinstance(value, list) or not all(isinstance(one, kind) and one for one in value):
        raise DataError(f"{name}: expected a list of {'texts' if kind is str else 'mappings'}")
    return value


def _expanded(value: Any, known: dict[int, int]) -> int:
    """Number of values with expanded aliases."""
    if isinstance(value, str) and _SURROGATE.search(value):
        raise ValueError("a text has half of a surrogate pair")
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_expanded(one, known) for one in inner)
    return known[id(value)]


def _lettered(row: Mapping[str, Any]) -> dict[str, str]:
    """The lines of a row's choices, "(a) ..."."""
    choices = row.get("choices")
    if choices is None:
        return {}
    if isinstance(choices, str) or not isinstance(choices, Sequence) or len(choices) > len(string.ascii_lowercase):
        raise DataError(f"choices={choices}: expected a list of at most {len(string.ascii_lowercase)} texts")
    lines = [f"({letter}) {choice}" for letter, choice in zip(string.ascii_lowercase, choices, strict=False)]
    return {"lettered_choices": "\n".join(lines)}


def _fill(template: str, fields: Mapping[str, Any]) -> str:
    """Fill in a template; braces within the fields are literal."""
    missing = [name for name in _FIELD.findall(template) if name not in fields]
    if missing:
        raise DataError(f"a row has no field '{missing[0]}' (it has: {', '.join(map(str, fields))})")
    return _FIELD.sub(lambda found: str(fields[found[1]]).strip(), template)
