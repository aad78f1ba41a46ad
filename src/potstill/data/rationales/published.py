"""Parts of the published sets: their files, as published with the method or by the sets' authors, and their records."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from potstill.data.common.records import Placed, Record, RecordError, field_of
from potstill.data.rationales.files import convert, find, numbered_files, records_of
from potstill.errors import FileError, FormatError

SVAMP_TRAIN = 800  # of the 1,000 rows of the original file
# Names without suffix of the authors' parts, by set; the first existing one is used.
_STEMS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "cqa": {"train": ("train_rand_split",), "test": ("dev_rand_split",)},
    "esnli": {"valid": ("esnli_dev",)},
    "anli1": {"train": ("R1/train", "train"), "valid": ("R1/dev", "dev"), "test": ("R1/test", "test")},
}
_ANLI_LABELS = {"e": "entailment", "n": "neutral", "c": "contradiction"}


def part_records(folder: Path, name: str, split: str, key: str) -> tuple[Path, list[Placed]]:
    """The records of a part in the published layout, and the name of its files for messages.

    Args:
        folder: Folder of all sets: `<set>/<set>_<split>.json`, plain or gzip, or the files of the sets' authors.
        name: Name of the set.
        split: A stored part.
        key: Config key for messages.

    Raises:
        DataError: A file is missing or cannot be used.
    """
    home = folder / name
    path = find(home / f"{name}_{split}")
    if path is None and name == "svamp" and (path := find(home / "SVAMP")):
        records = records_of(path, key)
        if part := svamp_part(records, split):
            return path, part
        raise FormatError(
            f"{key}: '{path}' has {len(records):,} rows, {SVAMP_TRAIN} of which are for training, and none for "
            f"{name}/{split}; use the complete file, or {name}/{name}_{split}.json"
        )
    files = [path] if path else _author_files(home, name, split, key)
    if not files:
        raise FileError(
            f"{key}: '{folder}' has no {name}/{name}_{split}.json (or .gz); use the folder with the sets' folders"
        )
    records = []
    for file in files:
        prefix = f"{file.name} " if len(files) > 1 else ""
        own = records_of(file, key)
        plain = convert(own, partial(_in_published_layout, name), f"{key}: '{file}'", f"a file of {name}")
        records += [(f"{prefix}{place}", record) for (place, _), record in zip(own, plain, strict=True)]
    return files[0] if len(files) == 1 else Path(f"{files[0]} to {files[-1].name}"), records


def svamp_part(records: list[Placed], split: str) -> list[Placed]:
    """The train or test part of SVAMP's original file, in the order of the published files."""
    order = np.random.RandomState(0).permutation(len(records))
    part = order[:SVAMP_TRAIN] if split == "train" else order[SVAMP_TRAIN:]
    return [records[row] for row in part]


def _author_files(home: Path, name: str, split: str, key: str) -> list[Path]:
    """The authors' files of a part in the order of their rows, such as `esnli_train_1.csv` and `esnli_train_2.csv`."""
    if name == "asdiv":
        return [path for path in (home / "ASDiv.xml", home / "ASDiv.xml.gz") if path.is_file()][:1]
    stem, suffixes = f"{name}_{split}", (".csv", ".csv.gz")
    paths = sorted(home.glob(f"{stem}*"), reverse=True)  # the plain one of two files replaces the compressed one
    tables = {path.name.removesuffix(".gz"): path for path in paths if path.name.endswith(suffixes)}
    if len(tables) < 2:
        found = (find(home / stem) for stem in _STEMS.get(name, {}).get(split, ()))
        return list(tables.values()) or [path for path in found if path][:1]
    numbered = numbered_files(home, f"{stem}_", 1, key, suffixes)
    if len(numbered) < len(tables):
        raise FileError(f"{key}: '{home}' has several files of one part ({', '.join(sorted(tables))}); keep one")
    return numbered


def _in_published_layout(name: str, record: Record) -> Record:
    """A record of CommonsenseQA, e-SNLI or ANLI with additional fields of the published layout, if it lacks them."""
    if name == "cqa" and "answerKey" in record:
        return {**record, **_question(record)}
    if name == "esnli" and "gold_label" in record:
        premise, hypothesis = (field_of(record, field) for field in ("Sentence1", "Sentence2"))
        return {**record, "premise": premise, "hypothesis": hypothesis, "label": record["gold_label"]}
    if name == "anli1" and "context" in record:
        label = field_of(record, "label")
        return {**record, "premise": field_of(record, "context"), "label": _ANLI_LABELS.get(label, label)}
    return record


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
    texts = {field_of(choice, "label"): field_of(choice, "text") for choice in choices}
    answer = record["answerKey"]
    if answer not in texts:
        raise RecordError(f"'answerKey' is {answer!r}, not one of {', '.join(texts)}")
    return {
        "question": field_of(question, "stem") if nested else question,
        "choices": list(texts.values()),
        "answer": texts[answer],
    }
