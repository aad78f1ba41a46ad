"""Sources of a benchmark's parts: files of the task, and splits of data sets on the hub."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from potstill.data.common.records import check_file, read_cells, read_entries, suffix_of
from potstill.data.corpus.sources import HubDataset
from potstill.errors import FormatError

TABLES = (".tsv", ".txt", ".csv")
OBJECTS = (".jsonl", ".json")
ENDINGS = (*TABLES, *OBJECTS, ".conll", ".bio", ".ner", "")  # of the files of a folder

Record = Sequence[str] | Mapping[str, Any]


@dataclass(frozen=True)
class DataFile:
    """A file, plain or gzip.

    Attributes:
        path: Path of the file.
        key: Config key for messages.
        skip: Regular expression for lines to skip.
    """

    path: Path
    key: str = "benchmark.train_file"
    skip: str | None = None

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    @property
    def prefix(self) -> str:
        """Beginning of messages: config key and path."""
        return f"{self.key}: '{self.path}'"

    def records(self) -> Iterator[tuple[str, Record]]:
        """Cells or JSON objects with their places; of a table, with its header.

        Raises:
            DataError: The file cannot be read, or a line cannot be parsed.
        """
        suffix = suffix_of(self.path)
        if suffix in TABLES:
            return read_cells(self.path, self.key, tabs=suffix != ".csv", skip=self.skip)
        return read_entries(self.path, self.key, objects=True, skip=self.skip)


@dataclass(frozen=True)
class HubSplit(HubDataset):
    """A split of a task's data set on the hub; `column` must exist."""

    _advice: ClassVar[str] = (
        "check the network (HF_HUB_OFFLINE=1 if it is downloaded), or use local files: benchmark.folder, or "
        "benchmark.train_file and benchmark.eval_file"
    )

    def records(self) -> Iterator[tuple[str, Record]]:
        """The rows with their places; classes become names but for -1, a missing class, and null texts become blank.

        Raises:
            DataError: The data set cannot be loaded.
        """
        dataset = self._load()
        self._check_column(dataset.features)
        number = 0
        for batch in dataset.iter(batch_size=1000):
            columns = [[_plain(value, dataset.features[name]) for value in values] for name, values in batch.items()]
            for values in zip(*columns, strict=True):
                number += 1
                yield f"row {number}", dict(zip(batch, values, strict=True))

    def _check_column(self, features: Mapping[str, Any]) -> None:
        if self.column not in features:
            raise FormatError(
                f"{self.prefix} has no column '{self.column}', but {', '.join(features)}; set benchmark.text_columns "
                "and benchmark.label_column, or benchmark.token_column and benchmark.tag_column"
            )


@dataclass(frozen=True)
class PartSource(ABC):
    """A part of a benchmark: `Rows`, tagged `Sentences` or `Questions`.

    Attributes:
        source: The file, or the split of a data set.
        labelled: Whether the part must have labels.
        max_examples: Maximum number of examples.
    """

    source: DataFile | HubSplit
    labelled: bool = True
    max_examples: int | None = None

    wanted: ClassVar[str] = "a TSV, CSV or JSON file"
    checked_examples: ClassVar[int] = 1000

    def check(self) -> None:
        """Check the part quickly, before any work: the first examples of a file, the description of a data set.

        Raises:
            DataError: It cannot be used; the message names the config key, the value and what is valid.
        """
        if isinstance(self.source, HubSplit):
            self.source.check()
            return
        check_file(self.source.path, self.source.key, f"{self.wanted}, plain or gzip")
        self.read_first(min(self.checked_examples, self.max_examples or self.checked_examples))

    def read(self) -> Any:
        """Read the whole part.

        Raises:
            DataError: It is empty, or an example cannot be used; the message names the line or row.
        """
        return self.read_first(self.max_examples)

    @abstractmethod
    def read_first(self, count: int | None) -> Any:
        """Read the first examples, or all; raises as `read`."""


def find_file(folder: Path, stem: str) -> Path | None:
    """The file `stem` of a folder with a known suffix, plain or gzip, if it exists."""
    names = [f"{stem}{suffix}{packed}" for suffix in ENDINGS for packed in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _plain(value: Any, feature: Any) -> Any:
    """A value of a `datasets` feature: classes, also in lists, by name, and "" for a null text."""
    if isinstance(value, list):
        inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
        return [_plain(entry, inner) for entry in value] if getattr(inner, "names", None) else value
    if value is None:
        return "" if getattr(feature, "dtype", None) in ("string", "large_string") else None
    names = getattr(feature, "names", None)
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value
