"""Outputs of an LLM for the rows of a part, from the published files or a user's own file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from potstill.data.common.records import Placed, Record, check_file, field_of, read_entries
from potstill.data.rationales.files import convert, find, numbered_files
from potstill.data.rationales.parsing import FLAVOURS, NLI_SETS, PARSED_SETS, Parsed, named, parse
from potstill.data.rationales.soft_labels import Probabilities, labels_file, read_probabilities
from potstill.data.rationales.thoughts import final_answer
from potstill.errors import FileError, FormatError

KEY = "data.rationales"
CUT_OFF = ("length", "content_filter")  # `finish_reason` of an incomplete output
# Fields of the row that an output may repeat.
IDS = ("id", "uid", "pairID")
SHARED = (*IDS, "input", "question", "premise", "hypothesis")


@dataclass(frozen=True)
class Outputs:
    """One output per row, in the order of the rows.

    Attributes:
        parsed: Rationale and label of each output.
        name: Names of the files for messages.
        labelled: Whether the outputs must have labels; objects with rationales alone do not.
        repeated: Fields of the row in each output (`SHARED`).
        soft: The LLM's probabilities of the choices, or None; empty if there are none at all.
    """

    parsed: list[Parsed]
    name: str
    labelled: bool = True
    repeated: Sequence[Mapping[str, Any]] = ()
    soft: Sequence[Probabilities | None] = ()

    def __len__(self) -> int:
        return len(self.parsed)

    def failed(self, row: int) -> bool:
        """Whether the output of a row lacks its rationale, or a required label."""
        found = self.parsed[row]
        return not found.whole if self.labelled else found.rationale is None


class OutputFiles(NamedTuple):
    """Files of outputs for a part of a set: none if there are no outputs.

    Attributes:
        files: In the order of the rows.
        folder: Their folder, also that of the label probabilities.
        flavour: Source of raw outputs, see `parse`.
        of_split: Whether they are of this part; a file whose path has no `{split}` is of the training rows.
    """

    files: list[Path]
    folder: Path
    flavour: str
    of_split: bool


def find_outputs(folder: Path, name: str, split: str, rationales: str) -> OutputFiles:
    """Locate the outputs of an LLM for a part of a set; see `read_outputs` for the arguments.

    Raises:
        FileError: One of several numbered files is missing.
    """
    published = {"palm": folder / name / "llm", "gpt": folder / "gpt-neox" / name}
    at = published.get(rationales) or Path(rationales.replace("{split}", split)).expanduser()
    flavour = rationales if rationales in FLAVOURS else "palm"
    if at.is_file():
        return OutputFiles([at], at.parent, flavour, of_split="{split}" in rationales or split == "train")
    single = find(at / split)
    files = numbered_files(at, f"{split}_CoT_", 0, KEY) or ([single] if single else [])
    return OutputFiles(files, at, flavour, of_split=True)


def read_outputs(folder: Path, name: str, split: str, rationales: str) -> Outputs:
    """The outputs of an LLM for a part of a set.

    Args:
        folder: Folder of all sets.
        name: Name of the set.
        split: `train`, `valid` or `test`.
        rationales: `palm` (folder `<set>/llm`), `gpt` (folder `gpt-neox/<set>`), or the path of a file or a folder,
            with an optional `{split}`. A folder has `<split>_CoT_<i>.json`, in the order of i, or `<split>.json`.
            Entries are raw outputs, parsed like PaLM's, or objects with `rationale` and optionally `label`. Fields of
            the row that they repeat (`id`, `input`, ...) must be equal.

    Raises:
        DataError: Files are missing, an entry is invalid, or two have the same id.
    """
    files, home, flavour, _ = find_outputs(folder, name, split, rationales)
    if not files:
        raise FileError(
            f"{KEY}: '{rationales}' has no outputs for {name}/{split}: neither '{home}/{split}_CoT_0.json' nor "
            f"'{home}/{split}.json' exists; use {' or '.join(FLAVOURS)} with their published files, or the path of a "
            "file with one output per row"
        )
    entries = []
    for path in files:
        check_file(path, KEY, "a JSON list or JSON lines, plain or gzip")
        entries += [(path, place, entry) for place, entry in read_entries(path, KEY)]
    _check_ids(entries)
    parsed = [_parsed(name, entry, flavour, path, place) for path, place, entry in entries]
    labelled = any(isinstance(entry, str) or "label" in entry for _, _, entry in entries)
    names = str(files[0]) if len(files) == 1 else f"{files[0]} to {files[-1].name}"
    repeated = [
        {name: entry[name] for name in SHARED if name in entry} if isinstance(entry, dict) else {}
        for _, _, entry in entries
    ]
    soft = read_probabilities(labels_file(home, split), len(parsed))
    return Outputs(parsed, names, labelled, repeated, soft)


def given_outputs(records: Sequence[Placed], path: Path, key: str, nli: bool) -> Outputs:
    """Outputs that are stored with the rows: `rationale`, and optionally `llm_label`; a blank text is missing.

    Args:
        records: Records with their places.
        path: File of the rows.
        key: Config key for messages.
        nli: Whether other labels than the three of NLI count as missing.

    Raises:
        FormatError: A field has another type; the message names the place.
    """

    def texts_of(record: Record) -> tuple[str | None, str | None]:
        label = field_of(record, "llm_label") if record.get("llm_label") is not None else None
        return field_of(record, "rationale", (str, NoneType)), label

    pairs = convert(records, texts_of, f"{key}: '{path}'", "texts, or null for a rationale that is missing")
    parsed = [Parsed(_text(rationale), _settled(label, nli)) for rationale, label in pairs]
    return Outputs(parsed, str(path), any(label is not None for _, label in pairs))


def _check_ids(entries: Sequence[tuple[Path, str, Any]]) -> None:
    first: dict[tuple[str, str], tuple[Path, str]] = {}
    for path, place, entry in entries:
        for field in IDS if isinstance(entry, dict) else ():
            if entry.get(field) is None:
                continue
            earlier = first.setdefault((field, repr(entry[field])), (path, place))
            if earlier != (path, place):
                raise FormatError(
                    f"{KEY}: '{path}' {place}: has the {field} {entry[field]!r:.60} of '{earlier[0]}' {earlier[1]}; "
                    "each row must have one output"
                )


def _parsed(name: str, entry: Any, flavour: str, path: Path, place: str) -> Parsed:
    if isinstance(entry, str):
        if name not in PARSED_SETS:
            raise FormatError(
                f"{KEY}: '{path}' {place}: raw outputs can be parsed for {', '.join(PARSED_SETS)} only; use objects "
                f"with 'rationale' and 'label' for {name}"
            )
        return parse(name, entry, flavour)
    if isinstance(entry, dict) and isinstance(entry.get("rationale"), str):
        if entry.get("finish_reason") in CUT_OFF:
            return Parsed(None, None)
        label = entry.get("label")
        if label is None or isinstance(label, str):
            return Parsed(_text(entry["rationale"]), _settled(label, name in NLI_SETS))
    raise FormatError(
        f"{KEY}: '{path}' {place}: invalid output {entry!r:.60}; use a text, or an object with the texts 'rationale' "
        "and 'label'"
    )


def _settled(label: str | None, nli: bool) -> str | None:
    label = _text(label)
    return named(label or "") if nli else label


def _text(value: str | None) -> str | None:
    return (final_answer(value or "") or "").strip() or None
