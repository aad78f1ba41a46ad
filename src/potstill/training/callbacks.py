"""What watches a run: whole checkpoints, throughput, the progress bar."""

from __future__ import annotations

import resource
import signal
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, RichProgressBar, TQDMProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO

from potstill.data.corpus.datamodule import StepBatch
from potstill.data.custom import AdaptedStep
from potstill.data.tasks.datamodule import TaskStep
from potstill.errors import StoppedError
from potstill.runtime import signals
from potstill.runtime.atomic import replacing
from potstill.runtime.checksums import add_checksum
from potstill.training.sharding import load_whole, whole

WARMUP_STEPS = 5


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: a reader meets the old one or the new one, whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write, flush to disk, rename.

        Raises:
            WriteError: the disk is full, or the folder cannot be written; the checkpoint that was there stays.
        """
        with replacing(Path(path)) as fresh, fresh.open("wb") as file:
            torch.save(checkpoint, file)
            add_checksum(file)


class LastCheckpoint(Callback):
    """Writes `last.ckpt` every so many optimizer steps, and when training ends.

    A step is saved when the next one begins: it is validated and all of it is logged then, whatever saw to that.
    """

    def __init__(self, folder: Path, every: int | None):
        self.path, self.every = folder / "last.ckpt", every
        self._saved_at: int | None = None

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Save the step before when it is time."""
        if self.every is not None and trainer.global_step and trainer.global_step % self.every == 0:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end, if the last step was not saved just now."""
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save the steps that are done, if they were not saved just now."""
        if self._saved_at != trainer.global_step:
            trainer.save_checkpoint(self.path)
            self._saved_at = trainer.global_step


class StopOnSignal(Callback):
    """Finishes the step and its validation, saves and ends when a signal arrives; all ranks stop at the same step."""

    def __init__(self, last: LastCheckpoint):
        self.last = last
        self.stopping = False
        self._training: ExitStack | None = None

    def on_train_start(self, *_: Any) -> None:
        """Keep the first signal back from now on."""
        self._training = ExitStack()
        self._training.enter_context(signals.listening())
        signals.hold()
        self._training.callback(signals.release)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Save and stop before the next step if any rank has received a signal; all of the last step is logged then.

        Raises:
            StoppedError: a signal has arrived; the state is saved.
        """
        self._agree(trainer)
        if self.stopping:
            self.last.save(trainer)
            raise signals.stopped(f" after step {trainer.global_step}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after the last step, which is saved by now; from here on a signal ends the run at once.

        Raises:
            StoppedError: a signal has arrived.
        """
        self._agree(trainer)
        if self.stopping:
            raise signals.stopped(f" after step {trainer.global_step}")
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the processes that this one has started, where they have not agreed to stop."""
        self._release()
        launcher = trainer.strategy.launcher
        if isinstance(exception, StoppedError) and not self.stopping and launcher is not None:
            launcher.kill(signal.SIGKILL)

    def _agree(self, trainer: Trainer) -> None:
        self.stopping = self.stopping or signals.received() is not None
        if trainer.world_size > 1:
            self.stopping = trainer.strategy.reduce_boolean_decision(self.stopping, all=False)

    def _release(self) -> None:
        if self._training is not None:
            self._training.close()
            self._training = None


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that a run in this folder left; what a killed one left half written is removed."""
    place = folder / "checkpoints"
    for torn in place.glob(".last.ckpt.*.tmp"):
        torn.unlink(missing_ok=True)
    last = place / "last.ckpt"
    return last if last.is_file() else None


class BestStudent(Callback):
    """Keeps the weights of the student that validated best; they and their figure go into every checkpoint."""

    def __init__(self, metric: str, mode: str):
        """Watch a metric.

        Args:
            metric: as it is logged, `val/accuracy`.
            mode: `min` or `max`.
        """
        self.metric, self.sign = metric, 1.0 if mode == "max" else -1.0
        self.value: float | None = None
        self.step: int | None = None
        self._weights: dict[str, torch.Tensor] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the student where it is better than ever; of equals the first stays."""
        if self.metric not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[self.metric])
        if self.value is None or self.sign * value > self.sign * self.value:
            self.value, self.step = value, trainer.global_step
            self._weights = _copied(_student(pl_module))

    def restore(self, pl_module: LightningModule) -> None:
        """Give the student its best weights back; as it is where it was never validated."""
        if self._weights:
            load_whole(pl_module.student, self._weights)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Figure, step and weights."""
        return {"value": self.value, "step": self.step, "weights": self._weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from an interrupted run's best."""
        self.value, self.step, self._weights = (state_dict[name] for name in ("value", "step", "weights"))


def _student(pl_module: LightningModule) -> dict[str, torch.Tensor]:
    return pl_module.student.state_dict(keep_vars=True)  # type: ignore[union-attr]


def _copied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU; names of one tensor (tied weights, an encoder of several heads) have one copy."""
    copies: dict[tuple[Any, ...], torch.Tensor] = {}
    weights = {}
    for name, tensor in state.items():
        if (found := whole(tensor)) is not tensor:  # of all ranks, which all take part
            weights[name] = found.detach().cpu()
            continue
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if not tensor.numel() or place not in copies:
            copies[place] = tensor.detach().to("cpu", copy=True)
        weights[name] = copies[place]
    return weights


class Throughput(Callback):
    """Seconds a step and tokens a second, loading included, validation and checkpoints not.

    Args:
        unit: what the `tokens` of a step are called in figures.
    """

    def __init__(self, unit: str = "tokens") -> None:
        self.unit = unit
        self.seconds: list[float] = []
        self.rates: list[float] = []
        self.peak_memory_gb = 0.0  # of the processes before, where the run was interrupted
        self._since: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """All that was measured."""
        seconds, rates = (torch.tensor(own, dtype=torch.float64) for own in (self.seconds, self.rates))
        return {"seconds": seconds, "rates": rates, "peak_memory_gb": self._peak()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue an interrupted run's measurements."""
        self.seconds, self.rates = state_dict["seconds"].tolist(), state_dict["rates"].tolist()
        self.peak_memory_gb = state_dict["peak_memory_gb"]

    def _peak(self) -> float:
        return max(self.peak_memory_gb, peak_memory_gb())

    def on_train_start(self, *_: Any) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: StepBatch | TaskStep | AdaptedStep,
        batch_idx: int,
    ) -> None:
        """Take the time since the last step, where nothing else came between."""
        now = time.perf_counter()
        if self._since is not None:
            took = now - self._since
            self.seconds.append(took)
            self.rates.append(batch.tokens / took)  # of all ranks
            if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                pl_module.log_dict(
                    {
                        f"train/{self.unit}_per_second": self.rates[-1],
                        "train/step_seconds": took,
                        "train/peak_memory_gb": peak_memory_gb(),
                    }
                )
        self._since = now

    def on_validation_start(self, *_: Any) -> None:
        """What validation takes is no part of a step."""
        self._since = None

    def on_validation_end(self, *_: Any) -> None:
        """Go on."""
        self._since = time.perf_counter()

    def on_save_checkpoint(self, *_: Any) -> None:
        """The next interval holds a checkpoint: leave it out."""
        self._since = None

    def summary(self) -> dict[str, float]:
        """Medians after the first steps, and the peak of memory; empty where nothing was trained."""
        if not self.seconds:
            return {}
        skip = min(WARMUP_STEPS, len(self.seconds) // 2)
        return {
            f"train/{self.unit}_per_second": statistics.median(self.rates[skip:]),
            "train/step_seconds": statistics.median(self.seconds[skip:]),
            "train/peak_memory_gb": self._peak(),
        }


def peak_memory_gb() -> float:
    """Peak memory of the device, or of the process where there is none, in GB (10^9 bytes)."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def progress_bar() -> Callback:
    """Rich's bar on a terminal; plain lines elsewhere, a few a minute."""
    import sys

    if sys.stderr.isatty():
        return RichProgressBar(leave=True)
    return TQDMProgressBar(refresh_rate=50, leave=True)
