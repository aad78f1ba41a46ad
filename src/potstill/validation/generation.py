"""Faults of stage=rationales: the language model, how it is asked, and the rows that it explains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from potstill.data.common.text_files import fault_of
from potstill.data.rationales.sets import SETS
from potstill.errors import ConfigError, PotstillError
from potstill.rationale_generation.prompts import load_prompts
from potstill.rationale_generation.settings import EndpointSettings, LocalSettings, Sampling

STAGES = ("train", "rationales")


def generation_faults(config: DictConfig) -> list[str]:
    """Of a run that has a language model write rationales."""
    if config.stage not in STAGES:
        return [f"stage={config.stage}: one of {', '.join(STAGES)}"]
    faults, settings = _row_faults(config), config.generation
    if settings.model is None:
        faults.append(
            "generation.model=null: name the endpoint's model with generation.url=<its address>, or a folder or hub id"
        )
    if settings.form not in ("chat", "completion"):
        faults.append(f"generation.form={settings.form}: chat or completion")
    try:
        sampling_of(config)
        if settings.model is not None:
            backend_of(settings)
        load_prompts(task_of(config.data), settings.prompts, settings.shots)
    except PotstillError as fault:
        faults.append(str(fault))
    return faults


def target_of(config: DictConfig) -> Path:
    """The folder whose `llm/` is written: `generation.folder`, else the one of the rows."""
    if config.generation.folder is not None:
        return Path(config.generation.folder).expanduser()
    if config.data.train_files:
        return Path(config.data.train_files[0]).expanduser().parent
    return Path(config.data.folder).expanduser() / config.data.set


def own_rows_file(target: Path, split: str) -> Path:
    """Where rows of the user's own are written with their answers."""
    return target / "llm" / f"{split}.jsonl"


def sampling_of(config: DictConfig) -> Sampling:
    """How answers are drawn.

    Raises:
        ConfigError: a value that cannot be.
    """
    settings = config.generation
    names = ("max_tokens", "temperature", "top_p", "samples", "logprobs")
    return Sampling(**{name: settings[name] for name in names}, seed=config.seed)


def backend_of(settings: DictConfig) -> EndpointSettings | LocalSettings:
    """Where the model is.

    Raises:
        ConfigError: a value that cannot be.
    """
    if settings.url is None:
        for name in ("max_requests", "max_total_tokens"):
            if settings[name] is not None:
                raise ConfigError(
                    f"generation.{name}={settings[name]}: is the budget of an endpoint, and generation.url is null; a "
                    "model in this process is asked for data.max_examples=<rows>"
                )
        return LocalSettings(settings.model, settings.batch_size, settings.device, settings.dtype)
    names = (
        "url", "model", "key_variable", "concurrency", "timeout", "retries", "backoff_seconds",
        "longest_wait_seconds", "max_requests", "max_total_tokens",
    )  # fmt: skip
    extra: Any = OmegaConf.to_container(settings.extra_body, resolve=True)
    return EndpointSettings(**{name: settings[name] for name in names}, extra_body=extra)


def task_of(data: DictConfig) -> str:
    """Whose prompts are used; ASDiv's problems are put as SVAMP's are."""
    return {"asdiv": "svamp"}.get(data.set, data.set) or str(data.name)


def _row_faults(config: DictConfig) -> list[str]:
    data, settings = config.data, config.generation
    if data.set is None or data.train_files:
        if not data.train_files:
            return [
                "data.set=null: there are no rows to explain; data=svamp data.folder=<folder>, or your own by "
                "data=rationales data.train_files=[a.jsonl] generation.prompts=<file>"
            ]
        faults = [
            f"data.train_files: '{file}' {fault}; give JSON lines, JSON or CSV, plain or gzip"
            for file in data.train_files
            if (fault := fault_of(Path(file).expanduser()))
        ]
        if len(data.train_files) > 1:
            faults.append(f"data.train_files={list(data.train_files)}: one file is explained at a time")
        return faults or _overwritten(config)
    if data.set not in SETS:
        return [f"data.set={data.set}: one of {', '.join(SETS)}"]
    if settings.split not in SETS[data.set].splits:
        stored = ", ".join(SETS[data.set].splits)
        return [f"generation.split={settings.split}: {data.set} is stored as {stored}"]
    if data.folder is None or not Path(data.folder).expanduser().is_dir():
        return [f"data.folder={data.folder or 'null'}: give the folder that holds the sets' folders"]
    return []


def _overwritten(config: DictConfig) -> list[str]:
    """A file that would be replaced, and that no earlier run has made."""
    split = config.generation.split
    path = own_rows_file(target_of(config), split)
    if not path.exists():
        return []
    rows = Path(config.data.train_files[0]).expanduser()
    if path.samefile(rows) or not path.with_name(f"{split}_journal.jsonl").exists():
        return [f"generation.folder: '{path}' is there and would be replaced; give another generation.folder"]
    return []
