"""Chain-of-thought prompts with demonstrations (Wei et al. 2022), from a file for each task.

The file of a task says how its questions and answers are written and brings worked examples. A user's own file has the
same keys and takes its place.
"""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from potstill.data.rationales.thoughts import final_answer
from potstill.errors import ConfigError, DataError
from potstill.runtime.small_files import small_text

FOLDER = Path(__file__).with_name("demonstrations")
MOST_VALUES = 100_000  # of a file of prompts, its aliases expanded
KEYS = ("instruction", "question", "cue", "answer", "label_field", "stop", "demonstrations")

_FIELD = re.compile(r"\{(\w+)\}")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Prompts:
    """How a task is put to a language model.

    Attributes:
        instruction: what to do and how to end, for the model.
        question: template of a question, with `{field}` for the fields of a row. Where a row has a list `choices`,
            `{lettered_choices}` are its lines "(a) ...".
        cue: what comes between question and answer.
        answer: template of an answer, with `{rationale}` and `{label}`, and `{letter}` of the label among choices.
        label_field: the rows' field that holds the label.
        label_names: names of labels that rows give by number; empty where they give them as text.
        stop: strings that end an answer.
        demonstrations: rows with their labels and a field `rationale`.
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
        """The prompt as one text, which the answer goes on from.

        Raises:
            DataError: the row lacks a field.
        """
        worked = [
            f"{self._question(shown)}\n{self.cue} {self._answer(shown)}" for shown in self.demonstrations
        ]
        # No blank after the cue: tokenizers have it at the beginning of the next word.
        return "\n\n".join([self.instruction, *worked, f"{self._question(row)}\n{self.cue}"])

    def chat(self, row: Mapping[str, Any]) -> list[dict[str, str]]:
        """The prompt as messages: the instruction, each demonstration as a turn, the question.

        Raises:
            DataError: the row lacks a field.
        """
        turns = [("system", self.instruction)]
        for shown in self.demonstrations:
            turns += [("user", self._question(shown)), ("assistant", self._answer(shown))]
        turns.append(("user", self._question(row)))
        return [{"role": role, "content": content} for role, content in turns]

    def label(self, row: Mapping[str, Any]) -> str:
        """The row's label as a text.

        Raises:
            DataError: the row has none, or a number without a name.
        """
        if row.get(self.label_field) is None:
            raise DataError(f"a row has no label '{self.label_field}' (it has: {', '.join(row)})")
        value = row[self.label_field]
        if isinstance(value, bool):
            raise DataError(f"{self.label_field}={str(value).lower()}: expected a text or a number")
        if not self.label_names or isinstance(value, str):
            return str(value)
        if value not in range(len(self.label_names)):
            raise DataError(f"{self.label_field}={value}: expected 0 to {len(self.label_names) - 1}")
        return self.label_names[int(value)]

    def clean(self, text: str) -> str | None:
        """An answer without what a model adds: thoughts, the repeated cue, outer blanks, further questions of its own.

        Half of a surrogate pair, which JSON can carry and no file can, becomes U+FFFD.

        Returns:
            The answer; None where it ends within a thought, or is too long to be one.
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
        task: `cqa`, `svamp`, `esnli` or `anli1`; with `file` any name, for messages.
        file: a YAML file of the user's in place of the package's own.
        shots: how many of the demonstrations are shown, the first ones; default all.

    Raises:
        ConfigError: an unknown task, or more shots than there are.
        DataError: the file is missing, is no YAML, or lacks something.
    """
    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if file is None and task not in known:
        raise ConfigError(
            f"generation.task={task}: has no prompts; expected one of {', '.join(known)}, or generation.prompts=FILE"
        )
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
        raise DataError(
            f"generation.prompts={path}: cannot be used ({' '.join(str(error).split())})"
        ) from None
    if largest > MOST_VALUES:
        raise DataError(f"generation.prompts={path}: its aliases stand for more than {MOST_VALUES:,} values")
    try:
        return _prompts_of(content)
    except DataError as error:
        raise DataError(f"generation.prompts={path}: {error}") from None


def _prompts_of(content: Any) -> Prompts:
    """The prompts that a YAML document holds, checked; errors do not name the file."""
    if not isinstance(content, dict):
        raise DataError(f"expected the keys {', '.join(KEYS)}")
    _check_keys(content)
    _check_texts(content)
    prompts = Prompts(
        instruction=content["instruction"],
        question=content["question"],
        cue=content["cue"],
        answer=content["answer"],
        label_field=content["label_field"],
        label_names=tuple(_list_in(content, "label_names", str)),
        stop=tuple(_list_in(content, "stop", str)),
        demonstrations=tuple(_list_in(content, "demonstrations", dict)),
    )
    for number, row in enumerate(prompts.demonstrations, 1):
        try:
            for name, value in row.items():
                if isinstance(value, bool):  # YAML's reading of yes, no, on and off
                    raise DataError(f"{name} is {str(value).lower()}; quote a text such as 'yes' or 'no'")
            prompts._question(row)
            prompts._answer(row)
        except DataError as error:
            raise DataError(f"demonstration {number}: {error}") from None
    return prompts


def _check_keys(content: Mapping[Any, Any]) -> None:
    for fault, names in (
        ("lacks", set(KEYS) - content.keys()),
        ("has the unknown key", content.keys() - {*KEYS, "label_names"}),
    ):
        if names:
            raise DataError(
                f"{fault} {', '.join(sorted(map(str, names)))}; expected {', '.join(KEYS)} and perhaps label_names"
            )


def _check_texts(content: Mapping[str, Any]) -> None:
    for name in ("instruction", "question", "cue", "answer", "label_field"):
        if not isinstance(content[name], str) or not content[name].strip():
            raise DataError(f"{name}={content[name]}: expected a text")
    for field in ("rationale", "label"):
        if f"{{{field}}}" not in content["answer"]:
            raise DataError(
                f"answer: lacks {{{field}}}; answers are cut by where it stands, such as "
                "'{rationale} The answer is {label}.'"
            )


def _list_in(content: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    value = content.get(name, [])
    if not isinstance(value, list) or not all(isinstance(one, kind) and one for one in value):
        raise DataError(f"{name}: expected a list of {'texts' if kind is str else 'mappings'}")
    return value


def _expanded(value: Any, known: dict[int, int]) -> int:
    """How many values there are, those of an alias wherever it stands."""
    if isinstance(value, str) and _SURROGATE.search(value):
        raise ValueError("a text has half of a surrogate pair, which is no character")
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
    if (
        isinstance(choices, str)
        or not isinstance(choices, Sequence)
        or len(choices) > len(string.ascii_lowercase)
    ):
        raise DataError(f"choices={choices}: expected a list of at most {len(string.ascii_lowercase)} texts")
    lines = [f"({letter}) {choice}" for letter, choice in zip(string.ascii_lowercase, choices, strict=False)]
    return {"lettered_choices": "\n".join(lines)}


def _fill(template: str, fields: Mapping[str, Any]) -> str:
    """Put fields into a template. Braces within the fields stay as they are, and nothing is looked up in them."""
    missing = [name for name in _FIELD.findall(template) if name not in fields]
    if missing:
        raise DataError(f"a row has no field '{missing[0]}' (it has: {', '.join(map(str, fields))})")
    return _FIELD.sub(lambda found: str(fields[found[1]]).strip(), template)
