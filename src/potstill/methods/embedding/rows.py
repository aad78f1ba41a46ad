"""Rows of several texts, from configuration, and texts in the tokens of both models."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from potstill.config import TrainConfig
from potstill.config.data import CorpusDataConfig, PairsDataConfig, data_of
from potstill.config.objectives.embedding import embedding_of
from potstill.data.common.batching import Ints
from potstill.data.common.progress import counting
from potstill.data.common.tokenizers import Vocabulary
from potstill.data.corpus.binarize import binarize
from potstill.data.corpus.pickled import PickledTokens
from potstill.data.corpus.sentences import Distinct, SentenceRows, Sentences
from potstill.data.corpus.sources import TextSource
from potstill.data.corpus.splits import LOCAL, Source, pair_sources
from potstill.data.corpus.store import Corpus
from potstill.data.corpus.text_rows import Prompts, TextRow, TextRows, collect_rows, held_out_rows, read_rows
from potstill.data.tasks.preflight import refuse_unknown
from potstill.errors import ConfigError, DataError
from potstill.methods.embedding.checks import columns_of, is_scored
from potstill.methods.embedding.models import Side
from potstill.models.sentence_folders import ROLES, SentenceSettings

log = logging.getLogger(__name__)

PROBED = 1000  # texts whose unknown tokens are counted


class PairParts(NamedTuple):
    """Rows as they were read.

    Attributes:
        train: of training, some of which may be held out.
        eval: of evaluation; empty: none are given.
        name: names of the training sources.
        eval_name: names of those of evaluation.
    """

    train: list[TextRow]
    eval: list[TextRow]
    name: str
    eval_name: str


def read_parts(config: TrainConfig) -> PairParts:
    """The rows of the files, or data sets, of training and evaluation.

    Raises:
        DataError: they cannot be read, or a row has no query or no positive.
        ConfigError: no row has a negative, and a term reads some.
    """
    data = data_of(config, PairsDataConfig)
    found, names = [], []
    for part in ("train", "eval"):
        sources = pair_sources(data, part)
        read = (read_rows(source, columns_of(data), data.max_examples) for source in sources)
        found.append(list(chain.from_iterable(read)))
        names.append(", ".join(source.name for source in sources))
        if found[-1] and embedding_of(config).terms.given("margin_mse") and not any(row.negatives for row in found[-1]):
            raise ConfigError(
                f"objective.terms.margin_mse.weight: the rows of {names[-1]} have no negatives; name their columns, "
                "data.columns.negatives=[<column>], or use weight=0"
            )
    return PairParts(found[0], found[1], names[0], names[1])


def rows_of(
    config: TrainConfig, parts: PairParts, sides: Sequence[Side], prompts: Prompts, length: int
) -> tuple[SentenceRows, SentenceRows | None]:
    """The rows of training and evaluation in the tokens of the models; their counts are reported.

    Args:
        config: of the run.
        parts: from `read_parts`.
        sides: the student, then the teacher, if any.
        prompts: before the texts.
        length: most tokens of a text.

    Raises:
        DataError: no rows are left, or none with a negative where a term reads some.
    """
    data = data_of(config, PairsDataConfig)
    train = collect_rows(parts.train, parts.name, prompts)
    made = _made(config, train, sides, length)
    if parts.eval:
        evaluation = collect_rows(parts.eval, parts.eval_name, prompts)
        return made.of(None), _made(config, evaluation, sides, length).of(None)
    if not data.eval_share:
        return made.of(None), None
    held = held_out_rows(train.keys, data.eval_share)
    if not (made.kept & ~held).any():
        raise DataError(f"data.eval_share={data.eval_share}: all rows of {train.name} are held out; a smaller share")
    if not (made.kept & held).any():
        log.warning("no evaluation: none of %d rows are held out; give data.eval_files or a larger share", len(held))
        return made.of(None), None
    found = made.of(~held), made.of(held)
    if embedding_of(config).terms.given("margin_mse") and not all(part.describe()["negatives"] for part in found):
        raise DataError(
            f"data.eval_share={data.eval_share}: training or evaluation has no row with a negative, which "
            "objective.terms.margin_mse reads; give data.eval_files, or another share"
        )
    return found


class _Made(NamedTuple):
    """Rows whose texts are tokenized."""

    rows: TextRows
    sentences: Sentences
    numbers: Ints
    kept: NDArray[np.bool_]
    scale: float | None

    def of(self, chosen: NDArray[np.bool_] | None) -> SentenceRows:
        """Some of the rows, or all."""
        kept = self.kept if chosen is None else self.kept & chosen
        margins = None if self.scale is None or self.rows.margins is None else self.scale * self.rows.margins[kept]
        left_out = {"duplicates": self.rows.duplicates, "dropped": int((~self.kept).sum())}
        found = SentenceRows(self.sentences, self.numbers[kept], margins, left_out)
        counts = ", ".join(f"{count:,} {name}" for name, count in found.describe().items())
        log.info("%s: %s", self.rows.name, counts)
        return found


def _made(config: TrainConfig, rows: TextRows, sides: Sequence[Side], length: int) -> _Made:
    data, scale = data_of(config, PairsDataConfig), embedding_of(config).margin_scale
    sentences = tokenized(data, rows, sides, length)
    places = np.full(len(rows.texts) + 1, -1)  # the last one is that of no negative
    places[sentences.texts] = np.arange(len(sentences))
    numbers = places[rows.numbers]
    kept: NDArray[np.bool_] = np.all((numbers >= 0) | (rows.numbers < 0), axis=1)
    if not kept.any():
        raise DataError(f"{rows.name}: no row has text that the tokenizer knows; give another data.tokenizer")
    log.info("%s: %d texts are cut at %d tokens", rows.name, sentences.corpus.describe()["split"], length)
    if not is_scored(config):
        return _Made(rows, sentences, numbers, kept, None)
    largest = 0.0 if rows.margins is None else scale * float(np.nanmax(np.abs(rows.margins)))
    if sides[0].settings.normalize and largest > 2:  # inner products are from -1 to 1
        raise ConfigError(
            f"objective.margin_scale={scale}: the margins of {rows.name} are up to {largest:g}, and vectors of length "
            f"1 have margins up to 2; use {2 * scale / largest:.2g} or less"
        )
    return _Made(rows, sentences, numbers, kept, scale)


def distinct_texts(data: CorpusDataConfig, sources: Sequence[Source], prompt: str, lower: bool = False) -> Distinct:
    """The texts of sources, each once.

    Raises:
        ConfigError: a source has token ids.
    """
    texts = []
    for source in sources:
        if isinstance(source, PickledTokens):
            raise ConfigError(f"data={data.name}: has token ids; objective=embed reads texts, data=text_files")
        texts.append(source)
    return Distinct(tuple(texts), prompt, lower)


def tokenized(
    data: CorpusDataConfig | PairsDataConfig,
    source: TextSource,
    sides: Sequence[Side],
    length: int,
    min_length: int = 1,
    *,
    engine: str = LOCAL,
) -> Sentences:
    """Texts, each once, in the tokens of both models.

    Args:
        data: the section of the configuration.
        source: of different texts.
        sides: the student, then the teacher, if any.
        length: most tokens of a text.
        min_length: least tokens of a text in the student's tokens.
        engine: of `binarize`.

    Raises:
        DataError: no text is long enough.
        TokenizerError: too many tokens are unknown.
    """
    vocabularies = {side.vocabulary.digest: side.vocabulary for side in sides}.values()
    stores = [corpus_of(data, source, vocabulary, length, engine=engine) for vocabulary in vocabularies]
    found = Sentences(stores[0], stores[1] if len(stores) > 1 else None, min_length, source)
    if not len(found):
        raise DataError(f"data.min_length={min_length}: all texts of {source.name} are shorter")
    return found


def corpus_of(
    data: CorpusDataConfig | PairsDataConfig,
    source: TextSource,
    vocabulary: Vocabulary,
    length: int,
    *,
    engine: str = LOCAL,
) -> Corpus:
    """Texts in the tokens of one model, one sequence per text; arguments as of `tokenized`.

    Raises:
        TokenizerError: too many tokens are unknown.
    """
    with counting(f"binarizing {source.name}") as progress:
        store = binarize(
            source,
            vocabulary,
            cache=Path(data.cache).expanduser(),
            max_length=length,
            whole=True,
            num_proc=data.num_proc,
            engine=engine,
            progress=progress,
        )
    corpus = Corpus([store])
    sample = corpus.gather(np.arange(min(len(corpus), PROBED)))[0]
    refuse_unknown(source.name, sample, vocabulary, data.max_unknown)
    return corpus


def with_prompts(settings: SentenceSettings, prompts: Prompts) -> SentenceSettings:
    """The settings of a student that was trained with prompts of queries and documents."""
    given = {"query": prompts.query, "document": prompts.document}
    own = {next((name for name in ROLES[role] if name in settings.prompts), role): text for role, text in given.items()}
    if not any(own.values()) and not {*own} & {*settings.prompts}:
        return settings
    return replace(settings, prompts={**settings.prompts, **own})
