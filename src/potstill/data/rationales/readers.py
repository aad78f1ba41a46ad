"""Reading a part of a set with the outputs of an LLM for its rows."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from potstill.data.common.records import Placed, Record, RecordError
from potstill.data.rationales.files import convert, records_of
from potstill.data.rationales.outputs import KEY, Outputs, given_outputs, read_outputs
from potstill.data.rationales.parsing import NLI_SETS, Parsed
from potstill.data.rationales.published import part_records
from potstill.data.rationales.rows import EVERY, Draw, RationaleRows, split_validation
from potstill.data.rationales.sets import SETS, TEXT, Example, RationaleSet, own_example
from potstill.data.rationales.soft_labels import FIELD, Probabilities, checked
from potstill.errors import ConfigError, FormatError, LabelError

log = logging.getLogger(__name__)

SEPARATOR = "</s>"  # T5's end token, between premise and hypothesis in the published inputs
MAX_UNPARSED = 0.05  # share of the outputs; more indicate another set or flavour
PARTS = 4  # of a set, whose order is checked separately: a missing row shifts all that follow
FEWEST = 20  # decisive rows that a part must have
# Share of these whose rationale has more words of its own input: 0.99 in the published sets, a half for other rows.
LEAST = 0.75

_WORD = re.compile(r"[^\W_]+")


def read_split(
    folder: Path,
    name: str,
    split: str,
    *,
    rationales: str | None = "palm",
    separator: str = SEPARATOR,
    allow_partial: bool = False,
    max_unparsed: float = MAX_UNPARSED,
    drawn: Draw = EVERY,
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
        drawn: Training rows that are split into training and validation, see `split_validation`.
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
    path, records = part_records(folder, name, stored, key)
    outputs = None
    if rationales == "palm" and "rationale" in records[0][1]:  # the published CSV contains PaLM's parsed outputs
        outputs = given_outputs(records, path, key, name in NLI_SETS)
    elif rationales is not None:
        outputs = read_outputs(folder, name, stored, rationales)
    source = _Source(records, path, key, SETS[name], separator)
    rows, taken = source.rows(outputs, allow_partial, () if outputs is None else outputs.soft)
    if outputs is not None:
        _check_outputs(rows, outputs, path, max_unparsed)
    if split in kept and ("valid" in kept or split != "train" or name == "asdiv"):
        return rows
    return split_validation(rows, taken, len(records), drawn)[split == "valid"]


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
    given = given_outputs(records, path, key, nli=False) if reasoned else None
    soft = [checked(record.get(FIELD), path, place) for place, record in records] if outputs else ()
    source = _Source(records, path, key, RationaleSet(path.name, TEXT, own_example, ("train",)), "")
    rows, _ = source.rows(given, False, soft)
    if given is not None:
        _check_outputs(rows, given, path, max_unparsed)
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
    path, records = part_records(folder, name, split, key)
    examples = _Source(records, path, key, SETS[name], SEPARATOR).examples(len(records))
    # Unusable records are included: outputs and rows are matched by their order.
    made = (Example("", "", None) if example is None else example for example in examples)
    return [{**record, "input": own.input, "label": own.label} for (_, record), own in zip(records, made, strict=True)]


@dataclass(frozen=True)
class _Source:
    """Records of a part.

    Attributes:
        records: All records, with their places.
        path: Name of their files for messages.
        key: Config key for messages.
        known: Their set.
        separator: End token of the tokenizer.
    """

    records: list[Placed]
    path: Path
    key: str
    known: RationaleSet
    separator: str

    def examples(self, count: int) -> list[Example | None]:
        """Inputs and labels of the first records; None for an unusable one."""

        def example_of(record: Record) -> Example | None:
            example = self.known.example(record, self.separator)
            if example is not None and not example.label.strip():
                raise RecordError("the label is blank")
            return example

        source, wanted = f"{self.key}: '{self.path}'", f"a file of {self.known.name}"
        return convert(self.records[:count], example_of, source, wanted)

    def rows(
        self, outputs: Outputs | None, allow_partial: bool, soft: Sequence[Probabilities | None]
    ) -> tuple[RationaleRows, list[int]]:
        """The rows with outputs, and the numbers of their records."""
        count = len(self.records)
        used = count if outputs is None else min(count, len(outputs))
        if outputs is not None and len(outputs) != count and not allow_partial:
            raise FormatError(
                f"{self.key}: '{self.path}' has {count:,} rows, but '{outputs.name}' {len(outputs):,} outputs; give "
                "one per row, or set data.allow_partial=true"
            )
        if outputs is not None:
            _check_repeated(self.records, outputs, self.path)
        examples = self.examples(used)
        taken = [row for row, example in enumerate(examples) if example is not None]
        kept = [example for example in examples if example is not None]
        if not kept:
            raise FormatError(
                f"{self.key}: '{self.path}' has no usable rows with outputs; use a file of {self.known.name}"
            )
        parsed = [Parsed(None, None) if outputs is None else outputs.parsed[row] for row in taken]
        rows = RationaleRows(
            inputs=[example.input for example in kept],
            labels=[example.label for example in kept],
            llm_labels=[own.label for own in parsed],
            rationales=[own.rationale for own in parsed],
            choices=[example.choices for example in kept],
            unparsed=[outputs is not None and outputs.failed(row) for row in taken],
            places=[self.records[row][0] for row in taken],
            name=self.path.name,
            key=self.key,
            soft=[soft[row] for row in taken] if soft else [],
        )
        off_label = [
            label is not None and choices is not None and label not in choices
            for label, choices in zip(rows.llm_labels, rows.choices, strict=True)
        ]
        rows.counts.update(
            read=count,
            answered=0 if outputs is None else len(rows),
            unparsed=sum(rows.unparsed),
            unanswered=count - used,
            off_label=sum(off_label),
            left_out=used - len(kept),
        )
        return rows, taken


def _check_repeated(records: Sequence[Placed], outputs: Outputs, path: Path) -> None:
    """Reject outputs that repeat fields of other rows."""
    for (place, record), repeated in zip(records, outputs.repeated, strict=False):
        for name, value in repeated.items():
            if name in record and record[name] != value:
                raise FormatError(
                    f"{KEY}: '{outputs.name}' has {name}={value!r:.60} for {place} of '{path}', which has "
                    f"{record[name]!r:.60}; outputs must be in the order of the rows"
                )


def _check_outputs(rows: RationaleRows, outputs: Outputs, path: Path, max_unparsed: float) -> None:
    """Reject too many unparsed outputs, and labels of other rows; warn about rationales of other rows."""
    unparsed, cut = rows.counts["unparsed"], rows.counts["unanswered"]
    if unparsed > max_unparsed * len(rows):
        place = rows.places[rows.unparsed.index(True)]
        raise FormatError(
            f"{KEY}: {unparsed:,} of {len(rows):,} outputs of '{outputs.name}' lack a rationale or a label "
            f"(the first for {place}), more than data.max_unparsed={max_unparsed}; check their source"
        )
    if unparsed:
        log.warning("%s: %d of %d outputs lack a rationale or a label", rows.name, unparsed, len(rows))
    if cut:
        log.warning("%s: %d of %d rows have no output and are skipped", rows.name, cut, rows.counts["read"])
    fits = [
        label.strip().lower() in {choice.strip().lower() for choice in choices}
        for label, choices in zip(rows.llm_labels, rows.choices, strict=True)
        if label is not None and choices is not None
    ]
    # A record with its own output cannot have that of another row, and equal choices show nothing.
    if outputs.name != str(path) and len(set(rows.choices)) > 1 and 2 * sum(fits) < len(fits):
        raise LabelError(
            f"{KEY}: {len(fits) - sum(fits):,} of {len(fits):,} labels of '{outputs.name}' are not among the "
            f"choices of their row in '{path}'; outputs must be in the order of the rows"
        )
    if (part := mismatched_rows(rows.inputs, rows.rationales)) is not None:
        log.warning(
            "%s: '%s' seems to have rationales of other rows, from %s to %s, by the words they share; outputs must be "
            "in the order of the rows",
            KEY, outputs.name, rows.places[part[0]], rows.places[part[-1]],
        )  # fmt: skip


def mismatched_rows(inputs: Sequence[str], rationales: Sequence[str | None]) -> range | None:
    """The first part of the rows whose rationales do not share more words with their own input than with a far one.

    Args:
        inputs: One per row.
        rationales: One per row, or None.

    Returns:
        Numbers of rows, from 0; None if the rationales fit, or too few rows are decisive.
    """
    words = [set(_WORD.findall(text.lower())) for text in inputs]
    size = -(-len(inputs) // PARTS) if inputs else 1
    for start in range(0, len(inputs), size):
        part = range(start, min(start + size, len(inputs)))
        shared = [_shared(row, words, rationales[row]) for row in part]
        more = sum(own > other for own, other in shared)
        decided = sum(own != other for own, other in shared)
        if decided >= FEWEST and more < LEAST * decided:
            return part
    return None


def _shared(row: int, words: Sequence[set[str]], rationale: str | None) -> tuple[int, int]:
    """Number of a rationale's words in its own input, and in that of the row half a set away."""
    own = set(_WORD.findall((rationale or "").lower()))
    return len(own & words[row]), len(own & words[(row + len(words) // 2) % len(words)])
