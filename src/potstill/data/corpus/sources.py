"""Sources of text: files, and data sets of the hub or of `save_to_disk`."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from potstill.data.common.text_files import (
    LINE_BYTES,
    file_problem,
    packed,
    paragraphs,
    read_lines,
    remembered_digest,
    sentences,
    skipping,
)
from potstill.errors import DataError, FileError, FormatError
from potstill.runtime.json_text import read_json

HUB_TIMEOUT_SECONDS = 10
# Old names without an owner no longer load.
CANONICAL_NAMES = {"wikitext": "Salesforce/wikitext", "bookcorpus": "bookcorpus/bookcorpus"}


class TextSource(Protocol):
    """A stream of texts with an identity."""

    @property
    def name(self) -> str:
        """Name for messages."""

    def check(self) -> None:
        """Check the source quickly, before any work.

        Raises:
            DataError: It cannot be used; the message names the config key, the value and what is valid.
        """

    def fingerprint(self) -> dict[str, Any]:
        """JSON values that identify the content and its texts."""

    def batches(self, size: int) -> Iterator[list[str]]:
        """Batches of non-blank texts of about `size` characters each, in a fixed order.

        Raises:
            DataError: A part cannot be read; the message names the place.
        """


@dataclass(frozen=True)
class TextFiles:
    """Plain or gzip (`.gz`) UTF-8 text files.

    Attributes:
        files: Paths, read in this order.
        unit: A text is a `line`, a `paragraph` (lines up to a blank one, joined by spaces), or a `sentence` of a line.
        skip: Regular expression for lines to skip, such as `^</?doc`.
        max_examples: Maximum number of texts.
        cache: Digests of the files are stored in its `digests` folder.
        key: Config key for messages.
    """

    files: tuple[str, ...]
    unit: str
    skip: str | None
    max_examples: int | None
    cache: Path
    key: str = "data.train_files"

    @property
    def name(self) -> str:
        """The names of the files."""
        return ", ".join(Path(file).name for file in self.files)

    def check(self) -> None:
        """See `TextSource`; reads the first MiB of each file."""
        if not self.files:
            raise DataError(f"{self.key}=[]: must have at least one file, such as {self.key}=[a.txt,b.txt.gz]")
        if self.unit not in ("line", "paragraph", "sentence"):
            raise DataError(f"data.unit={self.unit}: must be line, paragraph or sentence")
        skipping(self.skip)
        for file in self.files:
            error = file_problem(Path(file))
            if error:
                raise FileError(f"{self.key}: '{file}' {error}; use UTF-8 text, plain or gzip (.gz)")

    def fingerprint(self) -> dict[str, Any]:
        """See `TextSource`."""
        digests = [remembered_digest(Path(file), self.cache / "digests", self.key) for file in self.files]
        kind = {"kind": "text_files", "sha256": digests, "unit": self.unit, "skip": self.skip}
        return kind | {"max_examples": self.max_examples}

    def batches(self, size: int) -> Iterator[list[str]]:
        """See `TextSource`."""
        return packed(self._texts(), size, self.max_examples)

    def _texts(self) -> Iterator[str]:
        skipped = skipping(self.skip) if self.skip else None
        for file in self.files:
            lines: Iterator[str] = read_lines(Path(file), self.key)
            if skipped:
                lines = (line for line in lines if not skipped(line))
            if self.unit == "paragraph":
                lines = paragraphs(lines, f"{self.key}: '{file}'")
            yield from sentences(lines) if self.unit == "sentence" else lines


@dataclass(frozen=True)
class HubDataset:
    """One column of a data set on the hub, or in a folder of data files that `datasets.load_dataset` reads.

    Attributes:
        path: Name on the hub, or a folder.
        config: Configuration of the data set, such as `wikitext-103-raw-v1`.
        split: Split, also with a slice such as `train[:10%]`.
        column: The column of text.
        revision: Branch, tag or commit.
        max_examples: Maximum number of texts.
        key: Config key for messages.
    """

    path: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    revision: str | None = None
    max_examples: int | None = None
    key: str = "data.dataset"

    _advice: ClassVar[str] = (
        "check the name and the network (HF_HUB_OFFLINE=1 if it is downloaded), or use local data: data=text_files "
        "data.train_files=[...] or a folder of save_to_disk"
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", CANONICAL_NAMES.get(self.path, self.path))

    @property
    def name(self) -> str:
        """Path, configuration and split."""
        return f"{self.path} ({self.config or 'default'}, {self.split})"

    @property
    def prefix(self) -> str:
        """Beginning of messages: config key and name."""
        return f"{self.key}: '{self.name}'"

    def check(self) -> None:
        """See `TextSource`; downloads only the description of the data set."""
        features = self.features()
        if features:
            self._check_column(features)

    def features(self) -> Mapping[str, Any]:
        """The columns, as far as the description of the data set has them.

        Raises:
            FileError: It cannot be loaded.
        """
        if not Path(self.path).is_dir():
            self._reach()
        import datasets

        load = datasets.load_dataset_builder
        return self._guarded(lambda: load(self.path, self.config, revision=self.revision)).info.features or {}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Whole rows, without cells that are null.

        Raises:
            FileError: The data set cannot be loaded.
        """
        for table in self._load().with_format("arrow").iter(batch_size=1000):
            yield from ({name: value for name, value in row.items() if value is not None} for row in table.to_pylist())

    def fingerprint(self) -> dict[str, Any]:
        """See `TextSource`; downloads the data set if it is not in the cache of `datasets`."""
        fields = ("config", "split", "column", "revision", "max_examples")
        identity = {"kind": "hub", "path": self.path, "fingerprint": self._load()._fingerprint}
        return identity | {field: getattr(self, field) for field in fields}

    def batches(self, size: int) -> Iterator[list[str]]:
        """See `TextSource`."""
        return packed(self._texts(), size, self.max_examples)

    def _reach(self) -> None:
        """Ask the hub for the data set once; `datasets` would retry for half a minute."""
        import huggingface_hub
        from huggingface_hub.errors import OfflineModeIsEnabled

        def ask() -> None:
            with suppress(OfflineModeIsEnabled):  # the cache may have it
                huggingface_hub.HfApi().dataset_info(self.path, revision=self.revision, timeout=HUB_TIMEOUT_SECONDS)

        self._guarded(ask)

    def _load(self) -> Any:
        """The `datasets.Dataset` of the split."""
        import datasets

        load = {"split": self.split, "revision": self.revision, "streaming": False}
        return self._guarded(lambda: datasets.load_dataset(self.path, self.config, **load))

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # errors of many libraries
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise FileError(f"{self.prefix} cannot be loaded ({reason}); {self._advice}") from error

    def _texts(self) -> Iterator[str]:
        """The texts, read in blocks of 1,000 rows."""
        dataset = self._load()
        self._check_column(dataset.features)
        for table in dataset.select_columns([self.column]).with_format("arrow").iter(batch_size=1000):
            for text in filter(None, table.column(self.column).to_pylist()):
                if len(text) > LINE_BYTES:
                    raise FormatError(
                        f"{self.key}.column={self.column}: a text of {self.name} has more than {LINE_BYTES:,} "
                        "characters; split it"
                    )
                yield text

    def _check_column(self, features: Mapping[str, Any]) -> None:
        texts = [name for name, of in features.items() if getattr(of, "dtype", None) in ("string", "large_string")]
        if self.column not in texts:
            problem = "is not text" if self.column in features else "does not exist"
            raise FormatError(
                f"{self.key}.column={self.column}: {problem} in {self.name}; text columns: {', '.join(texts) or 'none'}"
            )


@dataclass(frozen=True)
class SavedDataset(HubDataset):
    """One column of a `Dataset`, or of a split of a `DatasetDict`, in the folder `path` of `save_to_disk`."""

    _advice = "use a folder of save_to_disk, or save the data set again"

    def features(self) -> Mapping[str, Any]:
        """The columns; maps the files of the folder."""
        return dict(self._load().features)

    def fingerprint(self) -> dict[str, Any]:
        """See `TextSource`."""
        files = [Path(file["filename"]) for file in self._load().cache_files]
        return {
            "kind": "saved",
            "fingerprint": read_json(files[0].with_name("state.json"))["_fingerprint"],
            "bytes": [file.stat().st_size for file in files],
            "column": self.column,
            "max_examples": self.max_examples,
        }

    def _load(self) -> Any:
        import datasets

        loaded = self._guarded(lambda: datasets.load_from_disk(self.path))
        if not isinstance(loaded, datasets.DatasetDict):
            return loaded
        if self.split not in loaded:
            raise DataError(f"{self.key}.split={self.split}: '{self.path}' has the splits {', '.join(loaded)}")
        return loaded[self.split]
