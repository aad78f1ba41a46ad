"""Keys of how a run goes: `trainer`, `schedule`, `checkpoint`, `logger`, `trial`, `generation`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from potstill.runtime.ranges import (
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
    Section,
    Unless,
    When,
    option,
    within,
)

ALL = "all"  # checkpoints are kept


@dataclass
class ScheduleConfig(Section):
    """The learning rate over the steps, by name as `transformers.get_scheduler` knows it."""

    name: str = option("linear", "name in `transformers.get_scheduler`")
    warmup_share: float = within(0.05, SHARE, "share of the steps that warm up", When("warmup_steps", None))
    warmup_steps: int | None = within(
        None, STEPS_OR_NONE, "warm-up steps; replace the share", Unless("name", "constant")
    )
    end_share: float = within(
        0.0, SHARE, "share of the learning rate that is left at the end", When("name", "linear", "cosine")
    )


@dataclass
class TrainerConfig(Section):
    """Lightning's Trainer; `strategy=` options are deltas over this."""

    max_steps: int | None = within(
        -1, Range(0, 10**9, apart=-1), "optimizer steps; -1 or null: no limit; 0: write the untrained student"
    )
    max_epochs: int | None = within(
        None,
        SIZE,
        "epochs; null: no limit; by default 3, or null if `max_steps` is given. If only one of steps and "
        "epochs is given, it decides alone, else the one "
        "that is reached first",
    )
    accumulate_grad_batches: int = within(1, SIZE, "micro-batches of an optimizer step")
    gradient_clip_val: float | None = within(
        None, POSITIVE, "largest norm of the gradient; null: no clipping; by default 5.0, or 1.0 to fine-tune"
    )
    nonfinite: str = option(
        "stop",
        "a step whose loss or gradient is not finite: `stop` ends the run; `skip` leaves the step out, "
        "logs it and counts it (`train/skipped_steps`), up to 20 in a row",
    )
    val_check_interval: int | None = within(None, STEPS, "optimizer steps between validations; null: after each epoch")
    limit_val_batches: int | None = within(None, STEPS, "most batches of a validation")
    log_every_n_steps: int = within(10, STEPS, "steps between rows of metrics.csv")
    accelerator: str = option("auto", "as Lightning's")
    devices: Any = option(1, "as Lightning's")
    num_nodes: int = within(1, NODES, "as Lightning's")
    strategy: str = option(
        "auto",
        "as Lightning's; also `fsdp` (ZeRO 3), `fsdp_gradients` (ZeRO 2), `deepspeed_stage_2`, "
        "`deepspeed_stage_3`, `ray`",
    )
    precision: str = option(
        "32-true", "`32-true` `bf16-mixed` `16-mixed` (float16 with loss scaling, GPU only) `bf16-true` `64-true`"
    )
    enable_progress_bar: bool = option(True, "show a progress bar")
    extra: dict[str, Any] = option({}, "any other argument of `lightning.Trainer`, `+trainer.extra.name=value`")


@dataclass
class TrialConfig(Section):
    """Options of a trial of a search (`hydra/sweeper=optuna`), which sets the first two."""

    journal: str | None = option(None, "journal of the search; set by `hydra/sweeper=optuna` in its jobs")
    number: int | None = within(None, STEPS_OR_NONE, "number of the trial; set by `hydra/sweeper=optuna`")
    pruner: dict[str, Any] = option(
        {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 5},
        "what stops a trial of a search early, `_target_` and its arguments; `trial.pruner._target_=null`: nothing",
    )


@dataclass
class CheckpointConfig(Section):
    """When `checkpoints/last.ckpt` is written; it always is when training ends."""

    every_n_steps: int | None = within(
        1000, STEPS, "steps between writes of `checkpoints/last.ckpt`; null: only at the end, or by `every_n_epochs`"
    )
    every_n_epochs: float | None = within(
        None, Range(0, 10**6, above=True), "epochs between writes, 0.25 for four in each epoch; beside `every_n_steps`"
    )
    keep: Any = option(
        None,
        "how many of the newest checkpoints are kept, or `all`: each is a folder `checkpoints/step_<n>` with "
        "`last.ckpt` and `student/`; null: `last.ckpt` alone",
    )


@dataclass
class LoggerConfig(Section):
    """Where metrics go besides metrics.csv, which is always written."""

    name: str = option(MISSING, "`wandb` `csv` `tensorboard`; metrics.csv is always written")
    entity: str | None = option(
        None, "wandb user or team that has the project; null: the default of the account", When("name", "wandb")
    )
    project: str = option("potstill", "wandb project", When("name", "wandb"))
    run: str | None = option(None, "name of the run; null: the folder's name")
    group: str | None = option(
        None, "group of the run; null: the folder of the sweep, in a sweep", When("name", "wandb")
    )
    tags: list[str] = option([], "tags of the run")
    mode: str | None = option(
        None, "wandb: `online` `offline` `disabled`; null: online if a key is set, else offline", When("name", "wandb")
    )
    parameters_every: int | None = within(
        None,
        STEPS,
        "optimizer steps between logs of the mean and standard deviation of each weight and its clipped gradient, to "
        "wandb or tensorboard; null: never",
        Unless("name", "csv"),
    )
    artifact_mb: float = within(
        100.0,
        Range(0, 1e9),
        "students up to this many MB are logged as an artifact of the wandb run, with their teachers as "
        "inputs; 0: none",
        When("name", "wandb"),
    )


@dataclass
class GenerationConfig(Section):
    """Options of `stage=rationales`: the language model, its prompts, and the answers that are kept.

    Of `stage=teacher_outputs`: the server, and how it is asked.
    """

    model: str | None = option(
        None, "the endpoint's name of the model; without `generation.url` a folder or hub id that runs here"
    )
    url: str | None = option(
        None,
        "an OpenAI-compatible endpoint (vLLM, llama.cpp, Ollama, hosted), `http://localhost:8000/v1`; "
        "null: in this process",
    )
    key_variable: str = option(
        "OPENAI_API_KEY", "environment variable with the API key, which is never logged or written"
    )
    split: str = option("train", "part to generate for")
    folder: str | None = option(None, "folder that receives `llm/`; null: the folder of the set or of your file")
    form: str = option("chat", "`chat` (messages) or `completion` (one text)")
    prompts: str | None = option(None, "prompts of your own (YAML, as in `rationale_generation/demonstrations`)")
    shots: int | None = within(None, Range(0, 1000), "demonstrations in a prompt; null: all")
    max_tokens: int = within(
        256,
        SIZE,
        "tokens of an answer. Thoughts of a reasoning model (`<think>`) are removed but count; an answer "
        "cut off here is not used, and counted as `generation/not_understood_<reason>` in summary.json",
    )
    temperature: float = within(0.0, Range(0, 100), "sampling temperature")
    top_p: float = within(1.0, SOME, "nucleus sampling")
    samples: int = within(1, Range(1, 1000), "answers per row; the majority of their labels decides")
    logprobs: bool = option(
        False,
        "write log-probabilities of tokens and their alternatives to the journal; for rows with choices "
        "also the probability of each choice, to `llm/<split>_labels.json`, a list of objects and nulls",
    )
    drop_contradicting: bool = option(False, "leave rows empty whose label is not the row's own")
    chunk_rows: int = within(1000, SIZE, "rows per file")
    concurrency: int = within(8, REQUESTS, "concurrent requests")
    timeout: float = within(120.0, Range(0, DAY, above=True), "seconds for a whole request")
    retries: int = within(5, Range(0, 100), "repetitions of a failed request")
    backoff_seconds: float = within(1.0, SECONDS, "wait before the first repetition")
    longest_wait_seconds: float = within(
        120.0,
        SECONDS,
        "an endpoint that asks for a longer wait, or fails for ten rows in a row, ends the run; the same "
        "command continues later",
    )
    max_requests: int | None = within(None, COUNT, "request budget of this run; null: no limit")
    max_total_tokens: int | None = within(None, COUNT, "token budget of this run; null: no limit")
    extra_body: dict[str, Any] = option(
        {},
        "more fields of a request, `+generation.extra_body.top_k=40`; lists and dictionaries are sent as "
        "JSON. `model`, `messages`, `prompt`, `input`, `stream` and `n` have keys of their own",
    )
    batch_size: int = within(8, SIZE, "rows per batch of a model that runs here; texts per request for vectors")
    device: str = option("cpu", "its device")
    dtype: str = option("float32", "its type")
