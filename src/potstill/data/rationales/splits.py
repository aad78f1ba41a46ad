"""The training, validation and test rows of a configuration. Imports no torch."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from potstill.config.data import ArithmeticDataConfig, RationaleDataConfig, SetDataConfig
from potstill.data.rationales.arithmetic import arithmetic_rows
from potstill.data.rationales.outputs import KEY, find_outputs
from potstill.data.rationales.readers import SEPARATOR, read_own, read_split
from potstill.data.rationales.rows import (
    EVERY,
    Draw,
    RationaleRows,
    for_training,
    join,
    split_validation,
    subsample,
    with_others_rationales,
)
from potstill.data.rationales.sets import SETS
from potstill.data.rationales.soft_labels import aligned
from potstill.errors import DataError

log = logging.getLogger(__name__)

STANDARD, ONE_TARGET = "standard", "label_then_rationale"  # values of objective.mode
MAIN_SETS = tuple(name for name, known in SETS.items() if "test" in known.splits)
OWN_FILES = {"valid": "data.eval_files", "test": "data.test_files"}  # by the part that they replace


class Parts(NamedTuple):
    """Rows of each part; `read` is the training part before selection and replacement of labels."""

    train: RationaleRows
    valid: RationaleRows
    test: RationaleRows | None
    read: RationaleRows


def training_parts(
    data: RationaleDataConfig, *, mode: str, seed: int, separator: str | None = None, soft_labels: bool = False
) -> Parts:
    """Rows for training, for validation (all rows with gold labels), and for the test if available.

    Args:
        data: The keys of `data`.
        mode: What is learned; with `STANDARD` and gold labels, outputs of an LLM are not read.
        seed: Seed of the draw of `data.share`, and of the rationales of other rows (`data.shuffle_rationales`).
        separator: The tokenizer's end token, between premise and hypothesis.
        soft_labels: Whether the LLM's probabilities of labels are learned.

    Raises:
        PotstillError: A file cannot be used; required labels, label probabilities or rationales of an LLM are missing.
    """
    standard = mode == STANDARD
    read_outputs = not standard or data.labels == "llm" or soft_labels
    drawn = _drawn(data, seed)
    wanted = data.rationales if read_outputs and isinstance(data, SetDataConfig) else None
    if data.train_files:
        train = _own(data.train_files, "data.train_files", data, read_outputs)
        valid = _own(data.eval_files, "data.eval_files", data, read_outputs) if data.eval_files else None
        if valid is None:
            train, valid = split_validation(train, drawn=drawn)
        test = _own(data.test_files, "data.test_files", data, read_outputs) if data.test_files else None
    else:
        if isinstance(data, SetDataConfig):
            train = _published(data, "train", wanted, separator, drawn)
        else:
            train = evaluated_part(data, "train")
        valid = evaluated_part(data, "valid", separator, outputs=read_outputs, seed=seed)
        test = evaluated_part(data, "test", separator, outputs=read_outputs)
    if isinstance(data, SetDataConfig):
        for name in data.more_sets:
            train = join(train, _published(data, "train", wanted, separator, name=name))
    read, train = train, _first(train, data.max_examples)
    if not data.share_before_split:
        train = subsample(train, data.share, seed)
    if standard and data.labels == "gt":  # outputs of the LLM are not used
        train = replace(train, unparsed=[False] * len(train), rationales=[None] * len(train))
    train = for_training(train, data.labels)
    if soft_labels and not any(map(aligned, train.soft, train.choices)):
        raise DataError(
            f"objective.soft_weight: '{train.name}' has no label probabilities of an LLM; create them with "
            "stage=rationales generation.logprobs=true for a set with choices, or set objective.soft_weight=0"
        )
    if not standard and None in train.rationales:
        place = train.places[train.rationales.index(None)]
        raise DataError(
            f"{KEY}={wanted}: '{train.name}' {place} has no rationale, which objective.mode={mode} "
            "requires; use outputs with rationales, or objective.mode=standard"
        )
    if data.shuffle_rationales and not standard:
        train = with_others_rationales(train, seed)
    return Parts(train, _first(valid, data.max_examples), test and _first(test, data.max_examples), read)


def evaluated_part(
    data: RationaleDataConfig, split: str, separator: str | None = None, *, outputs: bool = True, seed: int = 0
) -> RationaleRows:
    """A part for evaluation: all its rows with gold labels, and the LLM's rationales if available.

    Args:
        data: The keys of `data`.
        split: `train`, `valid` or `test`.
        separator: The tokenizer's end token, between premise and hypothesis.
        outputs: Whether to read outputs of an LLM.
        seed: Seed of the draw of `data.share`, if it is drawn before validation rows are held out.

    Raises:
        PotstillError: A file cannot be used.
    """
    key = OWN_FILES.get(split, "data.train_files")
    if files := data[key.removeprefix("data.")]:
        return _first(_own(files, key, data, outputs), data.max_examples)
    if isinstance(data, ArithmeticDataConfig):
        return _first(arithmetic_rows(data.generated, split), data.max_examples)
    assert isinstance(data, SetDataConfig)
    stored = split if split in SETS[str(data.set)].splits else "train"  # validation is a part of it
    there = outputs and _has_outputs(data, stored)
    rows = _published(data, split, data.rationales if there else None, separator, _drawn(data, seed))
    return _first(rows, data.max_examples)


def _published(
    data: SetDataConfig,
    split: str,
    rationales: str | None,
    separator: str | None,
    drawn: Draw = EVERY,
    name: str | None = None,
) -> RationaleRows:
    return read_split(
        Path(str(data.folder)).expanduser(),
        name or str(data.set),
        split,
        rationales=rationales,
        separator=separator or SEPARATOR,
        allow_partial=data.allow_partial,
        max_unparsed=data.max_unparsed,
        drawn=drawn,
    )


def splits_training_rows(data: RationaleDataConfig) -> bool:
    """Whether the validation rows are held out of the training rows."""
    if data.eval_files or isinstance(data, ArithmeticDataConfig):
        return False
    return bool(data.train_files) or (isinstance(data, SetDataConfig) and "valid" not in SETS[str(data.set)].splits)


def _drawn(data: RationaleDataConfig, seed: int) -> Draw:
    """What is split into training and validation rows."""
    return Draw(data.share, seed) if data.share_before_split else EVERY


def _own(files: list[str], key: str, data: RationaleDataConfig, outputs: bool) -> RationaleRows:
    first, *others = (
        read_own(Path(file).expanduser(), outputs=outputs, max_unparsed=data.max_unparsed, key=key) for file in files
    )
    for rows in others:
        first = join(first, rows)
    return first


def _has_outputs(data: SetDataConfig, split: str) -> bool:
    """Whether there are outputs for an evaluation part."""
    if data.rationales is None:
        return False
    found = find_outputs(Path(str(data.folder)).expanduser(), str(data.set), split, data.rationales)
    if not found.files:
        log.warning("%s: no outputs for %s/%s, so rationales are not evaluated there", found.folder, data.set, split)
    return bool(found.files) and found.of_split


def _first(rows: RationaleRows, count: int | None) -> RationaleRows:
    return rows if count is None else rows.select(range(min(count, len(rows))))
