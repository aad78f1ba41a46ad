"""Outputs of an LLM for the rows of a part, from the published files or a user's own file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.data.rationales.files import SUFFIXES, entries_of, find
from potstill.data.rationales.parsing import FLAVOURS, NLI_SETS, PARSED_SETS, Parsed, named, parse
from potstill.data.rationales.thoughts import final_answer
from potstill.errors import DataError

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
    """

    parsed: list[Parsed]
    name: str
    labelled: bool = True
    repeated: Sequence[Mapping[str, Any]] = ()

    def __len__(self) -> int:
        return len(self.parsed)

    def failed(self, row: int) -> bool:
        """Whether the output of a row lacks its rationale, or a required label."""
        found = self.parsed[row]
        return not found.whole if self.labelled else found.rationale is None


def read_outputs(folder: Path, name: str, split: str, rationales: str) -> Outputs:
    """The outputs of an LLM for a part of a set.

    Args:
        folder: Folder of all sets.
        name: Name of the set.
        split: `train`, `valid` or `test`.
        rationales: `palm` (`<set>/llm/<split>_CoT_<i>.json`, in the order of i), `gpt`
            (`gpt-neox/<set>/<split>.json`), or a path with an optional `{split}`: a file, or a folder with
            `<split>_CoT_<i>.json` or `<split>.json`. Entries are raw outputs, parsed like PaLM's, or objects with
            `rationale` and optionally `label`. Fields of the row that they repeat (`id`, `input`, ...) must be equal.

    Raises:
        DataError: Files are missing, an entry is invalid, or two have the same id.
    """
    if rationales == "palm":
        files, flavour = _chunks(folder / name / "llm", split), "palm"
        wanted = f"{folder / name / 'llm'}/{split}_CoT_0.json"
    elif rationales == "gpt":
        stem = folder / "gpt-neox" / name / split
        files, flavour, wanted = list(filter(None, [find(stem)])), "gpt", f"{stem}.json"
    else:
        at = Path(rationales.replace("{split}", split)).expanduser()
        files, flavour, wanted = _own_files(at, split), "palm", str(at)
    if not files:
        raise DataError(
            f"{KEY}: '{rationales}' has no outputs for {name}/{split}: '{wanted}' does not exist; use "
            f"{' or '.join(FLAVOURS)} with their published files, or the path of a file with one output per row"
        )
    entries = [(path, place, entry) for path in files for place, entry in entries_of(path, KEY)]
    _check_ids(entries)
    parsed = [_parsed(name, entry, flavour, path, place) for path, place, entry in entries]
    labelled = any(isinstance(entry, str) or "label" in entry for _, _, entry in entries)
    names = str(files[0]) if len(files) == 1 else f"{files[0]} to {files[-1].name}"
    repeated = [
        {name: entry[name] for name in SHARED if name in entry} if isinstance(entry, dict) else {}
        for _, _, entry in entries
    ]
    return Outputs(parsed, names, labelled, repeated)


def given_outputs(pairs: list[tuple[str, str | None]], path: Path, nli: bool) -> Outputs:
    """Outputs that are stored with the rows: a rationale, and the LLM's label or None.

    Args:
        pairs: One per row; a blank text is missing.
        path: File of the rows.
        nli: Whether other labels than the three of NLI count as missing.
    """
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
                raise DataError(
                    f"{KEY}: '{path}' {place}: has the {field} {entry[field]!r:.60} of '{earlier[0]}' {earlier[1]}; "
                    "each row must have one output"
                )


def _own_files(at: Path, split: str) -> list[Path]:
    if at.is_dir():
        return _chunks(at, split) or list(filter(None, [find(at / split)]))
    return [at] if at.is_file() else []


def _chunks(folder: Path, split: str) -> list[Path]:
    """Files `<split>_CoT_<i>.json` in the order of i, from 0 without gaps."""
    known = "|".join(map(re.escape, SUFFIXES))
    pattern = re.compile(rf"{re.escape(split)}_CoT_([0-9]+)(?:{known})")
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if match := pattern.fullmatch(path.name):
            found.setdefault(int(match.group(1)), path)
    for number in range(len(found)):
        if number not in found:
            raise DataError(
                f"{KEY}: '{folder}' has {split}_CoT_{max(found)}.json but no {split}_CoT_{number}.json; "
                "outputs are matched to rows by their order, so no file may be missing"
            )
    return [found[number] for number in sorted(found)]


def _parsed(name: str, entry: Any, flavour: str, path: Path, place: str) -> Parsed:
    if isinstance(entry, str):
        if name not in PARSED_SETS:
            raise DataError(
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
    raise DataError(
        f"{KEY}: '{path}' {place}: invalid output {entry!r:.60}; use a text, or an object with the texts 'rationale' "
        "and 'label'"
    )


def _settled(label: str | None, nli: bool) -> str | None:
    label = _text(label)
    return named(label or "") if nli else label


def _text(value: str | None) -> str | None:
    return (final_answer(value or "") or "").strip() or None
