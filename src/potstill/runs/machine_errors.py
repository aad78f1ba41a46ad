"""What goes wrong with the machine in the middle of a run, as one line that says what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from omegaconf import DictConfig

from potstill.errors import TrainingError

# What torch says where a process of a data loader was killed, and what gloo says where another rank was.
_LOST_READER = "DataLoader worker (pid"
_LOST_RANK = ("Connection closed by peer", "Connection reset by peer")


@contextmanager
def told(config: DictConfig) -> Iterator[None]:
    """Around what trains or judges: any other fault stays what it is.

    Args:
        config: of `train.py`, or of `evaluate.py`.

    Raises:
        TrainingError: the device's memory was too small, or another process of the run is gone.
    """
    try:
        yield
    except torch.OutOfMemoryError as fault:
        raise TrainingError(out_of_memory(config)) from fault
    except RuntimeError as fault:
        if (line := lost_process(config, fault)) is None:
            raise
        raise TrainingError(line) from fault


def out_of_memory(config: DictConfig) -> str:
    """What to change where a step does not fit into the device's memory: the same update from smaller parts first."""
    if _judges(config):
        size = config.data.eval_batch_size
        smaller = f"data.eval_batch_size={max(size // 2, 1)} or " if size > 1 else ""
        return f"data.eval_batch_size={size}: out of memory on the device; try {smaller}a smaller data.max_length"
    batch, parts = config.data.batch_size, config.trainer.accumulate_grad_batches
    half = max(batch // 2, 1)
    said = [f"data.batch_size={half} trainer.accumulate_grad_batches={parts * 2}"] if batch > 1 else []
    if config.student.checkpointing != "full":
        said.append("student.checkpointing=full")
    if config.trainer.precision == "32-true":
        said.append("trainer.precision=bf16-mixed")
    said += ["a smaller data.max_length", "strategy=fsdp on several GPUs"]
    return f"data.batch_size={batch}: out of memory on the device; try {', or '.join(said)}; doctor=true measures"


def lost_process(config: DictConfig, fault: RuntimeError) -> str | None:
    """What to do where a fault comes of another process that has died; None where it does not."""
    said, goes_on = str(fault), "the same command with resume=auto goes on from the last checkpoint"
    if _judges(config):
        goes_on = "then the same command again"
    if _LOST_READER in said:
        return (
            f"data.num_workers={config.data.num_workers}: a process that reads batches was killed, most likely for "
            f"want of memory; give fewer, or 0; {goes_on}"
        )
    if isinstance(fault, torch.distributed.DistBackendError) or any(words in said for words in _LOST_RANK):
        return f"trainer.strategy={config.trainer.strategy}: another process of the run was lost; {goes_on}"
    return None


def _judges(config: DictConfig) -> bool:
    return "objective" not in config  # only a training run has one
