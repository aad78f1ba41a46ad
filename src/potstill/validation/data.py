"""Faults of the data: figures, shares, the files of a corpus."""

from __future__ import annotations

import re
from pathlib import Path

from omegaconf import DictConfig

from potstill.data.corpus.composition import ENGINES, RAY, sources_of
from potstill.errors import PotstillError
from potstill.validation.folders import writable
from potstill.validation.launch import missing_extra


def data_faults(
    data: DictConfig, *, evaluating: bool = False, eval_file: str | None = None, corpus: bool = True
) -> list[str]:
    """Of the data's figures, its cache, and (`corpus`) the files of a corpus."""
    faults = []
    for name, low in (
        ("batch_size", 1), ("eval_batch_size", 1), ("max_tokens", 1), ("group_size", 1), ("length_bin", 0),
        ("max_length", 8), ("min_length", 1), ("max_examples", 1), ("num_proc", 1), ("num_workers", 0),
        ("vocabulary_size", 100),
    ):  # fmt: skip
        value = data[name]
        if value is not None and value < low:
            faults.append(f"data.{name}={value}: must be {low} or more")
    for name in ("mlm_share", "max_unknown"):
        if not 0 < data[name] <= 1:
            faults.append(f"data.{name}={data[name]}: a share, above 0 and at most 1")
    if not 0 <= data.eval_share < 1:
        faults.append(f"data.eval_share={data.eval_share}: a share, from 0 to below 1")
    if data.mlm_smoothing < 0:
        faults.append(f"data.mlm_smoothing={data.mlm_smoothing}: must be 0 or more (0.7 in the recipe)")
    replace = list(data.mlm_replace)
    if len(replace) != 3 or min(replace) < 0 or abs(sum(replace) - 1) > 1e-6:
        faults.append(f"data.mlm_replace={replace}: three shares (mask, random, kept) that add up to 1")
    if data.unit not in ("line", "paragraph"):
        faults.append(f"data.unit={data.unit}: line or paragraph")
    if data.engine not in ENGINES:
        faults.append(f"data.engine={data.engine}: {' or '.join(ENGINES)}")
    elif data.engine == RAY and corpus:
        faults += missing_extra("data.engine=ray", "ray", "ray")
    if data.skip is not None:
        try:
            re.compile(data.skip)
        except re.error as fault:
            faults.append(f"data.skip={data.skip}: not a regular expression ({fault})")
    faults += _augment_faults(data.augment, corpus)
    if faults:
        return faults
    faults += writable("data.cache", Path(data.cache).expanduser())
    if not corpus:
        return faults
    try:
        parts = sources_of(data, eval_file=eval_file)
        wanted = [*parts.train, *parts.eval] if not evaluating else parts.eval or parts.train
        for source in wanted:
            source.check()
    except PotstillError as fault:
        faults.append(str(fault))
    return faults


def _augment_faults(augment: DictConfig, corpus: bool) -> list[str]:
    shares = ("share", "mask", "delete", "ngram", "disorder")
    faults = [
        f"data.augment.{name}={augment[name]}: a share, from 0 to 1"
        for name in shares
        if not 0 <= augment[name] <= 1
    ]
    for name in ("ngram_size", "disorder_distance"):
        if augment[name] < 1:
            faults.append(f"data.augment.{name}={augment[name]}: must be 1 or more")
    if corpus and augment.share:
        faults.append(
            f"data.augment.share={augment.share}: changes the training rows of a task; name one, benchmark=<task>"
        )
    elif augment.share and not any(augment[name] for name in shares[1:]):
        faults.append(
            f"data.augment.share={augment.share}: nothing is to change; give one of mask, delete, ngram, disorder"
        )
    return faults
