"""Problems of the data: their kind, processes, cache, and the files of a corpus."""

from __future__ import annotations

from pathlib import Path

from potstill.config import OPTIONS, options_of
from potstill.config.data import CorpusDataConfig, DataConfig, SequenceDataConfig, TaskDataConfig
from potstill.data.common.text_files import skipping
from potstill.data.corpus.pickled import COUNTS_BYTES, check_pickle
from potstill.data.corpus.splits import ENGINES, RAY, sources_of
from potstill.errors import DataError, PotstillError
from potstill.runtime.ranges import MOST_PROCESSES
from potstill.validation.folders import writable
from potstill.validation.launch import missing_extra


def kind_problems(data: DataConfig, wanted: type[DataConfig], reader: str) -> list[str]:
    """The problem of data of another kind than is read.

    Args:
        data: the options of `data`.
        wanted: the kind that is read.
        reader: key and value that read it.
    """
    if isinstance(data, wanted):
        return []
    known = options_of("data", [name for name, own in OPTIONS["data"].items() if issubclass(own, wanted)])
    return [f"data={data.name}: is read by {data.read_by}; {reader} reads data={', '.join(known)}"]


def cache_folder_problems(data: DataConfig) -> list[str]:
    """Problems of `data.cache`."""
    return writable("data.cache", Path(data.cache).expanduser())


def corpus_problems(data: CorpusDataConfig, *, evaluating: bool = False, eval_file: str | None = None) -> list[str]:
    """Problems of a corpus: how it is read and masked, and its files."""
    problems = _skip_problems(data)
    if data.num_proc is not None and data.engine != RAY and data.num_proc > MOST_PROCESSES:
        problems.append(f"data.num_proc={data.num_proc}: at most {MOST_PROCESSES} processes on this machine")
    replace = list(data.mlm_replace)
    if len(replace) != 3 or abs(sum(replace) - 1) > 1e-6:
        problems.append(f"data.mlm_replace={replace}: three shares (mask, random, kept) that add up to 1")
    if data.engine not in ENGINES:
        problems.append(f"data.engine={data.engine}: {' or '.join(ENGINES)}")
    elif data.engine == RAY:
        problems += missing_extra("data.engine=ray", "ray", "ray")
    if problems:
        return problems
    problems = cache_folder_problems(data)
    try:
        parts = sources_of(data, eval_file=eval_file)
        wanted = [*parts.train, *parts.eval] if not evaluating else parts.eval or parts.train
        for source in wanted:
            source.check()
        if data.token_counts is not None:
            check_pickle(Path(data.token_counts).expanduser(), "data.token_counts", COUNTS_BYTES)
    except PotstillError as error:
        problems.append(str(error))
    return problems


def task_data_problems(data: TaskDataConfig) -> list[str]:
    """Problems of how the rows of a task are read and changed."""
    problems, augment = _skip_problems(data), data.augment
    if augment.share and not any(augment[name] for name in ("mask", "delete", "ngram", "disorder")):
        problems.append(
            f"data.augment.share={augment.share}: nothing is to change; give one of mask, delete, ngram, disorder"
        )
    return problems or cache_folder_problems(data)


def _skip_problems(data: SequenceDataConfig) -> list[str]:
    if data.skip is not None:
        try:
            skipping(data.skip)
        except DataError as error:
            return [str(error)]
    return []
