"""Keys of how a run goes: `trainer`, `schedule`, `checkpoint`, `logger`, `trial`, `generation`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class ScheduleConfig:
    """The learning rate over the steps, by name as `transformers.get_scheduler` knows it."""

    name: str = "linear"
    warmup_share: float = 0.05
    warmup_steps: int | None = None  # takes the place of warmup_share


@dataclass
class TrainerConfig:
    """Lightning's Trainer; `strategy=` options are deltas over this."""

    max_steps: int = -1
    max_epochs: int | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    nonfinite: str = "stop"  # stop | skip: a step whose loss or gradient is no number
    val_check_interval: int | None = None  # optimizer steps between validations; null: after each epoch
    limit_val_batches: int | None = None
    log_every_n_steps: int = 10
    accelerator: str = "auto"
    devices: Any = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    enable_progress_bar: bool = True
    extra: dict[str, Any] = field(default_factory=dict)  # any other argument of lightning.Trainer


def _pruner() -> dict[str, Any]:
    return {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 5}


@dataclass
class TrialConfig:
    """Of a job of a search (`hydra/sweeper=optuna`), which sets the first two."""

    journal: str | None = None
    number: int | None = None
    pruner: dict[str, Any] = field(default_factory=_pruner)  # what ends a trial early; _target_=null: nothing


@dataclass
class CheckpointConfig:
    """When `checkpoints/last.ckpt` is written; it always is when training ends."""

    every_n_steps: int | None = 1000


@dataclass
class LoggerConfig:
    """Where metrics go besides metrics.csv, which is always written."""

    name: str = MISSING  # wandb | tensorboard | csv
    project: str = "potstill"
    run: str | None = None
    group: str | None = None  # null: the sweep's folder, in a sweep
    tags: list[str] = field(default_factory=list)
    mode: str | None = (
        None  # wandb: online | offline | disabled; null: online where a key is set, else offline
    )
    artifact_mb: float = 100.0  # wandb: a student of up to so many MB becomes an artifact of its run; 0: none


@dataclass
class GenerationConfig:
    """Of stage=rationales: which language model explains the rows of a set, how it is asked, what is kept."""

    model: str | None = None  # the endpoint's name of a model; without a url a folder or hub id
    url: str | None = (
        None  # of an OpenAI-compatible endpoint: http://localhost:8000/v1; null: in this process
    )
    key_variable: str = "OPENAI_API_KEY"  # environment variable with the API key
    split: str = "train"  # which part is asked for; begins the files' names
    folder: str | None = None  # gets llm/<split>_CoT_<i>.json; null: the set's own folder
    form: str = "chat"  # chat | completion
    prompts: str | None = None  # a file in place of the package's own
    shots: int | None = None  # demonstrations that are shown; null: all
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1  # answers to a row; the majority of their labels decides
    logprobs: bool = False  # keep log-probabilities of tokens in the journal
    drop_contradicting: bool = False  # leave rows empty whose label is not the row's own
    chunk_rows: int = 1000  # rows of a file
    concurrency: int = 8  # requests under way at a time
    timeout: float = 120.0  # seconds, of a whole request
    retries: int = 5
    backoff_seconds: float = 1.0
    longest_wait_seconds: float = 120.0
    max_requests: int | None = None  # of this run; null: no limit
    max_total_tokens: int | None = None
    extra_body: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 8  # rows at a time, in this process
    device: str = "cpu"
    dtype: str = "float32"
