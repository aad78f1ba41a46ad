"""Callbacks of every run: checkpoints, signals, the best student, throughput, the progress bar."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, RichProgressBar, TQDMProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO

from potstill.data.corpus.datamodule import StepBatch
from potstill.data.custom import CustomStep
from potstill.data.tasks.datamodule import TaskStep
from potstill.errors import StoppedError
from potstill.models.folders import fresh_folder
from potstill.reporting.loggers import MetricsFile
from potstill.runtime import signals
from potstill.runtime.atomic import replacing
from potstill.runtime.checksums import add_checksum
from potstill.training.sharding import load_whole, whole

WARMUP_STEPS = 5


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a temporary file, and replace the checkpoint with it.

        Raises:
            WriteError: the disk is full, or the folder cannot be written; the old checkpoint is kept.
        """
        with replacing(Path(path)) as fresh, fresh.open("wb") as file:
            torch.save(checkpoint, file)
            add_checksum(file)


class ParameterStatistics(Callback):
    """Logs mean and standard deviation of each trained weight and of its clipped gradient, not to metrics.csv.

    Args:
        every: optimizer steps between logs.
    """

    def __init__(self, every: int):
        self.every = every

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Log the statistics if they are due."""
        if trainer.global_step % self.every or not trainer.is_global_zero:
            return
        student: Any = pl_module.student
        names, values = [], []
        for name, weight in student.named_parameters():
            for kind, tensor in (("weight", weight), ("gradient", weight.grad)):
                if weight.requires_grad and tensor is not None:
                    names += [f"parameters/{kind}_{figure}/{name}" for figure in ("mean", "std")]
                    values += [tensor.float().mean(), tensor.float().std(correction=0)]
        found = dict(zip(names, torch.stack(values).tolist(), strict=True)) if values else {}
        for logger in trainer.loggers:
            if not isinstance(logger, MetricsFile):
                logger.log_metrics(found, trainer.global_step)


class LastCheckpoint(Callback):
    """Writes `last.ckpt` every `every` optimizer steps or `epochs` epochs, and at the end of training.

    A step is saved at the start of the next one, when it has been validated and logged.

    Args:
        folder: folder of checkpoints.
        every: optimizer steps between checkpoints; None for none of these.
        epochs: epochs between checkpoints, or a fraction; None for none of these.
        keep: keeps each of them beside the last one; None for the last one only.
    """

    def __init__(
        self, folder: Path, every: int | None, epochs: float | None = None, keep: KeptCheckpoints | None = None
    ):
        self.path, self.every, self.epochs, self.keep = folder / "last.ckpt", every, epochs, keep
        self._saved_at: int | None = None

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Save the finished step if a checkpoint is due."""
        if trainer.global_step and self._is_due(trainer):
            self.save(trainer)
            self._keep(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step."""
        self.save(trainer)
        self._keep(trainer)

    def _is_due(self, trainer: Trainer) -> bool:
        step = trainer.global_step
        if self.every is not None and step % self.every == 0:
            return True
        if self.epochs is None:
            return False
        steps = self.epochs * trainer.num_training_batches  # one batch of a loader is one step
        return step // steps > (step - 1) // steps

    def _keep(self, trainer: Trainer) -> None:
        if self.keep is not None:
            if trainer.is_global_zero:
                self.keep(self.path, trainer)
            trainer.strategy.barrier()

    def save(self, trainer: Trainer) -> None:
        """Save the finished steps, unless they are already saved."""
        if self._saved_at != trainer.global_step:
            trainer.save_checkpoint(self.path)
            self._saved_at = trainer.global_step


class KeptCheckpoints:
    """Copies a checkpoint into a folder of its own, `step_<n>`, with the student as it is now.

    Args:
        write: writes the student into a folder, with metrics for its model card.
        most: number of folders; the oldest one goes first. None for all.
    """

    def __init__(self, write: Callable[[dict[str, Any], Path], None], most: int | None):
        self.write, self.most = write, most

    def __call__(self, last: Path, trainer: Trainer) -> None:
        """Keep a checkpoint.

        Args:
            last: its file.
            trainer: with the step and the metrics.

        Raises:
            WriteError: the folder cannot be written.
        """
        folder = last.with_name(f"step_{trainer.global_step:06d}")
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}
        with fresh_folder(folder) as fresh:
            self.write({**metrics, "train/steps": trainer.global_step}, fresh / "student")
            try:
                os.link(last, fresh / last.name)  # `last` is replaced, never changed
            except OSError:  # another kind of file system
                shutil.copyfile(last, fresh / last.name)
        kept = sorted(last.parent.glob("step_*"), key=lambda own: int(own.name.removeprefix("step_")))
        for old in kept[: -self.most] if self.most is not None else []:
            shutil.rmtree(old, ignore_errors=True)


class StopOnSignal(Callback):
    """On a signal: finishes the step and its validation, saves and ends; all ranks stop at the same step.

    Args:
        last: saves the state.
    """

    def __init__(self, last: LastCheckpoint):
        self.last = last
        self.stopping = False
        self._training: ExitStack | None = None

    def on_train_start(self, *_: Any) -> None:
        """Defer the first signal from now on."""
        self._training = ExitStack()
        self._training.enter_context(signals.listening())
        signals.hold()
        self._training.callback(signals.release)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Save and stop before the next step if any rank has received a signal.

        Raises:
            StoppedError: a signal has arrived; the state is saved.
        """
        self._agree(trainer)
        if self.stopping:
            self.last.save(trainer)
            raise signals.stopped(f" after step {trainer.global_step}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after the last step, which is saved; a later signal ends the run immediately.

        Raises:
            StoppedError: a signal has arrived.
        """
        self._agree(trainer)
        if self.stopping:
            raise signals.stopped(f" after step {trainer.global_step}")
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the processes started by this one if they have not agreed to stop."""
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
    """The checkpoint in the folder of a run, if any; incomplete files of a killed run are removed."""
    place = folder / "checkpoints"
    for torn in place.glob(".last.ckpt.*.tmp"):
        torn.unlink(missing_ok=True)
    last = place / "last.ckpt"
    return last if last.is_file() else None


class BestStudent(Callback):
    """Keeps the weights of the best student so far, in checkpoints too.

    Args:
        metric: name of the logged metric, such as `val/accuracy`.
        mode: `min` or `max`.
    """

    def __init__(self, metric: str, mode: str):
        self.metric, self.sign = metric, 1.0 if mode == "max" else -1.0
        self.value: float | None = None
        self.step: int | None = None
        self._weights: dict[str, torch.Tensor] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the student if it is better than all before."""
        if self.metric not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[self.metric])
        if self.value is None or self.sign * value > self.sign * self.value:
            self.value, self.step = value, trainer.global_step
            self._weights = _copied(_student(pl_module))

    def restore(self, pl_module: LightningModule) -> None:
        """Load the best weights into the student; without a validation it is not changed."""
        if self._weights:
            load_whole(pl_module.student, self._weights)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Value of the metric, step and weights."""
        return {"value": self.value, "step": self.step, "weights": self._weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best student of an interrupted run."""
        self.value, self.step, self._weights = (state_dict[name] for name in ("value", "step", "weights"))


def _student(pl_module: LightningModule) -> dict[str, torch.Tensor]:
    return pl_module.student.state_dict(keep_vars=True)  # type: ignore[union-attr]


def _copied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU; several names of one tensor (tied weights, shared encoders) get one copy."""
    copies: dict[tuple[Any, ...], torch.Tensor] = {}
    weights = {}
    for name, tensor in state.items():
        if (found := whole(tensor)) is not tensor:  # gathered from all ranks
            weights[name] = found.detach().cpu()
            continue
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if not tensor.numel() or place not in copies:
            copies[place] = tensor.detach().to("cpu", copy=True)
        weights[name] = copies[place]
    return weights


class Throughput(Callback):
    """Seconds per step and tokens per second, with loading, without validation and checkpoints.

    Args:
        unit: name of the `tokens` of a step in metrics.
    """

    def __init__(self, unit: str = "tokens") -> None:
        self.unit = unit
        self.seconds: list[float] = []
        self.rates: list[float] = []
        self.peak_memory_gb = 0.0  # of earlier processes of the run
        self._since: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """All measurements."""
        seconds, rates = (torch.tensor(own, dtype=torch.float64) for own in (self.seconds, self.rates))
        return {"seconds": seconds, "rates": rates, "peak_memory_gb": max(self.peak_memory_gb, peak_memory_gb())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue an interrupted run's measurements."""
        self.seconds, self.rates = state_dict["seconds"].tolist(), state_dict["rates"].tolist()
        self.peak_memory_gb = state_dict["peak_memory_gb"]

    def on_train_start(self, *_: Any) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: StepBatch | TaskStep | CustomStep,
        batch_idx: int,
    ) -> None:
        """Measure the time since the last step, unless a validation or checkpoint came between."""
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
        """Stop the clock."""
        self._since = None

    def on_validation_end(self, *_: Any) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_save_checkpoint(self, *_: Any) -> None:
        """Exclude the interval with a checkpoint."""
        self._since = None

    def summary(self) -> dict[str, float]:
        """Medians after the first steps, and the peak memory; empty without training steps."""
        if not self.seconds:
            return {}
        skip = min(WARMUP_STEPS, len(self.seconds) // 2)
        return {
            f"train/{self.unit}_per_second": statistics.median(self.rates[skip:]),
            "train/step_seconds": statistics.median(self.seconds[skip:]),
            "train/peak_memory_gb": max(self.peak_memory_gb, peak_memory_gb()),
        }


def peak_memory_gb() -> float:
    """Peak memory of the GPU, or of the process without one, in GB (10^9 bytes)."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def progress_bar() -> Callback:
    """Rich's progress bar on a terminal, plain lines elsewhere."""
    if sys.stderr.isatty():
        return RichProgressBar(leave=True)
    return TQDMProgressBar(refresh_rate=50, leave=True)
