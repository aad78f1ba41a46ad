"""Sources of text: files, data sets of the hub or of `save_to_disk`, and docstrings of the installed libraries."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from potstill.data.common.text_files import (
    LINE_BYTES,
    fault_of,
    packed,
    paragraphs,
    read_lines,
    remembered_digest,
    skipping,
)
from potstill.errors import DataError
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
        unit: A text is a `line`, or a `paragraph`: lines up to a blank one, joined by spaces.
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
            raise DataError(
                f"{self.key}=[]: must have at least one file, such as {self.key}=[a.txt,b.txt.gz]"
            )
        if self.unit not in ("line", "paragraph"):
            raise DataError(f"data.unit={self.unit}: must be line or paragraph")
        skipping(self.skip)
        for file in self.files:
            fault = fault_of(Path(file))
            if fault:
                raise DataError(f"{self.key}: '{file}' {fault}; use UTF-8 text, plain or gzip (.gz)")

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
            yield from lines if self.unit == "line" else paragraphs(lines, f"{self.key}: '{file}'")


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", CANONICAL_NAMES.get(self.path, self.path))

    @property
    def name(self) -> str:
        """Path, configuration and split."""
        return f"{self.path} ({self.config or 'default'}, {self.split})"

    def check(self) -> None:
        """See `TextSource`; downloads only the description of the data set."""
        if not Path(self.path).is_dir():
            self._reach()
        import datasets

        load = datasets.load_dataset_builder
        builder = self._guarded(lambda: load(self.path, self.config, revision=self.revision))
        if builder.info.features:
            _check_column(self.column, builder.info.features, self.name, self.key)

    def fingerprint(self) -> dict[str, Any]:
        """See `TextSource`; downloads the data set if it is not in the cache of `datasets`."""
        fields = ("config", "split", "column", "revision", "max_examples")
        identity = {"kind": "hub", "path": self.path, "fingerprint": self._load()._fingerprint}
        return identity | {field: getattr(self, field) for field in fields}

    def batches(self, size: int) -> Iterator[list[str]]:
        """See `TextSource`."""
        return packed(_column(self._load(), self.column, self.name, self.key), size, self.max_examples)

    def _reach(self) -> None:
        """Ask the hub for the data set once; `datasets` would retry for half a minute."""
        import huggingface_hub
        from huggingface_hub.errors import OfflineModeIsEnabled

        def ask() -> None:
            try:
                huggingface_hub.HfApi().dataset_info(
                    self.path, revision=self.revision, timeout=HUB_TIMEOUT_SECONDS
                )
            except OfflineModeIsEnabled:
                return  # the cache may have it

        self._guarded(ask)

    def _load(self) -> Any:
        import datasets

        load = {"split": self.split, "revision": self.revision, "streaming": False}
        return self._guarded(lambda: datasets.load_dataset(self.path, self.config, **load))

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # the hub's client raises errors of many libraries
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise DataError(
                f"{self.key}: '{self.name}' cannot be loaded ({reason}); check the name and the network "
                "(HF_HUB_OFFLINE=1 if it is downloaded), or use local data: data=text_files "
                "data.train_files=[...] or a folder of save_to_disk"
            ) from error


@dataclass(frozen=True)
class SavedDataset:
    """One column of a `Dataset` or `DatasetDict` written by `save_to_disk`.

    Attributes:
        folder: The folder.
        split: Split of a `DatasetDict`, `train` if None.
        column: The column of text.
        max_examples: Maximum number of texts.
        key: Config key for messages.
    """

    folder: str
    split: str | None = None
    column: str = "text"
    max_examples: int | None = None
    key: str = "data.folder"

    @property
    def name(self) -> str:
        """Folder and split."""
        return f"{self.folder} ({self.split})" if self.split else self.folder

    def check(self) -> None:
        """See `TextSource`; reads the descriptions in the folder."""
        info = self._read(self._root() / "dataset_info.json")
        for file in self._arrow_files():
            if not file.is_file():
                raise DataError(
                    f"{self.key}: '{self.folder}' lacks its file {file.name}; save the data set again"
                )
        _check_column(self.column, info.get("features") or {}, self.name, self.key)

    def fingerprint(self) -> dict[str, Any]:
        """See `TextSource`."""
        return {
            "kind": "saved",
            "fingerprint": self._state().get("_fingerprint"),
            "bytes": [file.stat().st_size for file in self._arrow_files()],
            "column": self.column,
            "max_examples": self.max_examples,
        }

    def batches(self, size: int) -> Iterator[list[str]]:
        """See `TextSource`."""
        import datasets

        try:
            dataset = datasets.Dataset.load_from_disk(str(self._root()))
        except Exception as error:  # pyarrow and datasets raise errors of many kinds
            raise DataError(
                f"{self.key}: '{self.folder}' cannot be loaded ({error}); save the data set again"
            ) from error
        return packed(_column(dataset, self.column, self.name, self.key), size, self.max_examples)

    def _root(self) -> Path:
        root = Path(self.folder)
        splits = root / "dataset_dict.json"
        if not splits.is_file():
            return root
        known = self._read(splits).get("splits", [])
        split = self.split or "train"
        if split not in known:
            raise DataError(f"{self.key}.split={split}: '{self.folder}' has the splits {', '.join(known)}")
        return root / split

    def _arrow_files(self) -> list[Path]:
        return [self._root() / entry["filename"] for entry in self._state().get("_data_files", [])]

    def _state(self) -> dict[str, Any]:
        return self._read(self._root() / "state.json")

    def _read(self, file: Path) -> dict[str, Any]:
        try:
            return dict(read_json(file))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"{self.key}: '{self.folder}' is not a folder of save_to_disk ({file.name} is missing or damaged)"
            ) from error


@dataclass(frozen=True)
class Docstrings:
    """The English in the docstrings of installed libraries, one paragraph per text.

    Attributes:
        packages: Names as in `pip list`, `python` for the standard library; None for all installed packages.
        max_examples: Maximum number of texts.
        cache: The text is stored in its `docstrings` folder.
        key: Config key for messages.
    """

    packages: tuple[str, ...] | None
    max_examples: int | None
    cache: Path
    key: str = "data.packages"

    @property
    def name(self) -> str:
        """Names of the packages."""
        return f"docstrings of {', '.join(self.packages) if self.packages else 'the installed packages'}"

    def check(self) -> None:
        """See `TextSource`."""
        self._identity()

    def fingerprint(self) -> dict[str, Any]:
        """See `TextSource`; reads versions only."""
        return self._identity() | {"max_examples": self.max_examples}

    def batches(self, size: int) -> Iterator[list[str]]:
        """See `TextSource`."""
        text = str(self.materialise())
        return TextFiles((text,), "line", None, self.max_examples, self.cache).batches(size)

    def materialise(self, num_proc: int = 2, progress: Callable[[int, int], None] | None = None) -> Path:
        """The text file of the paragraphs, written on the first call.

        Args:
            num_proc: Number of processes.
            progress: Called with the number of files read and their total.
        """
        from potstill.data.corpus.docstrings import installed, materialise

        return materialise(installed(self.packages, self.key), self.cache / "docstrings", num_proc, progress)

    def _identity(self) -> dict[str, Any]:
        # Late, against a cycle: that module uses the worker processes of binarization.
        from potstill.data.corpus.docstrings import identity, installed

        return identity(installed(self.packages, self.key))


def _dtype(feature: Any) -> str:
    """Type of a `datasets` feature, or of its JSON."""
    described = feature if isinstance(feature, dict) else vars(feature)
    return str(described.get("dtype", "nested"))


def _check_column(column: str, features: Mapping[str, Any], name: str, key: str) -> None:
    texts = [known for known, of in features.items() if _dtype(of) in ("string", "large_string")]
    if column not in texts:
        fault = "is not text" if column in features else "does not exist"
        raise DataError(
            f"{key}.column={column}: {fault} in {name}; text columns: {', '.join(texts) or 'none'}"
        )


def _column(dataset: Any, column: str, name: str, key: str) -> Iterator[str]:
    """Texts of one column of a `datasets.Dataset`, read in blocks of 1,000 rows."""
    _check_column(column, dataset.features, name, key)
    for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        for text in filter(None, table.column(column).to_pylist()):
            if len(text) > LINE_BYTES:
                raise DataError(
                    f"{key}.column={column}: a text of {name} has more than {LINE_BYTES:,} characters; split it"
                )
            yield text
