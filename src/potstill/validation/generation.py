"""Problems of the stages that ask a language model: for rationales of rows, or for its outputs on a corpus."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.config import TrainConfig
from potstill.config.data import CorpusDataConfig, SetDataConfig, data_of
from potstill.config.running import GenerationConfig
from potstill.data.common.text_files import file_problem
from potstill.data.rationales.sets import SETS
from potstill.errors import ConfigError, PotstillError
from potstill.rationale_generation.prompts import load_prompts
from potstill.rationale_generation.settings import EndpointSettings, LocalSettings, Sampling
from potstill.validation.cache import PRECISIONS
from potstill.validation.data import kind_problems, text_problems
from potstill.validation.folders import writable

RATIONALES, OUTPUTS = REPEATED = ("rationales", "teacher_outputs")  # the same command continues them
STAGES = ("train", *REPEATED)


def generation_problems(config: TrainConfig) -> list[str]:
    """Problems of a stage that asks a language model."""
    if config.stage not in STAGES:
        return [f"stage={config.stage}: one of {', '.join(STAGES)}"]
    if problems := kind_problems(config.data, SetDataConfig, f"stage={config.stage}"):
        return problems
    data, settings = data_of(config, SetDataConfig), config.generation
    problems = _row_problems(config, data)
    if settings.model is None:
        problems.append(
            "generation.model=null: name the endpoint's model with generation.url=<its address>, or a folder or hub id"
        )
    if settings.form not in ("chat", "completion"):
        problems.append(f"generation.form={settings.form}: chat or completion")
    try:
        sampling_of(config)
        if settings.model is not None:
            backend_of(settings)
        load_prompts(task_of(data), settings.prompts, settings.shots)
    except PotstillError as error:
        problems.append(str(error))
    return problems


def served_problems(config: TrainConfig, needed: Mapping[str, tuple[Any, str]], server: str) -> list[str]:
    """Problems of a run that stores what a server computes for the texts of a corpus.

    Args:
        config: of the run.
        needed: values that must not be null, and what each is, by key.
        server: a kind of server, for the message.
    """
    given = f"stage={config.stage}"
    if problems := kind_problems(config.data, CorpusDataConfig, given):
        return problems
    folder, settings = config.teacher.cache.folder, config.generation
    problems = text_problems(data_of(config, CorpusDataConfig))
    all_needed = {
        **needed,
        "teacher.cache.folder": (folder, "the folder that training will read"),
        "generation.url": (settings.url, f"{server}, http://localhost:8000/v1"),
        "generation.model": (settings.model, "the server's name of the model"),
    }
    problems += [f"{key}=null: {given} needs {what}" for key, (value, what) in all_needed.items() if value is None]
    if folder is not None:
        problems += writable("teacher.cache.folder", Path(folder).expanduser())
    if settings.url is not None and settings.model is not None:
        try:
            backend_of(settings)
        except PotstillError as error:
            problems.append(str(error))
    return problems


def served_token_problems(config: TrainConfig) -> list[str]:
    """Problems of a run that stores the likeliest tokens of a server."""
    data, cache = config.data, config.teacher.cache
    needed = {
        "data.tokenizer": (data.tokenizer, "the tokenizer of the server's model, a folder or hub id"),
        "data.max_length": (getattr(data, "max_length", None), "the longest sequence, the same as in training"),
    }
    problems = served_problems(config, needed, "a server of vLLM")
    if cache.form != "top":
        problems.append(f"teacher.cache.form={cache.form}: a server returns the likeliest tokens; use top")
    elif cache.precision not in PRECISIONS["top"]:
        problems.append(f"teacher.cache.precision={cache.precision}: one of {', '.join(PRECISIONS['top'])}")
    if cache.temperatures not in (None, [1.0]):
        problems.append(
            f"teacher.cache.temperatures={list(cache.temperatures or ())}: the likeliest tokens do not give the mass "
            "of the others at another temperature than 1; use null, and objective.temperature=1 in training"
        )
    return problems


def target_of(config: TrainConfig) -> Path:
    """The folder whose `llm/` is written: `generation.folder`, else the one of the rows."""
    if config.generation.folder is not None:
        return Path(config.generation.folder).expanduser()
    data = data_of(config, SetDataConfig)
    if data.train_files:
        return Path(data.train_files[0]).expanduser().parent
    return Path(str(data.folder)).expanduser() / str(data.set)


def own_rows_file(target: Path, split: str) -> Path:
    """Where rows of the user's own are written with their answers."""
    return target / "llm" / f"{split}.jsonl"


def sampling_of(config: TrainConfig) -> Sampling:
    """How answers are drawn.

    Raises:
        ConfigError: an invalid value.
    """
    settings = config.generation
    names = ("max_tokens", "temperature", "top_p", "samples", "logprobs")
    return Sampling(**{name: getattr(settings, name) for name in names}, seed=config.seed)


def backend_of(settings: GenerationConfig) -> EndpointSettings | LocalSettings:
    """Where the model is.

    Raises:
        ConfigError: an invalid value.
    """
    if settings.url is None:
        for name in ("max_requests", "max_total_tokens"):
            if (value := getattr(settings, name)) is not None:
                raise ConfigError(
                    f"generation.{name}={value}: is the budget of an endpoint, and generation.url is null; a "
                    "model in this process is limited by data.max_examples=<rows>"
                )
        return LocalSettings(str(settings.model), settings.batch_size, settings.device, settings.dtype)
    names = (
        "url", "model", "key_variable", "concurrency", "timeout", "retries", "backoff_seconds",
        "longest_wait_seconds", "max_requests", "max_total_tokens",
    )  # fmt: skip
    return EndpointSettings(**{name: getattr(settings, name) for name in names}, extra_body=settings.extra_body)


def task_of(data: SetDataConfig) -> str:
    """Whose prompts are used; ASDiv's problems are put as SVAMP's are."""
    return "svamp" if data.set == "asdiv" else data.set or data.name


def _row_problems(config: TrainConfig, data: SetDataConfig) -> list[str]:
    settings = config.generation
    if data.set is None or data.train_files:
        if not data.train_files:
            return [
                "data.set=null: there are no rows to explain; data=svamp data.folder=<folder>, or your own by "
                "data=rationales data.train_files=[a.jsonl] generation.prompts=<file>"
            ]
        problems = [
            f"data.train_files: '{file}' {error}; give JSON lines, JSON or CSV, plain or gzip"
            for file in data.train_files
            if (error := file_problem(Path(file).expanduser()))
        ]
        if len(data.train_files) > 1:
            problems.append(f"data.train_files={list(data.train_files)}: one file is explained at a time")
        return problems or _overwritten(config, data.train_files[0])
    if data.set not in SETS:
        return [f"data.set={data.set}: one of {', '.join(SETS)}"]
    if settings.split not in SETS[data.set].splits:
        stored = ", ".join(SETS[data.set].splits)
        return [f"generation.split={settings.split}: {data.set} is stored as {stored}"]
    if data.folder is None or not Path(data.folder).expanduser().is_dir():
        return [f"data.folder={data.folder or 'null'}: give the folder that holds the sets' folders"]
    return []


def _overwritten(config: TrainConfig, file: str) -> list[str]:
    """A file that would be replaced, and that no earlier run has made."""
    split = config.generation.split
    path = own_rows_file(target_of(config), split)
    if not path.exists():
        return []
    rows = Path(file).expanduser()
    if path.samefile(rows) or not path.with_name(f"{split}_journal.jsonl").exists():
        return [f"generation.folder: '{path}' is there and would be replaced; give another generation.folder"]
    return []
