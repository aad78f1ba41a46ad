"""Errors of the machine during a run, as one line with the keys to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from potstill.config import EvaluateConfig, TrainConfig
from potstill.errors import TrainingError

# Messages of torch when a data loader process was killed, and of gloo when another rank was.
_LOST_READER = "DataLoader worker (pid"
_LOST_RANK = ("Connection closed by peer", "Connection reset by peer")


@contextmanager
def as_user_errors(config: TrainConfig | EvaluateConfig) -> Iterator[None]:
    """Turn errors of the machine into user errors; other errors pass.

    Args:
        config: of `train.py`, or of `evaluate.py`.

    Raises:
        TrainingError: out of memory, or another process of the run was lost.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(_out_of_memory(config)) from error
    except RuntimeError as error:
        if (line := _lost_process(config, error)) is None:
            raise
        raise TrainingError(line) from error


def _out_of_memory(config: TrainConfig | EvaluateConfig) -> str:
    if isinstance(config, EvaluateConfig):
        size = config.data.eval_batch_size
        smaller = f"data.eval_batch_size={max(size // 2, 1)} or " if size > 1 else ""
        return f"data.eval_batch_size={size}: out of memory on the device; try {smaller}a smaller data.max_length"
    batch, parts = config.data.batch_size, config.trainer.accumulate_grad_batches
    half = max(batch // 2, 1)
    keys = [f"data.batch_size={half} trainer.accumulate_grad_batches={parts * 2}"] if batch > 1 else []
    if config.student.checkpointing != "full":
        keys.append("student.checkpointing=full")
    if config.trainer.precision == "32-true":
        keys.append("trainer.precision=bf16-mixed")
    keys += ["a smaller data.max_length", "strategy=fsdp on several GPUs"]
    return f"data.batch_size={batch}: out of memory on the device; try {', or '.join(keys)}; doctor=true measures"


def _lost_process(config: TrainConfig | EvaluateConfig, error: RuntimeError) -> str | None:
    """The line for an error caused by another process that died; None for other errors."""
    message, remedy = str(error), "resume=auto continues from the last checkpoint"
    if isinstance(config, EvaluateConfig):
        remedy = "run the same command again"
    if _LOST_READER in message:
        return (
            f"data.num_workers={config.data.num_workers}: a data loader process was killed, probably out of memory; "
            f"use fewer, or 0; {remedy}"
        )
    if isinstance(error, torch.distributed.DistBackendError) or any(words in message for words in _LOST_RANK):
        return f"trainer.strategy={config.trainer.strategy}: another process of the run was lost; {remedy}"
    return None
