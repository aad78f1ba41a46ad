"""`doctor=true`: what a run would need and take, from a few real steps; nothing is trained and no file stays."""

from __future__ import annotations

import math
import os
import platform
import resource
import tempfile
import time
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from potstill.config import TrainConfig, teachers_of
from potstill.config.running import TrainerConfig
from potstill.data.common.batching import EpochPlan
from potstill.data.common.steps import BatchSettings, Sequences, StepDataModule, TrainSteps
from potstill.data.common.store import store_key
from potstill.data.corpus.store import Corpus, TokenStore
from potstill.data.tasks.mixing import MixedDataModule
from potstill.data.tasks.splits import MAIN
from potstill.errors import printable
from potstill.evaluation.efficiency import count_parameters
from potstill.methods import Training, method_of
from potstill.runs.summary import provenance
from potstill.runtime.kernels import use_kernels
from potstill.training.trainer import build_trainer

SAMPLE = 2000  # texts of each source that are binarized where only a sample is needed
STEPS = 3  # of each batch size; the first one warms up and is not timed
LEAST_STEPS = 50  # whose outputs of a teacher are stored
SECONDS = 60.0  # no larger batch is tried once a size has taken so long
USABLE_SHARE = 0.9  # of free memory


@dataclass(frozen=True)
class Measured:
    """Steps of one micro-batch of the longest sequences.

    Attributes:
        batch: sequences of the micro-batch.
        peak: bytes, of the device or of this process.
        seconds: of a step.
    """

    batch: int
    peak: int
    seconds: float


@dataclass(frozen=True)
class Line:
    """`start + slope * batch` through the two largest sizes that were measured."""

    start: float
    slope: float

    def at(self, batch: float) -> float:
        """Its value for a batch size."""
        return self.start + self.slope * batch


def examine(config: TrainConfig) -> None:
    """Print what the composed run would need: device, precision, versions, stores, memory, time, the largest batch.

    Raises:
        PotstillError: what the run itself would be refused for.
    """
    use_kernels()
    device = run_device(config)
    found: dict[str, Any] = dict(machine(config, device))
    with tempfile.TemporaryDirectory(prefix="potstill-doctor-") as own, redirect_stdout(None):
        training = _build(config, Path(own))
        found |= {
            "parameters": f"student {count_parameters(training.module.student)['total']:,}"
            + (f", teacher {training.teacher_parameters:,}" if training.teacher_parameters else "")
        }
        data: StepDataModule = training.data
        lengths, state = _sequences(config, data, Path(own))
        found["data"] = state
        measured = measure(training.module, data, config, Path(own))
    found |= estimates(config, device, measured, lengths, data.settings.unit)
    width = max(map(len, found))
    print("\n".join(printable(f"{name:<{width}}  {value}") for name, value in found.items()))


def run_device(config: TrainConfig) -> torch.device:
    """The device of the run's steps, which may leave a GPU of this machine unused.

    Raises:
        ConfigError: a device that this machine lacks.
    """
    trainer = build_trainer(_on_one_device(config), Path(), callbacks=[], loggers=False)
    return trainer.strategy.root_device


def _on_one_device(config: TrainConfig) -> TrainerConfig:
    """The settings of the run's trainer, for one of its devices."""
    return replace(config.trainer, devices=1, num_nodes=1, strategy="auto")


def machine(config: TrainConfig, device: torch.device) -> dict[str, str]:
    """Device, precision and versions, by name; `device` is the run's."""
    trainer = config.trainer
    if _is_gpu(device):
        names = sorted({torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())})
        named = f"{torch.cuda.device_count()} x {', '.join(names)}"
    else:
        name = platform.processor() or platform.machine()
        named = f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    used = f"{trainer.devices} on each of {trainer.num_nodes} machines, trainer.strategy={trainer.strategy}"
    return {
        "device": named,
        "devices": used,
        "memory": f"{available_bytes(device) / 1e9:.1f} GB free",
        "precision": trainer.precision,
        "versions": f"Python {platform.python_version()}, {provenance(config)['versions']}",
    }


def available_bytes(device: torch.device) -> int:
    """Bytes that this process can still have: of a GPU, or else of this machine."""
    if _is_gpu(device):
        return torch.cuda.mem_get_info(device)[0]
    with Path("/proc/meminfo").open() as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["MemAvailable"].split()[0]) * 1024


def measure(module: LightningModule, data: StepDataModule, config: TrainConfig, folder: Path) -> list[Measured]:
    """Real steps of one micro-batch each, of the longest sequences, at rising sizes up to the composed one.

    Args:
        module: of the run; its student's weights change.
        data: of the run; its settings change.
        config: of the run.
        folder: for what Lightning writes.

    Returns:
        What fitted, the smallest first; empty where not even that did.
    """
    settings = data.settings
    found: list[Measured] = []
    largest = config.data.batch_size
    if config.data.max_tokens:
        largest = max(config.data.max_tokens // int(longest_of(data)[1].lengths.max()), 1)
    size = settings.unit
    while size < largest:
        found += _try(module, data, config, folder, size)
        if not found or found[-1].batch != size or found[-1].seconds * STEPS > SECONDS:
            return found
        size = min(size * 2, largest)
    return found + _try(module, data, config, folder, max(largest, settings.unit))


def _try(module: LightningModule, data: StepDataModule, config: TrainConfig, folder: Path, size: int) -> list[Measured]:
    """The measurement of a size; none where memory does not suffice."""
    one: dict[str, Any] = {"batch_size": size, "max_tokens": None, "accumulate": 1}
    task, sequences = longest_of(data)
    data.settings = replace(data.settings, **one)
    if isinstance(data, MixedDataModule):
        data.tasks[task].settings = replace(data.tasks[task].settings, **one)
    data._steps = Longest(sequences, data.settings, task)
    settings = replace(
        _on_one_device(config), max_steps=STEPS, max_epochs=None, enable_progress_bar=False, val_check_interval=None,
        log_every_n_steps=STEPS + 1,
    )  # fmt: skip
    clock = _Clock()
    trainer = build_trainer(settings, folder, callbacks=[clock], loggers=False, validate=False)
    device = trainer.strategy.root_device
    _forget_peak(device)
    try:
        trainer.fit(module, datamodule=data)
    except torch.OutOfMemoryError:
        return []
    return [Measured(size, _peak(device), min(clock.seconds[1:]))]


def longest_of(data: StepDataModule) -> tuple[str, Sequences]:
    """The sequences that are measured; of several tasks those of the one that has the longest, and its name."""
    if isinstance(data, MixedDataModule):
        parts = {name: part.train_steps.sequences for name, part in data.tasks.items()}
        name = max(parts, key=lambda name: parts[name].lengths.max())
        return name, parts[name]
    return MAIN, data.train_steps.sequences


class Longest(TrainSteps):
    """Steps of the longest sequences there are, always the same ones.

    Args:
        sequences: of a run, or of one of its tasks.
        settings: how many of them a step has.
        task: whose they are, by which a batch of several tasks is known.
    """

    def __init__(self, sequences: Sequences, settings: BatchSettings, task: str):
        super().__init__(sequences, settings)
        self.task = task

    def __getitem__(self, at: tuple[int, int]) -> dict[str, Any]:
        return {**super().__getitem__(at), "task": self.task}

    def plan(self, epoch: int) -> EpochPlan:
        """`STEPS` steps of a micro-batch each."""
        size = self.settings.batch_size
        longest = np.argsort(-np.asarray(self.sequences.lengths), kind="stable")
        longest = np.resize(longest, size)  # a small sample is repeated
        return EpochPlan(np.tile(longest, STEPS), np.arange(STEPS + 1) * size)


def estimates(
    config: TrainConfig, device: torch.device, measured: list[Measured], lengths: np.ndarray | None, unit: int = 1
) -> dict[str, str]:
    """Memory and time of the composed run, and the largest batch that fits, as text.

    Args:
        config: of the run.
        device: of the run, whose memory was measured.
        measured: the smallest first.
        lengths: (sequences,) tokens of each in an epoch; None where they are not known yet.
        unit: sequences that stay together.
    """
    if not measured:
        return {"memory needed": f"more than there is, even for data.batch_size={unit}; try a smaller data.max_length"}
    last = measured[-1]
    peaks = line_through([(m.batch, m.peak) for m in measured])
    usable = USABLE_SHARE * (available_bytes(device) + (0 if _is_gpu(device) else _resident()))
    batch = config.data.batch_size
    found = {
        "measured": ", ".join(f"{m.batch}: {m.peak / 1e9:.2f} GB {m.seconds:.3g} s" for m in measured)
        + " (sequences of the longest: peak, step)",
        "memory needed": f"about {peaks.at(batch) / 1e9:.2f} GB for data.batch_size={batch}, all on one device",
        "largest batch": largest_batch(peaks, usable, unit, last.batch),
    }
    steps = steps_of(config, lengths)
    if steps is None:
        found["time"] = "not known before the store is made; give trainer.max_steps"
        return found
    times = line_through([(m.batch, m.seconds) for m in measured])
    share = 1.0 if lengths is None or not len(lengths) else float(np.mean(lengths) / np.max(lengths))
    seconds = steps * config.trainer.accumulate_grad_batches * max(times.at(batch), last.seconds * 1e-3) * share
    found["time"] = f"about {_duration(seconds)} for {steps:,} steps, validation not counted"
    return found


def line_through(points: list[tuple[float, float]]) -> Line:
    """Through the last two points; flat through a single one, and never falling."""
    (x, y) = points[-1]
    slope = 0.0
    if len(points) > 1:
        slope = max((y - points[-2][1]) / (x - points[-2][0]), 0.0)
    return Line(y - slope * x, slope)


def largest_batch(peaks: Line, usable: float, unit: int, tried: int) -> str:
    """The largest size whose peak stays within `usable` bytes, as text."""
    if peaks.slope <= 0:
        return f"data.batch_size={tried} at least: memory did not grow up to there"
    fits = int(min((usable - peaks.start) / peaks.slope, 1e9)) // unit * unit
    if fits < unit:
        return f"none: data.batch_size={unit} needs {peaks.at(unit) / 1e9:.2f} GB, {usable / 1e9:.2f} GB can be used"
    return f"about data.batch_size={fits} in {usable / 1e9:.1f} GB; accumulate beyond, trainer.accumulate_grad_batches"


def steps_of(config: TrainConfig, lengths: np.ndarray | None) -> int | None:
    """Optimizer steps of the run; None where that depends on a store that is not there."""
    trainer = config.trainer
    steps = trainer.max_steps
    bounds = [steps] if steps is not None and steps >= 0 else []
    if lengths is not None and trainer.max_epochs is not None:
        devices = trainer.devices if isinstance(trainer.devices, int) else 1
        batch: float = config.data.batch_size
        if config.data.max_tokens:
            batch = max(config.data.max_tokens / float(np.mean(lengths)), 1)
        whole = batch * trainer.accumulate_grad_batches * devices * trainer.num_nodes
        bounds.append(math.ceil(len(lengths) / whole) * trainer.max_epochs)
    return min(bounds) if bounds else None


def _build(config: TrainConfig, folder: Path) -> Training:
    """The run's parts; what it would put into its caches goes into a folder that does not stay."""
    own = deepcopy(config)
    # A store in the place of a teacher is read, and is of all data.
    whole = own.teacher.cache.replaces_teacher and not teachers_of(own) and not own.custom.every_teacher
    if not whole:
        own.teacher.cache.folder = None  # a store of a sample there would be refused by the run itself
    if not whole and (steps := own.trainer.max_steps or 0) > 0:  # so that the store has tokens for the longest steps
        own.trainer.max_steps = max(steps, LEAST_STEPS)
    real = Path(config.data.cache).expanduser()
    for kept in real.glob("*/*"):  # read where it is there
        (folder / "cache" / kept.parent.name).mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            (folder / "cache" / kept.parent.name / kept.name).symlink_to(kept.absolute())
    own.data.cache = str(folder / "cache")
    method = method_of(own)
    if not whole:
        method.sample(own, SAMPLE)
    return method.build(own)


def _sequences(config: TrainConfig, data: StepDataModule, folder: Path) -> tuple[np.ndarray | None, str]:
    """Tokens of the sequences of an epoch, where they are known, and what of the data is there already."""
    cache = Path(config.data.cache).expanduser()
    corpus = None if isinstance(data, MixedDataModule) else getattr(data.train_steps.sequences, "corpus", None)
    if not isinstance(corpus, Corpus):
        made = [p for p in (folder / "cache").glob("*/*") if not p.is_symlink() and p.suffix != ".lock"]
        state = f"features would be made in {cache}" if made else f"features are ready in {cache}"
        parts = data.tasks.values() if isinstance(data, MixedDataModule) else [data]
        return np.concatenate([part.train_steps.sequences.lengths for part in parts]), state
    stores = [cache / "stores" / _key(store.index, config.data.max_examples) for store in corpus.stores]
    if not all(store.is_dir() for store in stores):
        return None, f"stores would be made in {cache / 'stores'}; a sample of {SAMPLE:,} texts was measured"
    lengths = np.concatenate([TokenStore.open(store).lengths for store in stores])
    return lengths, f"stores are ready: {', '.join(map(str, stores))}; {int(lengths.sum()):,} tokens"


def _key(index: Mapping[str, Any], max_examples: int | None) -> str:
    """Key of the store that the run itself would read, from the index of a sample's store."""

    def whole(source: Any) -> Any:
        if isinstance(source, Mapping):
            return {k: max_examples if k == "max_examples" else whole(v) for k, v in source.items()}
        return [whole(part) for part in source] if isinstance(source, list) else source

    return store_key(whole(index["source"]), index["tokenizer"], dict(index["options"]))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def _forget_peak(device: torch.device) -> None:
    if _is_gpu(device):
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux; elsewhere sizes rise, and so does the peak of the process
            Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> int:
    """Bytes since `_forget_peak`."""
    if _is_gpu(device):
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _resident() -> int:
    """Bytes that this process holds now."""
    return _status("VmRSS") or 0


def _status(name: str) -> int | None:
    with suppress(OSError, StopIteration), Path("/proc/self/status").open() as file:
        return int(next(line for line in file if line.startswith(name)).split()[1]) * 1024
    return None


class _Clock(Callback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._since = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Start."""
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stop, when the device is done."""
        if _is_gpu(device := trainer.strategy.root_device):
            torch.cuda.synchronize(device)
        self.seconds.append(time.perf_counter() - self._since)
