"""Faults of the data: figures, shares, the files of a corpus."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from potstill.data.common.text_files import skipping
from potstill.data.corpus.splits import ENGINES, RAY, sources_of
from potstill.errors import DataError, PotstillError
from potstill.runtime.ranges import MOST_PROCESSES
from potstill.validation.folders import writable
from potstill.validation.launch import missing_extra


def data_faults(
    data: DictConfig, *, evaluating: bool = False, eval_file: str | None = None, corpus: bool = True
) -> list[str]:
    """Of the data's processes, its cache, and (`corpus`) the files of a corpus."""
    faults = []
    if data.num_proc is not None and data.engine != RAY and data.num_proc > MOST_PROCESSES:
        faults.append(f"data.num_proc={data.num_proc}: at most {MOST_PROCESSES} processes on this machine")
    replace = list(data.mlm_replace)
    if len(replace) != 3 or abs(sum(replace) - 1) > 1e-6:
        faults.append(f"data.mlm_replace={replace}: three shares (mask, random, kept) that add up to 1")
    if data.unit not in ("line", "paragraph"):
        faults.append(f"data.unit={data.unit}: line or paragraph")
    if data.engine not in ENGINES:
        faults.append(f"data.engine={data.engine}: {' or '.join(ENGINES)}")
    elif data.engine == RAY and corpus:
        faults += missing_extra("data.engine=ray", "ray", "ray")
    if data.skip is not None:
        try:
            skipping(data.skip)
        except DataError as fault:
            faults.append(str(fault))
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
    if corpus and augment.share:
        return [
            f"data.augment.share={augment.share}: changes the training rows of a task; name one, benchmark=<task>"
        ]
    if augment.share and not any(augment[name] for name in ("mask", "delete", "ngram", "disorder")):
        return [
            f"data.augment.share={augment.share}: nothing is to change; give one of mask, delete, ngram, disorder"
        ]
    return []
