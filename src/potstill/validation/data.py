"""Problems of the data: their kind, processes, cache, and the files of a corpus."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from potstill.config import OPTIONS, options_of
from potstill.config.data import (
    ConversationsDataConfig,
    CorpusDataConfig,
    DataConfig,
    PairsDataConfig,
    SequenceDataConfig,
    TaskDataConfig,
    TextDataConfig,
)
from potstill.data.common.records import check_file, suffix_of
from potstill.data.common.text_files import skipping
from potstill.data.corpus.pickled import COUNTS_BYTES, check_pickle
from potstill.data.corpus.splits import ENGINES, RAY, pair_sources, row_sources, sources_of
from potstill.data.corpus.text_rows import WANTED, Columns, RowFile, read_rows
from potstill.errors import DataError, PotstillError
from potstill.runtime.ranges import MOST_PROCESSES
from potstill.runtime.small_files import not_a_file
from potstill.validation.folders import writable
from potstill.validation.launch import missing_extra

CHECKED = 1000  # rows of a file that are read before a run


def kind_problems(data: DataConfig, wanted: type[DataConfig] | tuple[type[DataConfig], ...], reader: str) -> list[str]:
    """The problem of data of another kind than is read.

    Args:
        data: the options of `data`.
        wanted: the kind, or kinds, that are read.
        reader: key and value that read it.
    """
    if isinstance(data, wanted):
        return []
    known = options_of("data", [name for name, own in OPTIONS["data"].items() if issubclass(own, wanted)])
    return [f"data={data.name}: is read by {data.read_by}; {reader} reads data={', '.join(known)}"]


def cache_folder_problems(data: DataConfig) -> list[str]:
    """Problems of `data.cache`."""
    return writable("data.cache", Path(data.cache).expanduser())


def text_problems(data: TextDataConfig, *, evaluating: bool = False, eval_file: str | None = None) -> list[str]:
    """Problems of the texts of a language model: how they are read, and their files."""
    if isinstance(data, CorpusDataConfig):
        return _corpus_problems(data, evaluating=evaluating, eval_file=eval_file)
    assert isinstance(data, ConversationsDataConfig)
    return _conversation_problems(data, evaluating=evaluating, eval_file=eval_file)


def pair_problems(data: PairsDataConfig, columns: Columns) -> list[str]:
    """Problems of rows of several texts: of their keys, and of the first rows of their files."""
    if problems := [*_skip_problems(data), *cache_folder_problems(data)]:
        return problems
    if not data.train_files and not data.train:
        return ["data.train_files=null: give files, data.train_files=[a.jsonl], or data.train=[{hub: <name>}]"]
    try:
        for part in ("train", "eval"):
            for source in pair_sources(data, part):
                if isinstance(source, RowFile):
                    if suffix_of(source.path) != ".parquet":
                        check_file(source.path, source.key, WANTED)
                    deque(read_rows(source, columns, CHECKED), 0)
                else:
                    source.check(columns)
    except PotstillError as error:
        problems.append(str(error))
    return problems


def _conversation_problems(data: ConversationsDataConfig, *, evaluating: bool, eval_file: str | None) -> list[str]:
    problems = cache_folder_problems(data)
    train, evaluation = (bool(data[f"{part}_files"] or data[part]) for part in ("train", "eval"))
    if not evaluating and not train:
        problems.append("data.train_files=null: give files, data.train_files=[a.jsonl], or data.train=[{hub: <name>}]")
    if evaluating and not (eval_file or evaluation or train):
        problems.append("data.eval_files=null: give files, data.eval_files=[b.jsonl], or data.eval=[{hub: <name>}]")
    for key, files in (("train_files", data.train_files), ("eval_files", data.eval_files)):
        for file in files or []:
            path = Path(file).expanduser()
            if not path.is_file():
                problems.append(f"data.{key}: '{file}' {not_a_file(path)}; JSON lines, a JSON list or Parquet")
    if data.chat_template and "{" not in data.chat_template:
        path = Path(data.chat_template).expanduser()
        if not path.is_file():
            problems.append(f"data.chat_template={data.chat_template}: {not_a_file(path)}; a Jinja template or a file")
    try:
        for part in ("train", "eval"):
            for source in [] if data[f"{part}_files"] else row_sources(data, part):
                source.features()
    except PotstillError as error:
        problems.append(str(error))
    return problems


def _corpus_problems(data: CorpusDataConfig, *, evaluating: bool, eval_file: str | None) -> list[str]:
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
