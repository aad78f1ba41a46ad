"""Completions that a teacher writes once, before training, stored in parts that survive a killed process."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from transformers import PreTrainedModel

from potstill.config import TrainConfig
from potstill.data.common.progress import counting
from potstill.data.common.ragged import starts_of
from potstill.data.common.store import canonical
from potstill.data.conversations.encoding import ConversationCorpus
from potstill.errors import CacheError
from potstill.methods.common.teacher_cache import place_of
from potstill.models.backbone import Backbone
from potstill.models.generation import Sampling, Tokens, complete
from potstill.runtime.atomic import replacing, writing
from potstill.teacher_cache.computing import computing
from potstill.teacher_cache.digests import arrays_digest, teacher_digests

log = logging.getLogger(__name__)

PART = 256  # completions of a file
_STREAM = 2  # random numbers of a row
_VERSION = 1


def completed_by(
    config: TrainConfig,
    teacher: PreTrainedModel,
    corpus: ConversationCorpus,
    sampling: Sampling,
    tokens: Tokens,
    tokenizer: str,
    max_length: int,
) -> ConversationCorpus:
    """A corpus with the teacher's completions in the place of the given ones.

    They are written into `completions/<key>/` of the cache, where a killed run and a second one find them; several
    processes share the work. The key is of the teacher's weights, prompts, tokenizer, sampling and seed.

    Source: Kim & Rush 2016 (arXiv:1606.07947), section 3.2, with sampled in the place of the likeliest sequences.

    Args:
        config: of the run.
        teacher: with its head.
        corpus: whose last turns are written.
        sampling: how tokens are chosen.
        tokens: what they are chosen from.
        tokenizer: digest of the tokenizer.
        max_length: most tokens of a prompt with its completion.

    Raises:
        WriteError: the cache cannot be written.
        CacheError: a stored part is damaged.
    """
    numbers = np.flatnonzero(corpus.prompts > 0)
    numbers = numbers[np.argsort(corpus.prompts[numbers], kind="stable")]
    prompts = {"ids": np.concatenate([corpus.prompt(n) for n in numbers.tolist()]), "lengths": corpus.prompts[numbers]}
    identity = {
        "version": _VERSION,
        "teacher": teacher_digests(teacher.state_dict(), teacher.config.to_dict()),
        "prompts": arrays_digest(prompts | {"numbers": numbers}),
        "tokenizer": tokenizer,
        "sampling": {name: value for name, value in asdict(sampling).items() if name != "batch_size"},
        "ends": sorted(tokens.ends),
        "max_length": max_length,
        "seed": config.seed,
        "precision": config.trainer.precision,
    }
    folder = Path(config.data.cache).expanduser() / "completions" / hashlib.sha256(canonical(identity)).hexdigest()[:32]
    parts = {folder / f"{start:09d}.npz": numbers[start : start + PART] for start in range(0, len(numbers), PART)}

    def write(backbone: Backbone, wanted: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        seeds = [[config.seed, _STREAM, number] for number in wanted.tolist()]
        return complete(
            backbone, [corpus.prompt(n) for n in wanted.tolist()], sampling, tokens, seeds=seeds, max_length=max_length
        )

    if missing := {path: own for path, own in parts.items() if not path.is_file()}:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        what = f"the teacher writes {sum(map(len, missing.values())):,} completions"
        log.info("%s into %s", what, folder)
        with (
            counting(what) as progress,
            computing(teacher, config.trainer.precision, place_of(config).device) as backbone,
        ):
            _write_parts(missing, lambda wanted: write(backbone, wanted), progress)
    log.info("the teacher's completions are read from %s", folder)
    found = {number: ids for path, own in parts.items() for number, ids in zip(own.tolist(), _read(path), strict=True)}
    return corpus.with_completions({number: ids for number, ids in found.items() if len(ids)})


def _write_parts(
    parts: dict[Path, NDArray[np.int64]],
    write: Callable[[NDArray[np.int64]], list[NDArray[np.int64]]],
    progress: Callable[[int], None],
) -> None:
    """Write the parts that no other process writes, then wait for the others."""
    done = 0
    for timeout in (0, -1):
        for path, wanted in parts.items():
            for _ in _claimed(path, timeout):
                _store(path, write(wanted))
                done += len(wanted)
                progress(done)


def _claimed(path: Path, timeout: float) -> Iterator[None]:
    """Once with the lock of a file that does not exist yet; nothing if it does, or another process has the lock."""
    if path.is_file():
        return
    try:
        with FileLock(path.with_suffix(".lock"), timeout=timeout):
            if not path.is_file():
                yield
    except Timeout:
        return


def _store(path: Path, completions: list[NDArray[np.int64]]) -> None:
    lengths = np.array([len(ids) for ids in completions], np.int32)
    with replacing(path) as fresh, fresh.open("wb") as file:
        np.savez(file, ids=np.concatenate(completions).astype(np.int32), lengths=lengths)


def _read(path: Path) -> list[NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as stored:  # zip files carry checksums
            ids, lengths = stored["ids"], stored["lengths"]
    except (OSError, ValueError, KeyError, BadZipFile, EOFError) as error:
        raise CacheError(
            f"the completions '{path}' cannot be used: {error}; delete the file to write it again"
        ) from error
    return np.split(ids, starts_of(lengths)[1:])
