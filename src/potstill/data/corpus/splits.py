"""The training and evaluation sources of a data configuration. Imports no torch."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from potstill.config.data import ConversationsDataConfig, CorpusDataConfig, PairsDataConfig, SourceConfig
from potstill.data.corpus.docstrings import Docstrings
from potstill.data.corpus.pickled import PickledTokens
from potstill.data.corpus.sources import HubDataset, SavedDataset, TextFiles, TextSource
from potstill.data.corpus.text_rows import RowDataset, RowFile, RowSource
from potstill.errors import ConfigError

# Processes for binarization: of this machine, or of Ray.
LOCAL, RAY = "local", "ray"
ENGINES = (LOCAL, RAY)


Source = TextSource | PickledTokens


class Parts(NamedTuple):
    """Training and evaluation sources; `held_out` if evaluation texts are a share of the training sources."""

    train: list[Source]
    eval: list[Source]
    held_out: bool


@dataclass(frozen=True)
class HeldOut:
    """The held-out texts of a source (`part="eval"`), or the others (`part="train"`).

    A checksum of the text decides, so equal texts are never in both parts.
    """

    source: TextSource
    share: float
    part: str

    @property
    def name(self) -> str:
        """Name for messages."""
        return self.source.name if self.part == "train" else f"{self.source.name} ({self.share:.2%} held out)"

    def check(self) -> None:
        """See `TextSource`."""
        self.source.check()

    def fingerprint(self) -> dict[str, Any]:
        """See `TextSource`."""
        return {"held_out": self.share, "part": self.part, "source": self.source.fingerprint()}

    def keeps(self, text: str) -> bool:
        """Whether a text of the source is in this part."""
        return (zlib.crc32(text.encode()) < int(self.share * 2**32)) == (self.part == "eval")

    def batches(self, size: int) -> Iterator[list[str]]:
        """See `TextSource`."""
        for batch in self.source.batches(size):
            if kept := list(filter(self.keeps, batch)):
                yield kept


def sources_of(data: CorpusDataConfig, *, eval_file: str | None = None) -> Parts:
    """The sources of the keys of `data`.

    `train_files` and `eval_files` (or a benchmark's `eval_file`) replace the sources of the option. Without evaluation
    source, `eval_share` of the training texts is held out.

    Raises:
        ConfigError: There is no source, or one without exactly one of files, hub, folder, docstrings, pickle.
    """
    train = _local(data, data.train_files, "data.train_files") or _listed(data, data.train, "data.train")
    evaluation = (
        _local(data, [eval_file], "benchmark.eval_file")
        if eval_file is not None
        else _local(data, data.eval_files, "data.eval_files") or _listed(data, data.eval, "data.eval")
    )
    if not train and not evaluation:
        raise ConfigError(
            f"data.train_files=null: data={data.name} needs text; set data.train_files=[a.txt,b.txt.gz] "
            "(and data.eval_files=[c.txt])"
        )
    if evaluation or not data.eval_share:
        return Parts(train, evaluation, held_out=False)
    return Parts(
        [_part(source, data.eval_share, "train") for source in train],
        [_part(source, data.eval_share, "eval") for source in train],
        held_out=True,
    )


def _part(source: Source, share: float, part: str) -> Source:
    if isinstance(source, PickledTokens):
        return replace(source, share=share, part=part)
    return HeldOut(source, share, part)


def _local(data: CorpusDataConfig, files: Any, key: str) -> list[Source]:
    if files is None:
        return []
    if not len(files):
        raise ConfigError(f"{key}=[]: must have at least one text file")
    return [_text_files(data, files, data.unit, key)]


def _listed(data: CorpusDataConfig, sources: Any, key: str) -> list[Source]:
    return [_source(data, source, f"{key}.{i}") for i, source in enumerate(sources)]


def _source(data: CorpusDataConfig, source: SourceConfig, key: str) -> Source:
    kinds = ("files", "hub", "folder", "docstrings", "pickle")
    given = [name for name in kinds if source[name]]
    if len(given) != 1:
        raise ConfigError(f"{key}: has {', '.join(given) or 'no source'}; must have one of {', '.join(kinds)}")
    if source.files:
        return _text_files(data, source.files, source.unit or data.unit, f"{key}.files")
    if source.docstrings:
        packages = tuple(source.packages) if source.packages else None
        return Docstrings(packages, data.max_examples, Path(data.cache).expanduser())
    if source.pickle:
        path = str(_absolute(source.pickle))
        return PickledTokens(path, data.max_examples, Path(data.cache).expanduser(), f"{key}.pickle")
    options: dict[str, Any] = {
        "split": source.split or "train",
        "column": source.column,
        "max_examples": data.max_examples,
        "key": key,
    }
    if source.hub:
        return HubDataset(source.hub, source.config, revision=source.revision, **options)
    return SavedDataset(str(_absolute(str(source.folder))), **options)


def row_sources(data: ConversationsDataConfig | PairsDataConfig, part: str) -> list[HubDataset]:
    """The data sets of a part of conversations, or of rows of several texts, `train` or `eval`.

    Raises:
        ConfigError: One has not exactly one of hub and folder.
    """
    found: list[HubDataset] = []
    for number, source in enumerate(data[part]):
        key, given = f"data.{part}.{number}", [name for name in ("hub", "folder") if source[name]]
        if len(given) != 1:
            raise ConfigError(f"{key}: has {' and '.join(given) or 'no source'}; must have one of hub, folder")
        if source.hub:
            found.append(HubDataset(source.hub, source.config, source.split, revision=source.revision, key=key))
        else:
            found.append(SavedDataset(str(_absolute(source.folder)), split=source.split, key=key))
    return found


def pair_sources(data: PairsDataConfig, part: str) -> list[RowSource]:
    """The sources of rows of several texts of a part, `train` or `eval`: its files, else its data sets.

    Raises:
        ConfigError: A data set has not exactly one of hub and folder.
    """
    key = f"data.{part}_files"
    if files := data[f"{part}_files"]:
        return [RowFile(_absolute(file), key, data.skip) for file in files]
    return [RowDataset(source) for source in row_sources(data, part)]


def _text_files(data: CorpusDataConfig, files: Any, unit: str, key: str) -> TextFiles:
    paths = tuple(str(_absolute(file)) for file in files)
    return TextFiles(paths, unit, data.skip, data.max_examples, Path(data.cache).expanduser(), key)


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()
