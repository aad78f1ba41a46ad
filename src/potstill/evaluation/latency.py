"""Time of a forward pass, of several models in turn, so that a busy machine slows all of them alike."""

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

PASSES = 3  # of each model in a round
LEAST_ROUNDS, MOST_ROUNDS = 7, 200
BUDGET_SECONDS = 3.0  # of each model, where the rounds agree
PATIENCE = 3.0  # times the budget, where they do not
PRECISION = 0.04  # of the ratios: half of the interval of their median that is precise enough
STEADY = 0.06  # the same, above which a ratio is reported as unsteady


@dataclass(frozen=True)
class Timed:
    """A model that is measured.

    Attributes:
        model: takes ids (batch, length) as its first argument; an encoder-decoder gets the same ids for its decoder.
        device: where it is while it is measured; None: where it is.
        context: that its passes run in, such as a precision's.
    """

    model: nn.Module
    device: torch.device | None = None
    context: Callable[[], AbstractContextManager[Any]] = field(default=nullcontext)


@dataclass(frozen=True)
class Latency:
    """Times of one forward pass.

    Attributes:
        p50: milliseconds; of the first model the median of the rounds' medians, of the others that times `ratio`.
        p95: milliseconds, of all passes.
        ratio: to the first model's time, the median of the rounds' ratios.
        error: of the ratio, half of the interval of the median, as a share of it; of the first model that of its time.
    """

    p50: float
    p95: float
    ratio: float
    error: float

    @property
    def is_steady(self) -> bool:
        """Whether the rounds agree."""
        return self.error <= STEADY


def measure_latencies(models: Sequence[Timed], batch: int, length: int, seed: int = 0) -> list[Latency]:
    """Time of one forward pass of each model on random ids.

    Passes of all models alternate, in rounds, and the order is rotated from round to round. What else the machine does
    slows neighbouring passes alike, so ratios within a round hold where times do not. There are more rounds where they
    disagree, and fewer of slow models. Models are in evaluation and inference mode; their own mode and device are put
    back.

    Args:
        models: the first is the reference.
        batch: sequences in a pass.
        length: ids in a sequence.
        seed: of the ids.

    Raises:
        ModelError: a model embeds no ids, or `length` exceeds its positions.
    """
    with ExitStack() as stack:
        runs = [stack.enter_context(_prepared(timed, batch, length, seed)) for timed in models]
        for run in (*runs, *runs):  # warm up
            run()
        rounds: list[list[list[float]]] = []  # in each, the times of each model's passes
        started = time.perf_counter()
        while len(rounds) < MOST_ROUNDS:
            rounds.append(_round(runs, len(rounds)))
            spent = (time.perf_counter() - started) / len(runs) / BUDGET_SECONDS
            if len(rounds) < LEAST_ROUNDS or (spent < 1 and len(rounds) < MOST_ROUNDS // 4):
                continue
            found = _latencies(rounds)
            if spent > PATIENCE or all(own.error <= PRECISION for own in found[1:]):
                break
    return _latencies(rounds)


def _round(runs: Sequence[Callable[[], float]], number: int) -> list[list[float]]:
    """Passes of all models in turn; the model that begins is another one from round to round."""
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
        # Sums, since where a pass is slowed now and then, the medians of few passes are either slow or fast.
        ratios = [sum(times[model]) / sum(times[0]) for times in rounds]
        ratio = statistics.median(ratios)
        every = torch.tensor([one for times in rounds for one in times[model]], dtype=torch.float64)
        error = _error(ratios if model else [sum(times[0]) for times in rounds])
        found.append(Latency(base * ratio, max(float(every.quantile(0.95)), base * ratio), ratio, error))
    return found


def _error(values: list[float]) -> float:
    """Half of the 95 % interval of a median, of its quartiles (McGill et al. 1978), as a share of it."""
    low, middle, high = statistics.quantiles(values, n=4)
    return 1.57 * (high - low) / math.sqrt(len(values)) / middle


@contextmanager
def _prepared(timed: Timed, batch: int, length: int, seed: int) -> Iterator[Callable[[], float]]:
    """A timed pass on random ids, in milliseconds."""
    before = next(timed.model.parameters()).device
    with forward_pass(timed.model, batch, length, seed, timed.device) as run:

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
    model: nn.Module, batch: int, length: int, seed: int = 0, device: torch.device | None = None
) -> Iterator[Callable[[], None]]:
    """A forward pass on random ids that returns when the device is done; the model's mode is put back.

    Args:
        model: as in `Timed`.
        batch: sequences in a pass.
        length: ids in a sequence.
        seed: of the ids.
        device: that the model is moved to; None: it stays.

    Raises:
        ModelError: the model embeds no ids, or `length` exceeds its positions.
    """
    if device is not None:
        model.to(device)
    place = next(model.parameters()).device
    ids = _random_ids(model, batch, length, seed).to(place)
    is_seq2seq = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    arguments = {"decoder_input_ids": ids} if is_seq2seq else {}

    def run() -> None:
        with torch.inference_mode():
            model(ids, **arguments)
            if place.type != "cpu":
                torch.accelerator.synchronize(place)

    was_training = model.training
    model.eval()
    try:
        yield run
    finally:
        model.train(was_training)


def _random_ids(model: nn.Module, batch: int, length: int, seed: int) -> Tensor:
    """Ids (batch, length) drawn from the model's vocabulary."""
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ModelError(f"latency: length {length} exceeds the model's {positions} positions")
    embedding: Any
    if isinstance(model, PreTrainedModel):
        embedding = model.get_input_embeddings()
    else:
        embedding = next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
    if embedding is None:
        raise ModelError(f"latency: {type(model).__name__} embeds no ids")
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(embedding.weight.shape[0], (batch, length), generator=generator)
