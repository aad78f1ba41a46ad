"""`stage=teacher_outputs` of sentence encoders: a server makes the vectors of texts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import chain
from pathlib import Path

from torch import Tensor

from potstill.config import TrainConfig
from potstill.config.data import CorpusDataConfig, data_of
from potstill.config.objectives.embedding import embedding_of
from potstill.data.common.progress import counting
from potstill.data.corpus.sentences import Distinct
from potstill.data.corpus.splits import sources_of
from potstill.methods.base import ServedOutputs
from potstill.methods.common.teacher_cache import EVAL, TRAIN, store_folder
from potstill.methods.embedding.rows import distinct_texts
from potstill.methods.embedding.vectors import TEXT, vectors_identity
from potstill.rationale_generation.settings import EndpointSettings
from potstill.teacher_cache.served_vectors import TextBatch, TextBatches, VectorRequests
from potstill.teacher_cache.store import OutputStore
from potstill.teacher_cache.vectors import VectorFormat, build_vectors
from potstill.validation.generation import backend_of

log = logging.getLogger(__name__)

_READ_CHARACTERS = 2**18


def store_served_vectors(config: TrainConfig) -> ServedOutputs:
    """Compute the stores of the training and the evaluation texts.

    Raises:
        PotstillError: text, server or stores that cannot be used.
    """
    data, cache = data_of(config, CorpusDataConfig), config.teacher.cache
    parts, prompt = sources_of(data), embedding_of(config).prompt or ""
    endpoint = backend_of(config.generation)
    assert isinstance(endpoint, EndpointSettings)
    folders = {name: store_folder(config, name, {}) for name in (TRAIN, EVAL)}
    client = VectorRequests(endpoint, _stored_width(folders[TRAIN]))
    client.check()
    teacher = {"served": endpoint.identity(), "prompts": {TEXT: prompt}, "lower": False}
    wanted = stored = 0
    for name, sources in ((TRAIN, parts.train), (EVAL, parts.eval)):
        texts = distinct_texts(data, sources, prompt)
        count = sum(map(len, texts.batches(_READ_CHARACTERS)))
        wanted += count
        if not count or stored < wanted - count or not (width := client.width or _asked_width(client, texts)):
            continue  # no such texts, or the server is done for this run
        form = VectorFormat(width, cache.precision)
        identity, what = vectors_identity(texts, teacher, None, form), f"asking for the vectors of {count:,} texts"
        log.info("%s into %s, %d bytes per text", what, folders[name], form.text_bytes)

        def compute(first: int, add: Callable[[int, Tensor], None], texts: Distinct = texts, all_: int = count) -> None:
            every = chain.from_iterable(texts.batches(_READ_CHARACTERS))
            requests = TextBatches(every, all_, first, config.generation.batch_size)
            client.answer(requests, lambda batch, made: add(batch.first, made.vectors))

        with counting(what) as progress:
            stored += build_vectors(folders[name], identity, form, count, compute, progress)
    reading = f"teacher/cache=on teacher.cache.folder={cache.folder} teacher.cache.precision={cache.precision}"
    return ServedOutputs("texts", wanted, stored, client.tally, reading)


def _stored_width(folder: Path) -> int | None:
    """Width of the vectors of a store, or of its first part; None without one."""
    for place in (folder, folder.with_name(f"{folder.name}.parts") / f"{0:09d}"):
        if place.is_dir():
            return int(OutputStore.open(place).index["identity"]["form"].get("width", 0)) or None
    return None


def _asked_width(client: VectorRequests, texts: Distinct) -> int | None:
    """Width of the vector of the first text, by a request of its own; None if the budget is spent."""
    first = next(texts.batches(1))[0]
    client.answer([TextBatch(0, (first,))], lambda batch, made: None)
    return client.width
