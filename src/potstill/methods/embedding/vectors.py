"""Where the teacher's vectors come from: the model itself, a store, or files of the user's own."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from potstill.config import TrainConfig
from potstill.data.common.progress import counting
from potstill.data.common.ragged import Ints, starts_of
from potstill.data.common.store import canonical
from potstill.data.common.text_files import remembered_digest
from potstill.data.common.tokenizers import Vocabulary
from potstill.data.corpus.sentences import Distinct, SentenceRows, Sentences, TextVectors
from potstill.data.corpus.sources import TextSource
from potstill.data.corpus.store import Corpus
from potstill.errors import CacheError, DataError, FormatError
from potstill.methods.common.data import local_tokenizer
from potstill.methods.common.teacher_cache import EVAL, TRAIN, place_of, store_folder
from potstill.methods.embedding.models import Side
from potstill.models.sentence_folders import SentenceSettings
from potstill.models.specs import read_settings
from potstill.teacher_cache.computing import frozen
from potstill.teacher_cache.digests import UNREAD_CONFIG
from potstill.teacher_cache.files import read_vectors
from potstill.teacher_cache.store import OutputStore, store_identity
from potstill.teacher_cache.vectors import FileVectors, StoredVectors, VectorFormat, build_vectors, have_length_1

log = logging.getLogger(__name__)

TEXT = "text"  # name of the prompt of single texts
_ENCODED = 4096  # texts that are encoded at a time, in batches of similar lengths
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


class RunTexts(NamedTuple):
    """All texts of a run.

    Attributes:
        train: of the training.
        evaluation: of the evaluation, if any.
        held_out: whether these are of the training sources.
        prompts: texts that are put before them, by their kind.
        lower: whether they are put into lower case.
    """

    train: Sentences
    evaluation: Sentences | None
    held_out: bool
    prompts: Mapping[str, str]
    lower: bool

    def named(self) -> dict[str, Sentences]:
        """The parts, by the names of their stores."""
        found = {TRAIN: self.train}
        if self.evaluation is not None and self.evaluation is not self.train:  # not rows of the same texts
            found[EVAL] = self.evaluation
        return found


def texts_of(part: Sentences | SentenceRows) -> Sentences:
    """The texts of a part, or of its rows."""
    return part.sentences if isinstance(part, SentenceRows) else part


@dataclass(frozen=True)
class Taught:
    """The teacher's vectors, as a run reads them.

    Attributes:
        width: of the vectors.
        normalized: whether they have length 1.
        training: those of training texts, by number in their corpus.
        evaluation: those of evaluation texts, if there are any; None if a step computes its vectors.
        live: the model, if a step computes its vectors.
        text_bytes: of a text on disk; 0 if none is read.
    """

    width: int
    normalized: bool
    training: TextVectors
    evaluation: TextVectors | None = None
    live: Side | None = None
    text_bytes: int = 0

    @property
    def stored(self) -> tuple[TextVectors | None, TextVectors | None]:
        """Those that a step reads, of training and evaluation."""
        return (None, None) if self.live is not None else (self.training, self.evaluation)


class Given(ABC):
    """Vectors in place of a model.

    Attributes:
        width: of the vectors.
        normalized: whether they have length 1.
    """

    width: int
    normalized: bool

    def told(self, settings: SentenceSettings) -> SentenceSettings:
        """Settings of a student, with the prompts of the texts that the vectors are of, where these are known."""
        return settings

    @abstractmethod
    def of(self, texts: RunTexts) -> Taught:
        """Those of these texts.

        Raises:
            DataError: they are of others.
        """


class OwnVectors(Given):
    """Those of `teacher.cache.file`, one for each text as it is read: of the training sources, then of the others.

    Raises:
        DataError: a file cannot be read, or has values that are not finite, or zero vectors.
    """

    def __init__(self, config: TrainConfig) -> None:
        cache = config.teacher.cache
        arrays = read_vectors([Path(name).expanduser() for name in cache.files], "teacher.cache.file")
        self._key, self._vectors = f"teacher.cache.file={cache.file}", FileVectors(arrays)
        if not len(self._vectors):
            raise FormatError(f"{self._key}: has no rows; must have one for each text")
        self._text_bytes = int(arrays[0].shape[1] * arrays[0].dtype.itemsize)
        self.width, self.normalized = self._vectors.width, have_length_1(self._vectors, len(self._vectors))

    def of(self, texts: RunTexts) -> Taught:
        """See `Given`."""
        rows, total = _rows(texts.train)
        training, evaluation = self._vectors.of(rows), None
        counted = f"{total:,} training texts"
        if texts.evaluation is not None:
            rows, more = _rows(texts.evaluation)
            evaluation = self._vectors.of(rows if texts.held_out else rows + total)
            if not texts.held_out:
                total += more
                counted += f" and then {more:,} evaluation texts"
        if total != len(self._vectors):
            raise FormatError(
                f"{self._key}: has {len(self._vectors):,} rows, and {counted} are read; must have one for each, in "
                "their order, those that occur twice included"
            )
        return Taught(self.width, self.normalized, training, evaluation, text_bytes=self._text_bytes)


def _rows(texts: Sentences) -> tuple[Ints, int]:
    assert isinstance(texts.source, Distinct)  # by validation
    rows, total = texts.source.rows()
    if len(rows) != len(texts.corpus):
        raise CacheError(f"{texts.source.name}: changed while it was read; run again")
    return rows, total


class KeptVectors(Given):
    """Those of the stores in `teacher.cache.folder`, whose teacher is believed to be the right one.

    Raises:
        CacheError: a store is missing, or cannot be used.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        store = self._open(TRAIN)
        self._teacher, self._tokenizer = (store.index["identity"][name] for name in ("teacher", "tokenizer"))
        form = store.index["identity"]["form"]
        if form["kind"] != "vectors":
            raise store.unusable(f"it holds outputs of the form {form['kind']}, and objective=embed reads vectors")
        self._form = VectorFormat(form["width"], config.teacher.cache.precision)
        store.check_identity({**store.index["identity"], "form": self._form.identity})
        self.width = self._form.width
        self.normalized = have_length_1(StoredVectors(store, self._form), len(store))

    def told(self, settings: SentenceSettings) -> SentenceSettings:
        """See `Given`."""
        prompts = self._teacher["prompts"]
        default = TEXT if TEXT in prompts else None
        return replace(settings, prompts=prompts, default_prompt=default, lower=self._teacher["lower"])

    def of(self, texts: RunTexts) -> Taught:
        """See `Given`."""
        found: dict[str, TextVectors] = {}
        teacher = {**self._teacher, "prompts": dict(texts.prompts), "lower": texts.lower}
        for name, part in texts.named().items():
            store = self._open(name)
            store.check_identity(vectors_identity(part.source, teacher, self._tokenizer, self._form))
            found[name] = _read_from(store, self._form)
        return Taught(
            self.width, self.normalized, found[TRAIN], found.get(EVAL, found[TRAIN]), text_bytes=self._form.text_bytes
        )

    def _open(self, name: str) -> OutputStore:
        folder = store_folder(self._config, name, {})
        if not folder.is_dir():
            raise CacheError(
                f"teacher.cache.folder={self._config.teacher.cache.folder}: has no {name}/, the teacher's vectors of "
                f"the {'training' if name == TRAIN else 'evaluation'} texts; compute them, or give teacher.model"
            )
        return OutputStore.open(folder)


def _read_from(store: OutputStore, form: VectorFormat) -> StoredVectors:
    log.info("the teacher's vectors are read from %s, %d bytes per text", store.folder, form.text_bytes)
    return StoredVectors(store, form)


def given_vectors(config: TrainConfig) -> Given | None:
    """The vectors that take the teacher's place; None where `teacher.model` makes them.

    Raises:
        DataError: they cannot be used.
    """
    if config.teacher.cache.file is not None:
        return OwnVectors(config)
    return KeptVectors(config) if config.teacher.model is None and config.teacher.cache.replaces_teacher else None


def vectors_identity(
    source: TextSource | None, teacher: dict[str, Any], tokenizer: str | None, form: VectorFormat
) -> dict[str, Any]:
    """The identity of a store of the vectors of texts.

    Args:
        source: the texts.
        teacher: what made the vectors, with `prompts` and `lower`.
        tokenizer: digest of its tokenizer; None: not known.
        form: of the store.
    """
    assert source is not None
    texts = sha256(canonical(source.fingerprint())).hexdigest()
    return store_identity(teacher=teacher, tokenizer=tokenizer, data=texts, form=form.identity)


def store_vectors(
    config: TrainConfig,
    teacher: Side,
    texts: RunTexts,
    length: int,
    corpus_of: Callable[[TextSource, Vocabulary], Corpus],
) -> Taught:
    """The teacher's vectors of all texts, computed where they are not stored; its weights are loaded for that alone.

    Args:
        config: of the run.
        teacher: whose vectors they are.
        texts: of the run.
        length: most tokens of a text.
        corpus_of: makes the tokens of texts for the teacher.

    Raises:
        DataError: an existing store cannot be used, or a new one cannot be written.
    """
    form = VectorFormat(teacher.width, config.teacher.cache.precision)
    own = {
        **_weight_digests(config, teacher),
        "precision": config.trainer.precision,
        "pooling": teacher.settings.pooling,
        "normalize": teacher.settings.normalize,
        "activation": teacher.settings.activation,
        "max_length": length,
        "prompts": dict(texts.prompts),
        "lower": texts.lower,
    }
    found: dict[str, TextVectors] = {}
    for name, part in texts.named().items():
        identity = vectors_identity(part.source, own, teacher.vocabulary.digest, form)
        folder, count = store_folder(config, name, identity), len(part.corpus)
        what = f"computing the teacher's vectors of {count:,} texts"

        def compute(first: int, add: Callable[[int, Tensor], None], part: Sentences = part, what: str = what) -> None:
            log.info("%s, %d of them are there", what, first)
            assert part.source is not None
            _encode(config, teacher, corpus_of(part.source, teacher.vocabulary), first, add)

        with counting(what) as progress:
            build_vectors(folder, identity, form, count, compute, progress, wait=True)
        found[name] = _read_from(OutputStore.open(folder), form)
    return Taught(
        form.width, teacher.settings.normalize, found[TRAIN], found.get(EVAL, found[TRAIN]), text_bytes=form.text_bytes
    )


def live_vectors(config: TrainConfig, teacher: Side, texts: Sentences) -> Taught:
    """The teacher's vectors where every step computes its own."""

    def sample(numbers: Ints) -> Tensor:
        ids, lengths = (texts.other or texts.corpus).gather(numbers)
        with frozen(teacher.model, config.trainer.precision, place_of(config).device):
            found = teacher.encoder.encode(np.split(ids, starts_of(lengths)[1:]), teacher.vocabulary.pad_id)
        return found.clone()

    return Taught(teacher.width, teacher.settings.normalize, sample, live=teacher)


def _encode(config: TrainConfig, teacher: Side, corpus: Corpus, first: int, add: Callable[[int, Tensor], None]) -> None:
    """Vectors of the texts of a corpus from one of them on."""
    encoder = teacher.encoder
    with frozen(teacher.model, config.trainer.precision, place_of(config).device):
        for start in range(first, len(corpus), _ENCODED):
            ids, lengths = corpus.gather(np.arange(start, min(start + _ENCODED, len(corpus))))
            if not lengths.all():
                number = start + int(np.argmin(lengths))
                raise DataError(
                    f"teacher.model={config.teacher.model}: text {number} has no token for it, so it has no vector; "
                    "leave it out by data.skip"
                )
            add(start, encoder.encode(np.split(ids, starts_of(lengths)[1:]), teacher.vocabulary.pad_id))


def _weight_digests(config: TrainConfig, teacher: Side) -> dict[str, str]:
    """Digests of the files of the teacher's weights, which reading a store thus need not load, and of its config."""
    key, name = "teacher.model", str(config.teacher.model)
    folder, cache = Path(local_tokenizer(key, name)), Path(config.data.cache).expanduser() / "digests"

    def files() -> list[Path]:
        if folder.is_file():
            return [folder]
        inner = (
            [] if teacher.settings.dense is None else sorted((folder / teacher.settings.dense).glob("*.safetensors"))
        )
        return [*(path for pattern in _WEIGHTS for path in sorted(folder.glob(pattern))), *inner]

    if not files():
        _ = teacher.model  # of the hub: loading it downloads them
    weights = [remembered_digest(path, cache, key) for path in files()]
    settings = {name: value for name, value in read_settings(key, name).items() if name not in UNREAD_CONFIG}
    return {
        "weights": sha256(canonical(weights)).hexdigest(), "config": sha256(canonical(settings)).hexdigest(),
    }  # fmt: skip
