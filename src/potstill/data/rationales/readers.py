"""Reading a part of a set with the outputs of an LLM for its rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from potstill.data.rationales import sets
from potstill.data.rationales.files import SVAMP_TRAIN, Placed, find, records_of, svamp_part
from potstill.data.rationales.order import mismatched_rows
from potstill.data.rationales.outputs import Outputs, given_outputs, read_outputs
from potstill.data.rationales.parsing import NLI_SETS
from potstill.data.rationales.published import author_files, plain
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

SEPARATOR = "</s>"  # T5's end token, between premise and hypothesis in the published inputs
MAX_UNPARSED = 0.05  # share of the outputs; more indicate another set or flavour


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
    """All rows of a part of a published set; rows with unparsed outputs are marked.

    A set without validation part uses a tenth of its training rows, which `train` then lacks.

    Args:
        folder: Folder of all sets: `<set>/<set>_<split>.json`, plain or gzip, or the files of the sets' authors (see
            `published.py`), or for e-SNLI a CSV with rows and outputs.
        name: Name of the set, one of `SETS`.
        split: `train`, `valid` or `test`.
        rationales: Source of the outputs, see `read_outputs`; None for no outputs.
        separator: End token of the tokenizer, between premise and hypothesis.
        allow_partial: Whether the numbers of outputs and rows may differ; the first ones of both are used.
        max_unparsed: Largest share of outputs without rationale or label.
        key: Config key for messages.

    Raises:
        ConfigError: An unknown set or split.
        DataError: A file is missing or cannot be used; the numbers of outputs and rows differ; too many outputs are
            unparsed, or belong to other rows.
    """
    if name not in SETS:
        raise ConfigError(f"data.set={name}: must be one of {', '.join(SETS)}")
    kept = SETS[name].splits
    if split not in kept and not (split == "valid" and "train" in kept):
        raise ConfigError(f"{name} has no split '{split}', but {', '.join(kept)}")
    stored = split if split in kept else "train"
    path, records = _records(folder, name, stored, key)
    own = "rationale" in records[0][1]
    outputs = None
    if rationales == "palm" and own:  # the published CSV contains PaLM's parsed outputs
        outputs = given_outputs(_pairs(records, path, key), path, name in NLI_SETS)
    elif rationales is not None:
        outputs = read_outputs(folder, name, stored, rationales)
    soft = None
    if rationales is not None and outputs is not None and not own:
        soft = read_probabilities(
            labels_file(home_of(folder, name, stored, rationales), stored), len(outputs)
        )
    rows, taken = _rows(records, path, SETS[name], outputs, separator, allow_partial, key, soft)
    _check_parsed(rows, outputs, max_unparsed)
    _check_choices(rows, outputs, path)
    _check_order(rows, outputs)
    if split in kept and ("valid" in kept or split != "train" or name == "asdiv"):
        return rows
    return split_validation(rows, taken, len(records))[split == "valid"]


def read_own(
    path: Path, *, outputs: bool = True, max_unparsed: float = MAX_UNPARSED, key: str = "data.train_files"
) -> RationaleRows:
    """Rows of a user's own file: JSON lines (or a list, or CSV) of `input`, `label` and `rationale`.

    Optional fields are `llm_label`, the LLM's label, `choices`, a list of texts, and `label_probabilities`, an object
    of probabilities by choice. A blank rationale counts as unparsed. An evaluation file may lack all rationales.

    Args:
        path: Path of the file.
        outputs: Whether to read rationales, labels and probabilities of an LLM.
        max_unparsed: Largest share of blank rationales.
        key: Config key for messages.

    Raises:
        DataError: The file cannot be used, or too many rationales are blank.
    """
    records = records_of(path, key)
    reasoned = outputs and any("rationale" in record for _, record in records)
    given = given_outputs(_pairs(records, path, key), path, nli=False) if reasoned else None
    known = sets.RationaleSet(path.name, sets.TEXT, sets.own, ("train",))
    soft = [checked(record.get(FIELD), path, place) for place, record in records] if outputs else None
    rows, _ = _rows(records, path, known, given, "", False, key, soft)
    _check_parsed(rows, given, max_unparsed)
    _check_order(rows, given)
    return rows


def stored_rows(folder: Path, name: str, split: str, *, key: str = "data.folder") -> list[dict[str, object]]:
    """The stored records of a part with `input` and `label`, for the generation of rationales.

    Args:
        folder: Folder of all sets.
        name: Name of the set, one of `SETS`.
        split: A stored part.
        key: Config key for messages.

    Raises:
        DataError: A file is missing or cannot be used.
    """
    path, records = _records(folder, name, split, key)
    rows = []
    for place, record in records:
        example = _example(place, record, path, SETS[name], SEPARATOR, key)
        # Unusable records are included: outputs and rows are matched by their order.
        made = {"input": "", "label": ""} if example is None else example._asdict()
        rows.append({**record, "input": made["input"], "label": made["label"]})
    return rows


def _records(folder: Path, name: str, split: str, key: str) -> tuple[Path, list[Placed]]:
    """Name of a part's files for messages, and its records in the published layout."""
    home = folder / name
    if path := find(home / f"{name}_{split}"):
        return path, _plain(records_of(path, key), path, name, key)
    if name == "svamp" and (path := find(home / "SVAMP")):
        whole = records_of(path, key)
        if part := svamp_part(whole, split):
            return path, part
        raise DataError(
            f"{key}: '{path}' has {len(whole):,} rows, {SVAMP_TRAIN} of which are for training, and none for "
            f"{name}/{split}; use the complete file, or {name}/{name}_{split}.json"
        )
    files = author_files(home, name, split, key)
    if not files:
        raise DataError(
            f"{key}: '{folder}' has no {name}/{name}_{split}.json (or .gz); use the folder with the sets' folders"
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
    """Records in the published layout."""
    made = []
    for place, record in records:
        try:
            made.append((place, plain(name, record)))
        except RecordError as error:
            raise DataError(f"{key}: '{path}' {place}: {error}; use a file of {name}") from error
    return made


def _pairs(records: list[Placed], path: Path, key: str) -> list[tuple[str, str | None]]:
    pairs = []
    for place, record in records:
        rationale, label = record.get("rationale"), record.get("llm_label")
        if not isinstance(rationale, str) and (rationale is not None or "rationale" not in record):
            raise DataError(
                f"{key}: '{path}' {place}: 'rationale' is {rationale!r:.60}; must be text or null in every row"
            )
        if label is not None and not isinstance(label, str):
            raise DataError(
                f"{key}: '{path}' {place}: 'llm_label' is {label!r:.60}; must be text, or remove it"
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
    """The rows with outputs, and the numbers of their records."""
    used = len(records) if outputs is None else min(len(records), len(outputs))
    if outputs is not None and len(outputs) != len(records) and not allow_partial:
        raise DataError(
            f"{key}: '{path}' has {len(records):,} rows, but '{outputs.name}' {len(outputs):,} outputs; give one "
            "per row, or set data.allow_partial=true"
        )
    if not used:
        raise DataError(
            f"data.rationales: '{outputs.name if outputs else path}' has no outputs; give one per row"
        )
    if outputs is not None:
        _check_repeated(records[:used], outputs, path)
    examples = [_example(place, record, path, known, separator, key) for place, record in records[:used]]
    taken = [row for row, example in enumerate(examples) if example is not None]
    kept = [example for example in examples if example is not None]
    if not kept:
        raise DataError(f"{key}: '{path}' has no usable rows; use a file of {known.name}")
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
    """Reject outputs that repeat fields of other rows."""
    for (place, record), repeated in zip(records, outputs.repeated, strict=False):
        for name, value in repeated.items():
            if name in record and record[name] != value:
                raise DataError(
                    f"data.rationales: '{outputs.name}' has {name}={value!r:.60} for {place} of '{path}', which has "
                    f"{record[name]!r:.60}; outputs must be in the order of the rows"
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
        raise DataError(f"{key}: '{path}' {place}: {error}; use a file of {known.name}") from error


def _check_parsed(rows: RationaleRows, outputs: Outputs | None, max_unparsed: float) -> None:
    """Warn about unparsed outputs; reject too many."""
    unparsed, cut = rows.counts["unparsed"], rows.counts["unanswered"]
    if outputs is None:
        return
    if unparsed > max_unparsed * len(rows):
        place = rows.places[rows.unparsed.index(True)]
        raise DataError(
            f"data.rationales: {unparsed:,} of {len(rows):,} outputs of '{outputs.name}' lack a rationale or a label "
            f"(the first for {place}), more than data.max_unparsed={max_unparsed}; check their source"
        )
    if unparsed:
        log.warning("%s: %d of %d outputs lack a rationale or a label", rows.name, unparsed, len(rows))
    if cut:
        log.warning("%s: %d of %d rows have no output and are skipped", rows.name, cut, rows.counts["read"])


def _check_choices(rows: RationaleRows, outputs: Outputs | None, path: Path) -> None:
    """Reject outputs of other rows, detected by labels that are not among the choices."""
    if outputs is None or len(set(rows.choices)) < 2:
        return
    fits = [
        label.strip().lower() in {choice.strip().lower() for choice in choices}
        for label, choices in zip(rows.llm_labels, rows.choices, strict=True)
        if label is not None and choices is not None
    ]
    if 2 * sum(fits) < len(fits):
        raise DataError(
            f"data.rationales: {len(fits) - sum(fits):,} of {len(fits):,} labels of '{outputs.name}' are not among the "
            f"choices of their row in '{path}'; outputs must be in the order of the rows"
        )


def _check_order(rows: RationaleRows, outputs: Outputs | None) -> None:
    """Warn about rationales of other rows, detected by their words."""
    if outputs is not None and (part := mismatched_rows(rows.inputs, rows.rationales)) is not None:
        log.warning(
            "data.rationales: '%s' seems to have rationales of other rows, from %s to %s, by the words they share; "
            "outputs must be in the order of the rows",
            outputs.name,
            rows.places[part[0]],
            rows.places[part[-1]],
        )
