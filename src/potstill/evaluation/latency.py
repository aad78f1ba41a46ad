"""Latency of several models, measured in alternation, so that other load slows all of them equally."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.errors import ModelError

PASSES = 3  # per model and round
MIN_ROUNDS, MAX_ROUNDS = 7, 200
BUDGET_SECONDS = 3.0  # per model, if the rounds agree
PATIENCE = 3.0  # times the budget, if they do not
PRECISION = 0.04  # relative error of a ratio at which measuring stops
STEADY = 0.06  # relative error above which a latency is reported as unsteady


@dataclass(frozen=True)
class Timed:
    """A model to measure.

    Attributes:
        model: takes ids (batch, length) as its first argument; an encoder-decoder gets the same ids for its decoder.
        device: it is moved to while it is measured; None to leave it.
        context: of its forward passes, such as a precision.
    """

    model: nn.Module
    device: torch.device | None = None
    context: Callable[[], AbstractContextManager[Any]] = field(default=nullcontext)


@dataclass(frozen=True)
class Latency:
    """Times of one forward pass.

    Attributes:
        p50: milliseconds; for the first model the median of the rounds' medians, for the others that times `ratio`.
        p95: milliseconds, over all passes.
        ratio: to the first model's time, the median over rounds.
        error: relative error of the ratio (for the first model of its time): half of the interval of the median.
    """

    p50: float
    p95: float
    ratio: float
    error: float

    @property
    def is_steady(self) -> bool:
        """Whether the rounds agree."""
        return self.error <= STEADY


def measure_latencies(models: Sequence[Timed], batch: int, length: int) -> list[Latency]:
    """Time of one forward pass of each model on random ids.

    Passes of all models alternate in rounds, whose order is rotated. Other load slows neighbouring passes equally, so
    ratios within a round are stable when times are not. There are more rounds if they disagree, and fewer for slow
    models. Models run in evaluation and inference mode; their mode and device are restored.

    Args:
        models: the first is the reference.
        batch: sequences per pass.
        length: ids per sequence.

    Raises:
        ModelError: a model has no embedding, or `length` exceeds its positions.
    """
    with ExitStack() as stack:
        runs = [stack.enter_context(_prepared(timed, batch, length)) for timed in models]
        for run in (*runs, *runs):  # warm up
            run()
        rounds: list[list[list[float]]] = []  # times by round, model and pass
        started = time.perf_counter()
        while len(rounds) < MAX_ROUNDS:
            rounds.append(_round(runs, len(rounds)))
            spent = (time.perf_counter() - started) / len(runs) / BUDGET_SECONDS
            if len(rounds) < MIN_ROUNDS or (spent < 1 and len(rounds) < MAX_ROUNDS // 4):
                continue
            found = _latencies(rounds)
            if spent > PATIENCE or all(own.error <= PRECISION for own in found[1:]):
                break
    return _latencies(rounds)


def _round(runs: Sequence[Callable[[], float]], number: int) -> list[list[float]]:
    """Passes of all models in alternation, starting with another model in each round."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(PASSES):
        for place in range(len(runs)):
            chosen = (number + place) % len(runs)
            times[chosen].append(runs[chosen]())
    return times


def _latencies(rounds: Sequence[Sequence[Sequence[float]]]) -> list[Latency]:
    base = statistics.median(statistics.median(times[0]) for times in rounds)
    found = []
    for model in range(len(rounds[0])):
        # Sums, as the median of few passes is unstable if some of them are slowed.
        ratios = [sum(times[model]) / sum(times[0]) for times in rounds]
        ratio = statistics.median(ratios)
        every = torch.tensor([one for times in rounds for one in times[model]], dtype=torch.float64)
        error = _error(ratios if model else [sum(times[0]) for times in rounds])
        found.append(Latency(base * ratio, max(float(every.quantile(0.95)), base * ratio), ratio, error))
    return found


def _error(values: list[float]) -> float:
    """Relative half width of the 95 % interval of a median, from the quartiles (McGill et al. 1978)."""
    low, middle, high = statistics.quantiles(values, n=4)
    return 1.57 * (high - low) / math.sqrt(len(values)) / middle


@contextmanager
def _prepared(timed: Timed, batch: int, length: int) -> Iterator[Callable[[], float]]:
    """A forward pass that returns its time in milliseconds."""
    before = next(timed.model.parameters()).device
    with forward_pass(timed.model, batch, length, timed.device) as run:

        def timed_run() -> float:
            with timed.context():
                begun = time.perf_counter()
                run()
                return (time.perf_counter() - begun) * 1e3

        yield timed_run
    if timed.device is not None:
        timed.model.to(before)


@contextmanager
def forward_pass(
    model: nn.Module, batch: int, length: int, device: torch.device | None = None
) -> Iterator[Callable[[], None]]:
    """A synchronized forward pass on random ids; the model's mode is restored.

    Args:
        model: as in `Timed`.
        batch: sequences per pass.
        length: ids per sequence.
        device: the model is moved to; None to leave it.

    Raises:
        ModelError: the model has no embedding, or `length` exceeds its positions.
    """
    if device is not None:
        model.to(device)
    placed = next(model.parameters()).device
    ids = _random_ids(model, batch, length).to(placed)
    is_seq2seq = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    arguments = {"decoder_input_ids": ids} if is_seq2seq else {}

    def run() -> None:
        with torch.inference_mode():
            model(ids, **arguments)
            if placed.type != "cpu":
                torch.accelerator.synchronize(placed)

    was_training = model.training
    model.eval()
    try:
        yield run
    finally:
        model.train(was_training)


def _random_ids(model: nn.Module, batch: int, length: int) -> Tensor:
    """Ids (batch, length) drawn from the model's vocabulary, the same at each call."""
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ModelError(f"benchmark.lengths={length}: the model has {positions} positions")
    embedding: Any
    if isinstance(model, PreTrainedModel):
        embedding = model.get_input_embeddings()
    else:
        embedding = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    if embedding is None:
        raise ModelError(f"latency: {type(model).__name__} has no embedding of ids")
    generator = torch.Generator().manual_seed(0)
    return torch.randint(embedding.weight.shape[0], (batch, length), generator=generator)
