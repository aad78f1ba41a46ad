"""`stage=teacher_outputs`: a server computes the stores that a run reads in its teacher's place."""

from __future__ import annotations

import logging
from pathlib import Path

from tokenizers import Tokenizer

from potstill.config import TrainConfig
from potstill.config.data import CorpusDataConfig, data_of
from potstill.data.common.progress import counting
from potstill.data.common.tokenizers import load_backend
from potstill.data.corpus.splits import sources_of
from potstill.methods.common.data import build_corpora, vocabulary_of
from potstill.methods.common.teacher_cache import EVAL, TRAIN, store_folder
from potstill.rationale_generation.settings import EndpointSettings
from potstill.runs.summary import provenance, write_config, write_summary
from potstill.teacher_cache.digests import corpus_digest
from potstill.teacher_cache.formats import TopFormat
from potstill.teacher_cache.served import PromptScores, store_served
from potstill.teacher_cache.store import store_identity
from potstill.validation.generation import backend_of

log = logging.getLogger(__name__)


def store_teacher_outputs(config: TrainConfig, folder: Path) -> float:
    """Compute the stores of the training and the evaluation text; writes summary.json.

    Returns:
        The share of the tokens that are stored; below 1 if the budget is spent, or the server asks to wait for long.

    Raises:
        PotstillError: text, tokenizer, server or stores that cannot be used.
    """
    data, cache, settings = data_of(config, CorpusDataConfig), config.teacher.cache, config.generation
    assert data.tokenizer is not None
    assert data.max_length is not None
    parts = sources_of(data)
    vocabulary = vocabulary_of("data.tokenizer", data.tokenizer)
    endpoint = backend_of(settings)
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
    tally = client.tally
    figures = {"tokens": wanted, "stored": stored, "requests": tally.asked + tally.retried, "retried": tally.retried}
    figures |= {"failed": tally.failed, "malformed": tally.malformed, "input_tokens": tally.input_tokens}
    write_config(folder, config)
    write_summary(folder, {**{f"teacher_outputs/{name}": n for name, n in figures.items()}, **provenance(config)})
    if stored == wanted:
        log.info(
            "%s; train with teacher/cache=on teacher.cache.folder=%s teacher.cache.k=%d objective.temperature=1, and "
            "without teacher.model",
            cache.folder, cache.folder, cache.k,
        )  # fmt: skip
    elif tally.requested_wait:
        log.warning("the server asks to wait for %.0f s; the same command continues after that", tally.requested_wait)
    else:
        log.warning("the budget is used up; the same command continues from %s", cache.folder)
    return stored / max(wanted, 1)
