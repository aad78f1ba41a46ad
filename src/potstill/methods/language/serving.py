"""`stage=teacher_outputs` of language models: a server scores the tokens of a corpus."""

from __future__ import annotations

import logging

from tokenizers import Tokenizer

from potstill.config import TrainConfig
from potstill.config.data import CorpusDataConfig, data_of
from potstill.data.common.progress import counting
from potstill.data.common.tokenizers import load_backend
from potstill.data.corpus.splits import sources_of
from potstill.methods.base import ServedOutputs
from potstill.methods.common.data import build_corpora, vocabulary_of
from potstill.methods.common.teacher_cache import EVAL, TRAIN, store_folder
from potstill.rationale_generation.settings import EndpointSettings
from potstill.teacher_cache.digests import corpus_digest
from potstill.teacher_cache.formats import TopFormat
from potstill.teacher_cache.served import PromptScores, store_served
from potstill.teacher_cache.store import store_identity
from potstill.validation.generation import backend_of

log = logging.getLogger(__name__)


def store_served_tokens(config: TrainConfig) -> ServedOutputs:
    """Compute the stores of the training and the evaluation text.

    Raises:
        PotstillError: text, tokenizer, server or stores that cannot be used.
    """
    data, cache = data_of(config, CorpusDataConfig), config.teacher.cache
    assert data.tokenizer is not None
    assert data.max_length is not None
    parts = sources_of(data)
    vocabulary = vocabulary_of("data.tokenizer", data.tokenizer)
    endpoint = backend_of(config.generation)
    assert isinstance(endpoint, EndpointSettings)
    form = TopFormat(cache.k, vocabulary.size, (1.0,), cache.precision)
    tokenizer: Tokenizer = load_backend(vocabulary.path)
    client = PromptScores(endpoint, form, lambda token: str(tokenizer.decode([token], skip_special_tokens=False)))
    client.check()
    train, evaluation = build_corpora(data, parts, vocabulary, data.max_length)
    wanted = stored = 0
    for name, corpus in ((TRAIN, train), (EVAL, evaluation)):
        if corpus is None:
            continue
        tokens = int(corpus.lengths.sum(dtype=int))
        wanted += tokens
        if stored < wanted - tokens:
            continue  # the server is done for this run
        identity = store_identity(
            teacher={"served": endpoint.identity()}, tokenizer=vocabulary.digest, data=corpus_digest(corpus),
            form=form.identity,
        )  # fmt: skip
        what = f"asking for the teacher's outputs of {tokens:,} tokens"
        log.info("%s into %s", what, store_folder(config, name, identity))
        with counting(what) as progress:
            stored += store_served(store_folder(config, name, identity), identity, form, corpus, client, progress)
    reading = f"teacher/cache=on teacher.cache.folder={cache.folder} teacher.cache.k={cache.k} objective.temperature=1"
    return ServedOutputs("tokens", wanted, stored, client.tally, reading)
