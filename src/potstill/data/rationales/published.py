"""The sets as published by their authors: file names, and conversion of their records."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.data.rationales.files import find
from potstill.data.rationales.sets import Record, RecordError, field_of
from potstill.errors import DataError

# Names without suffix of the parts, by set; the first existing one is used.
_STEMS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "cqa": {"train": ("train_rand_split",), "test": ("dev_rand_split",)},
    "esnli": {"valid": ("esnli_dev",)},
    "anli1": {
        "train": ("R1/train", "train"),
        "valid": ("R1/dev", "dev"),
        "test": ("R1/test", "test"),
    },
}
_ANLI_LABELS = {"e": "entailment", "n": "neutral", "c": "contradiction"}


def author_files(home: Path, name: str, split: str, key: str) -> list[Path]:
    """The files of a part in the order of their rows, such as `esnli_train_1.csv` and `esnli_train_2.csv`.

    Args:
        home: Folder of the set.
        name: Name of the set.
        split: A stored part.
        key: Config key for messages.

    Raises:
        DataError: One of the numbered files is missing, or several are not numbered.
    """
    if name == "asdiv":
        return [path for path in (home / "ASDiv.xml", home / "ASDiv.xml.gz") if path.is_file()][:1]
    if tables := _tables(home, f"{name}_{split}", key):
        return tables
    found = (find(home / stem) for stem in _STEMS.get(name, {}).get(split, ()))
    return [path for path in found if path][:1]


def plain(name: str, record: Record) -> Record:
    """A record of CommonsenseQA, e-SNLI or ANLI with additional fields of the published layout, if it lacks them.

    Raises:
        RecordError: A field is missing or invalid.
    """
    if name == "cqa" and "answerKey" in record:
        return {**record, **_question(record)}
    if name == "esnli" and "gold_label" in record:
        premise, hypothesis = (field_of(record, field) for field in ("Sentence1", "Sentence2"))
        return {**record, "premise": premise, "hypothesis": hypothesis, "label": record["gold_label"]}
    if name == "anli1" and "context" in record:
        label = field_of(record, "label")
        return {**record, "premise": field_of(record, "context"), "label": _ANLI_LABELS.get(label, label)}
    return record


def _tables(home: Path, stem: str, key: str) -> list[Path]:
    """CSV files of a part, in the order of their numbers."""
    pattern = re.compile(rf"{re.escape(stem)}(.*)\.csv(\.gz)?")
    found: dict[str, Path] = {}
    for path in sorted(home.glob(f"{stem}*.csv*")):
        if match := pattern.fullmatch(path.name):
            found.setdefault(match.group(1), path)
    if len(found) < 2:
        return list(found.values())
    numbered = {int(end[1:]): path for end, path in found.items() if re.fullmatch(r"_[0-9]+", end)}
    if len(numbered) < len(found):
        names = ", ".join(path.name for path in found.values())
        raise DataError(f"{key}: '{home}' has several files of one part ({names}); keep one")
    for number in range(1, max(numbered)):
        if number not in numbered:
            raise DataError(
                f"{key}: '{home}' has {numbered[max(numbered)].name} but no {stem}_{number}.csv; add all files"
            )
    return [numbered[number] for number in sorted(numbered)]


def _question(record: Record) -> dict[str, Any]:
    """Question, choices and answer of a record of CommonsenseQA."""
    question = field_of(record, "question", (str, Mapping))
    nested = isinstance(question, Mapping)
    choices = field_of(question if nested else record, "choices", (list, Mapping))
    if isinstance(choices, Mapping):  # by column, on the hub
        labels, found = (field_of(choices, column, list) for column in ("label", "text"))
        if len(labels) != len(found):
            raise RecordError(f"'choices' has {len(labels)} labels and {len(found)} texts")
        choices = [{"label": label, "text": text} for label, text in zip(labels, found, strict=True)]
    if not all(isinstance(choice, Mapping) for choice in choices):
        raise RecordError(f"'choices' is not a list of objects with 'label' and 'text' ({choices!r:.60})")
    texts = {field_of(choice, "label"): field_of(choice, "text") for choice in choices}
    answer = record["answerKey"]
    if answer not in texts:
        raise RecordError(f"'answerKey' is {answer!r}, not one of {', '.join(texts)}")
    return {
        "question": field_of(question, "stem") if nested else question,
        "choices": list(texts.values()),
        "answer": texts[answer],
    }
