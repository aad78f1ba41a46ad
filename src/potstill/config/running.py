"""Keys of how a run goes: `trainer`, `schedule`, `checkpoint`, `logger`, `trial`, `generation`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from potstill.ranges import (
    COUNT,
    DAY,
    NODES,
    POSITIVE,
    REQUESTS,
    SECONDS,
    SHARE,
    SIZE,
    SOME,
    STEPS,
    STEPS_OR_NONE,
    Range,
    within,
)


@dataclass
class ScheduleConfig:
    """The learning rate over the steps, by name as `transformers.get_scheduler` knows it."""

    name: str = "linear"
    warmup_share: float = within(0.05, SHARE)
    warmup_steps: int | None = within(None, STEPS_OR_NONE)  # takes the place of warmup_share


@dataclass
class TrainerConfig:
    """Lightning's Trainer; `strategy=` options are deltas over this."""

    max_steps: int | None = within(-1, Range(0, 10**9, apart=-1))  # -1, null: no bound
    max_epochs: int | None = within(None, SIZE)  # conf/train.yaml: 3 where max_steps is no bound
    accumulate_grad_batches: int = within(1, SIZE)
    gradient_clip_val: float | None = within(None, POSITIVE)
    nonfinite: str = "stop"  # stop | skip: a step whose loss or gradient is no number
    # optimizer steps between validations; null: after each epoch
    val_check_interval: int | None = within(None, STEPS)
    limit_val_batches: int | None = within(None, STEPS)
    log_every_n_steps: int = within(10, STEPS)
    accelerator: str = "auto"
    devices: Any = 1
    num_nodes: int = within(1, NODES)
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
    number: int | None = within(None, STEPS_OR_NONE)
    pruner: dict[str, Any] = field(default_factory=_pruner)  # what ends a trial early; _target_=null: nothing


@dataclass
class CheckpointConfig:
    """When `checkpoints/last.ckpt` is written; it always is when training ends."""

    every_n_steps: int | None = within(1000, STEPS)


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
    # wandb: a student of up to so many MB becomes an artifact of its run; 0: none
    artifact_mb: float = within(100.0, Range(0, 1e9))


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
    shots: int | None = within(None, Range(0, 1000))  # demonstrations that are shown; null: all
    max_tokens: int = within(256, SIZE)
    temperature: float = within(0.0, Range(0, 100))
    top_p: float = within(1.0, SOME)
    samples: int = within(1, Range(1, 1000))  # answers to a row; the majority of their labels decides
    logprobs: bool = False  # keep log-probabilities of tokens in the journal
    drop_contradicting: bool = False  # leave rows empty whose label is not the row's own
    chunk_rows: int = within(1000, SIZE)  # rows of a file
    concurrency: int = within(8, REQUESTS)  # requests under way at a time
    timeout: float = within(120.0, Range(0, DAY, above=True))  # seconds, of a whole request
    retries: int = within(5, Range(0, 100))
    backoff_seconds: float = within(1.0, SECONDS)
    longest_wait_seconds: float = within(120.0, SECONDS)
    max_requests: int | None = within(None, COUNT)  # of this run; null: no limit
    max_total_tokens: int | None = within(None, COUNT)
    extra_body: dict[str, Any] = field(default_factory=dict)
    batch_size: int = within(8, SIZE)  # rows at a time, in this process
    device: str = "cpu"
    dtype: str = "float32"
