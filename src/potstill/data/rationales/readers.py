"""Reading a part of a set, and the outputs of an LLM that belong to its rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from potstill.data.rationales import sets
from potstill.data.rationales.files import SVAMP_TRAIN, Placed, find, records_of, svamp_part
from potstill.data.rationales.order import of_other_rows
from potstill.data.rationales.outputs import Outputs, given_outputs, read_outputs
from potstill.data.rationales.parsing import NLI_SETS
from potstill.data.rationales.published import original_files, plain
from potstill.data.rationales.rows import RationaleRows, split_validation
from potstill.data.rationales.sets import SETS, Example, RecordError
from potstill.data.rationales.soft_labels import (
    FIELD,
    Probabilities,
    checked,
    home_of,
    labels_file,
    read_probabilities,
)
from potstill.errors import ConfigError, DataError

log = logging.getLogger(__name__)

SEPARATOR = "</s>"  # T5's end token; the published inputs have it between premise and hypothesis
MAX_UNPARSED = 0.05  # of the outputs; above it they are of another set or flavour


def read_split(
    folder: Path,
    name: str,
    split: str,
    *,
    rationales: str | None = "palm",
    separator: str = SEPARATOR,
    allow_partial: bool = False,
    max_unparsed: float = MAX_UNPARSED,
    key: str = "data.folder",
) -> RationaleRows:
    """A part of a published set, all of its rows: those whose outputs are not understood are marked, not left out.

    A set without a part for validation gives a tenth of its training rows, which `train` then lacks.

    Args:
        folder: of all sets, laid out as published: `<set>/<set>_<split>.json`, plain or gzip; or with the files of the
            sets' own authors (see `originals`), or for e-SNLI a CSV that has the outputs beside the rows.
        name: of the set, one of `SETS`.
        split: `train`, `valid` or `test`.
        rationales: whose outputs, see `read_outputs`; None for none.
        separator: the end token of the tokenizer, between premise and hypothesis.
        allow_partial: where there are fewer outputs than rows, or more, use what there is of both; the outputs are in
            the order of the rows.
        max_unparsed: the largest share of the outputs that may lack a rationale or a label.
        key: the config key that messages name.

    Raises:
        ConfigError: there is no such set or split.
        DataError: a file is missing or cannot be used; outputs and rows differ in number; too many outputs are not
            understood, or are of other rows.
    """
    if name not in SETS:
        raise ConfigError(f"data.set={name}: must be one of {', '.join(SETS)}")
    kept = SETS[name].splits
    if split not in kept and not (split == "valid" and "train" in kept):
        raise ConfigError(f"{name} has no split '{split}'; choose one of {', '.join(kept)}")
    stored = split if split in kept else "train"
    path, records = _records(folder, name, stored, key)
    own = "rationale" in records[0][1]
    outputs = None
    if rationales == "palm" and own:  # the published CSV has PaLM's outputs, cut, beside its rows
        outputs = given_outputs(_pairs(records, path, key), path, name in NLI_SETS)
    elif rationales is not None:
        outputs = read_outputs(folder, name, stored, rationales)
    soft = None
    if rationales is not None and outputs is not None and not own:
        soft = read_probabilities(
            labels_file(home_of(folder, name, stored, rationales), stored), len(outputs)
        )
    rows, taken = _rows(records, path, SETS[name], outputs, separator, allow_partial, key, soft)
    _judge(rows, outputs, max_unparsed)
    _match(rows, outputs, path)
    _check_order(rows, outputs)
    if split in kept and ("valid" in kept or split != "train" or name == "asdiv"):
        return rows
    return split_validation(rows, taken, len(records))[split == "valid"]


def read_own(
    path: Path, *, outputs: bool = True, max_unparsed: float = MAX_UNPARSED, key: str = "data.train_files"
) -> RationaleRows:
    """Rows of the user's own: JSON lines (or a list, or CSV) of `input`, `label` and `rationale`.

    A row may also have `llm_label`, the label of who wrote the rationale, `choices`, a list of texts, and
    `label_probabilities`, an object of choices with numbers that add up to 1. A blank
    rationale counts as unparsed. A file to judge on may do without rationales, in all of its rows.

    Args:
        path: of the file.
        outputs: whether rationales, labels and probabilities of an LLM are read; without them only `input`, `label` and
            `choices` matter.
        max_unparsed: the largest share of the rationales that may be blank.
        key: the config key that messages name.

    Raises:
        DataError: the file cannot be used, or too many rationales are blank.
    """
    records = records_of(path, key)
    reasoned = outputs and any("rationale" in record for _, record in records)
    given = given_outputs(_pairs(records, path, key), path, nli=False) if reasoned else None
    known = sets.RationaleSet(path.name, sets.TEXT, sets.own, ("train",))
    soft = [checked(record.get(FIELD), path, place) for place, record in records] if outputs else None
    rows, _ = _rows(records, path, known, given, "", False, key, soft)
    _judge(rows, given, max_unparsed)
    _check_order(rows, given)
    return rows


def stored_rows(folder: Path, name: str, split: str, *, key: str = "data.folder") -> list[dict[str, object]]:
    """The records of a part as they are stored, to be explained: one each, with `input` and `label` beside their own.

    Args:
        folder: of all sets.
        name: of the set, one of `SETS`.
        split: one that is stored.
        key: the config key that messages name.

    Raises:
        DataError: a file is missing or cannot be used.
    """
    path, records = _records(folder, name, split, key)
    rows = []
    for place, record in records:
        example = _example(place, record, path, SETS[name], SEPARATOR, key)
        # One that is no use to train on is asked for too: outputs and rows are matched by their order.
        made = {"input": "", "label": ""} if example is None else example._asdict()
        rows.append({**record, "input": made["input"], "label": made["label"]})
    return rows


def _records(folder: Path, name: str, split: str, key: str) -> tuple[Path, list[Placed]]:
    """What messages call the files of a part, and its records in the form of the published layout."""
    home = folder / name
    if path := find(home / f"{name}_{split}"):
        return path, _plain(records_of(path, key), path, name, key)
    if name == "svamp" and (path := find(home / "SVAMP")):
        whole = records_of(path, key)
        if part := svamp_part(whole, split):
            return path, part
        raise DataError(
            f"{key}: '{path}' has {len(whole):,} rows, of which the first {SVAMP_TRAIN} of a permutation are for "
            f"training, so none is left for {name}/{split}; give the whole file, or {name}/{name}_{split}.json"
        )
    files = original_files(home, name, split, key)
    if not files:
        raise DataError(
            f"{key}: '{folder}' has no {name}/{name}_{split}.json (or .gz); give the folder that holds the sets' "
            "folders"
        )
    if len(files) == 1:
        return files[0], _plain(records_of(files[0], key), files[0], name, key)
    joined = [
        (f"{file.name} {place}", record)
        for file in files
        for place, record in _plain(records_of(file, key), file, name, key)
    ]
    return Path(f"{files[0]} to {files[-1].name}"), joined


def _plain(records: list[Placed], path: Path, name: str, key: str) -> list[Placed]:
    """Records in the form of the published layout, whichever they had."""
    made = []
    for place, record in records:
        try:
            made.append((place, plain(name, record)))
        except RecordError as error:
            raise DataError(f"{key}: '{path}' {place}: {error}; give a file of {name}") from error
    return made


def _pairs(records: list[Placed], path: Path, key: str) -> list[tuple[str, str | None]]:
    pairs = []
    for place, record in records:
        rationale, label = record.get("rationale"), record.get("llm_label")
        if not isinstance(rationale, str) and (rationale is not None or "rationale" not in record):
            raise DataError(
                f"{key}: '{path}' {place}: 'rationale' is {rationale!r:.60}; give a text in every row, or null"
            )
        if label is not None and not isinstance(label, str):
            raise DataError(
                f"{key}: '{path}' {place}: 'llm_label' is {label!r:.60}; give a text or leave it out"
            )
        pairs.append((rationale or "", label))
    return pairs


def _rows(
    records: list[Placed],
    path: Path,
    known: sets.RationaleSet,
    outputs: Outputs | None,
    separator: str,
    allow_partial: bool,
    key: str,
    soft: Sequence[Probabilities | None] | None = None,
) -> tuple[RationaleRows, list[int]]:
    """The rows that there are outputs for, and which of the records each is."""
    used = len(records) if outputs is None else min(len(records), len(outputs))
    if outputs is not None and len(outputs) != len(records) and not allow_partial:
        raise DataError(
            f"{key}: '{path}' has {len(records):,} rows, but '{outputs.name}' {len(outputs):,} outputs; give one "
            "a row, or use what there is of both by data.allow_partial=true"
        )
    if not used:
        raise DataError(
            f"data.rationales: '{outputs.name if outputs else path}' has no outputs; give one a row"
        )
    if outputs is not None:
        _check_repeated(records[:used], outputs, path)
    examples = [_example(place, record, path, known, separator, key) for place, record in records[:used]]
    taken = [row for row, example in enumerate(examples) if example is not None]
    kept = [example for example in examples if example is not None]
    if not kept:
        raise DataError(f"{key}: '{path}' has no rows of use; give a file of {known.name}")
    parsed = [(None, None) if outputs is None else outputs.parsed[row] for row in taken]
    rows = RationaleRows(
        inputs=[example.input for example in kept],
        labels=[example.label for example in kept],
        llm_labels=[label for _, label in parsed],
        rationales=[rationale for rationale, _ in parsed],
        choices=[example.choices for example in kept],
        unparsed=[outputs is not None and outputs.failed(row) for row in taken],
        places=[records[row][0] for row in taken],
        name=path.name,
        key=key,
        soft=[None if soft is None else soft[row] for row in taken],
    )
    off = sum(
        label is not None and choices is not None and label not in choices
        for label, choices in zip(rows.llm_labels, rows.choices, strict=True)
    )
    rows.counts.update(
        read=len(records),
        answered=0 if outputs is None else len(rows),
        unparsed=sum(rows.unparsed),
        unanswered=len(records) - used,
        off_label=off,
        left_out=used - len(kept),
    )
    return rows, taken


def _check_repeated(records: Sequence[Placed], outputs: Outputs, path: Path) -> None:
    """Refuse outputs that say themselves that they are of other rows."""
    for (place, record), repeated in zip(records, outputs.repeated, strict=False):
        for name, value in repeated.items():
            if name in record and record[name] != value:
                raise DataError(
                    f"data.rationales: '{outputs.name}' has {name}={value!r:.60} for {place} of '{path}', which has "
                    f"{record[name]!r:.60}; give the outputs in the order of the rows"
                )


def _example(
    place: str, record: sets.Record, path: Path, known: sets.RationaleSet, separator: str, key: str
) -> Example | None:
    try:
        example = known.example(record, separator)
        if example is not None and not example.label.strip():
            raise RecordError("the label is blank")
        return example
    except RecordError as error:
        raise DataError(f"{key}: '{path}' {place}: {error}; give a file of {known.name}") from error


def _judge(rows: RationaleRows, outputs: Outputs | None, max_unparsed: float) -> None:
    """Report what was not understood; refuse where it is too much."""
    unparsed, cut = rows.counts["unparsed"], rows.counts["unanswered"]
    if outputs is None:
        return
    if unparsed > max_unparsed * len(rows):
        place = rows.places[rows.unparsed.index(True)]
        raise DataError(
            f"data.rationales: {unparsed:,} of {len(rows):,} outputs of '{outputs.name}' lack a rationale or a label "
            f"(the first for {place}), more than data.max_unparsed={max_unparsed}; check whose outputs they are"
        )
    if unparsed:
        log.warning("%s: %d of %d outputs lack a rationale or a label", rows.name, unparsed, len(rows))
    if cut:
        log.warning("%s: %d of %d rows have no output and are left out", rows.name, cut, rows.counts["read"])


def _match(rows: RationaleRows, outputs: Outputs | None, path: Path) -> None:
    """Refuse outputs of other rows, as far as choices tell: outputs and rows are matched by their order alone."""
    # Where all rows have the same choices, any label may be right.
    if outputs is None or len(set(rows.choices)) < 2:
        return
    fits = [
        label.strip().lower() in {choice.strip().lower() for choice in choices}
        for label, choices in zip(rows.llm_labels, rows.choices, strict=True)
        if label is not None and choices is not None
    ]
    if 2 * sum(fits) < len(fits):
        raise DataError(
            f"data.rationales: {len(fits) - sum(fits):,} of {len(fits):,} labels of '{outputs.name}' are none of their "
            f"row's choices in '{path}', so the outputs are of other rows; give those of these rows, in their order"
        )


def _check_order(rows: RationaleRows, outputs: Outputs | None) -> None:
    """Warn of rationales that are of other rows, as far as their words tell."""
    if outputs is not None and (part := of_other_rows(rows.inputs, rows.rationales)) is not None:
        log.warning(
            "data.rationales: '%s' seems to hold rationales of other rows, from %s to %s: they have no more words in "
            "common with their row than with another; outputs and rows are matched by their order alone",
            outputs.name,
            rows.places[part[0]],
            rows.places[part[-1]],
        )
