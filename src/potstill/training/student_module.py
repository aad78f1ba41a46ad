"""Base of the LightningModules that train a student."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from lightning import LightningModule
from torch import Tensor, nn

from potstill.errors import CheckpointError, TrainingError
from potstill.objectives.terms import TermSums
from potstill.training.gradient_shares import gradient_shares
from potstill.training.precision import scaler_of
from potstill.training.sharding import blocks_of, exchange, rest, shard, whole
from potstill.training.zero import Zero

TEACHER_PREFIX = "teacher."
GRADIENT_SHARE = "train/gradient_share_"
STOP, SKIP = "stop", "skip"
MOST_SKIPPED = 20  # in a row

log = logging.getLogger(__name__)


class _Step(Protocol):
    micro: list[Any]
    seed: int


@dataclass(frozen=True)
class Optimization:
    """How a student is optimized.

    Attributes:
        optimizer: makes the optimizer of the student's parameters; None: the student is only evaluated.
        schedule: makes the learning-rate schedule from the optimizer and the number of steps; None for none.
        clip: largest norm of the gradient, projections included; None for none.
        shares_every: optimizer steps between measurements of the terms' shares of the gradient; None for none.
    """

    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None
    schedule: Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler] | None = None
    clip: float | None = None
    shares_every: int | None = None


class StudentModule(LightningModule):
    """Base of all modules that train a student; one `training_step` is one optimizer step.

    Optimization is manual: a step runs its micro-batches itself, so that every loss is divided by the positions of the
    whole step (Lightning's own accumulation would divide by those of each micro-batch).

    Args:
        student: the student.
        teacher: frozen, in evaluation mode, absent from checkpoints; None if no term reads it.
        objective: weighted terms; of several tasks by name. Projections of their matches train with the student.
        optimization: how the student is optimized; None: it is only evaluated.
    """

    ranks_run_alike = True  # the same modules in the same order, so that blocks can be gathered one at a time

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None, objective: Any, optimization: Optimization | None = None
    ):
        super().__init__()
        self.automatic_optimization = False
        self.student, self.teacher = student, teacher
        if teacher is not None:
            teacher.requires_grad_(False).eval()
        self.objectives: dict[str, Any] = dict(objective) if isinstance(objective, Mapping) else {"": objective}
        self.projections = nn.ModuleDict()
        self._rates: dict[str, float | None] = {}
        for task, own in self.objectives.items():
            if (matches := getattr(own, "matches", None)) is not None:
                for name, rate in matches.rates.items():
                    key = f"{task}-{name}" if task else name  # neither contains a hyphen
                    self.projections[key], self._rates[key] = matches.projections[name], rate
        self.optimization = optimization or Optimization()
        self._settings: list[dict[str, Any]] = []  # configured settings of the optimizer's groups
        self.last_step: dict[str, float] = {}
        self._shares: dict[str, float] = {}
        self.nonfinite = STOP  # what happens at a step whose loss or gradient is not finite
        self.skipped_steps, self._skipped_in_row = 0, 0
        self.zero: Zero | None = None  # set by the strategy if DeepSpeed exchanges gradients and updates
        self.validated_at: int | None = None  # the step whose student was validated last

    @property
    def objective(self) -> Any:
        """The objective of the only task."""
        (objective,) = self.objectives.values()
        return objective

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the terms with a weight, of several tasks `<term>_<task>`."""
        return tuple(f"{term}{_end(task)}" for task, own in self.objectives.items() for term in own.active)

    def share_of(self, objective: Any, micro: Any, denominators: Mapping[str, Any], task: str) -> TermSums:
        """The share of one micro-batch in a step.

        Args:
            objective: weighted terms.
            micro: the micro-batch.
            denominators: of the terms, in the whole step.
            task: name of the task; "" for the only one.
        """
        raise NotImplementedError

    def denominators_of(self, objective: Any, batch: Any) -> Mapping[str, Any]:
        """What each term of a step is divided by.

        Args:
            objective: weighted terms.
            batch: the step.
        """
        return dict(objective.denominators(batch))

    def now(self, objective: Any) -> Any:
        """An objective with the weights of this step."""
        if not objective.schedules:
            return objective
        return objective.at(self.global_step, int(self.trainer.estimated_stepping_batches))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One optimizer step over all micro-batches of `batch`, which belong to one task."""
        task = getattr(batch, "task", "")
        objective = self.now(self.objectives[task])
        denominators = self.denominators_of(self.objectives[task], batch)

        def share_of(terms: Any, micro: Any) -> TermSums:
            return self.share_of(terms, micro, denominators, task)

        self._measure_shares(batch, objective, share_of, _end(task))
        self.optimizer_step_over(batch, lambda micro: share_of(objective, micro), _end(task))

    def train(self, mode: bool = True) -> StudentModule:
        """The student's mode; the teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def on_train_start(self) -> None:
        """Set the modes of student and teacher: `from_pretrained` gives evaluation mode, and Lightning's fit keeps it.

        A resumed run has the optimizer state of the checkpoint, and the settings of its own command line.
        """
        if self.global_step:
            self._set_rates()
        self.train()
        assert self.student.training
        assert self.teacher is None or not (
            self.teacher.training or any(p.requires_grad for p in self.teacher.parameters())
        )

    def _set_rates(self) -> None:
        """Replace the restored settings by the configured ones, at the current step."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        for group, settings in zip(optimizer.param_groups, self._settings, strict=True):  # type: ignore[union-attr]
            group.update(settings)
        if isinstance(schedule, torch.optim.lr_scheduler.LRScheduler):
            schedule.base_lrs = [settings["initial_lr"] for settings in self._settings]
            schedule.last_epoch = self.global_step - 1
            schedule.step()

    def _measure_shares(self, batch: _Step, objective: Any, share_of: Callable[[Any, Any], TermSums], end: str) -> None:
        """Every `shares_every` steps: how the student's gradient divides among the terms."""
        every = self.optimization.shares_every
        if not every or self.global_step % every:
            return
        buffers = [(buffer, buffer.clone()) for buffer in self.student.buffers()]
        shares = gradient_shares(
            [parameter for parameter in self.student.parameters() if parameter.requires_grad],
            batch.micro,
            {term: partial(share_of, objective.only(term)) for term in objective.active},
            seed=batch.seed + self.global_rank,
            world=self.trainer.world_size,
            scale=1.0 if (scaler := scaler_of(self.trainer.precision_plugin)) is None else scaler.get_scale(),
        )
        for buffer, before in buffers:  # measuring must not change the statistics of norms
            buffer.copy_(before)
        self._shares = {f"{GRADIENT_SHARE}{term}{end}": share for term, share in shares.items()}

    def optimizer_step_over(self, batch: _Step, share_of: Callable[[Any], TermSums], end: str = "") -> None:
        """One optimizer step over all micro-batches of `batch`.

        Args:
            batch: the step.
            share_of: the share of a micro-batch.
            end: appended to the names of the terms.
        """
        torch.manual_seed(batch.seed + self.global_rank)  # dropout is a function of the step: resuming is exact
        optimizer = self.optimizers()
        world = self.trainer.world_size
        totals: dict[str, Tensor] = {}
        count = self._passes(len(batch.micro))
        for i in range(count):
            with self._sync(last=i == count - 1):
                loss, terms = self.share_alone(share_of, batch.micro[min(i, len(batch.micro) - 1)])
                if i >= len(batch.micro):
                    loss, terms = loss * 0, {name: value * 0 for name, value in terms.items()}
                # Data parallelism averages gradients over ranks, but the shares add up.
                self.manual_backward(loss * world)
            for name, value in {"loss": loss.detach(), **{f"{term}{end}": own for term, own in terms.items()}}.items():
                totals[name] = totals[name] + value if name in totals else value
        self._step(optimizer, totals)

    def _passes(self, own: int) -> int:
        """Number of passes of the step: ranks with sharded weights gather them together, so all run the most."""
        if self.trainer.world_size == 1 or (self.device_mesh is None and self.zero is None):
            return own
        count = torch.tensor(own, device=self.device)
        torch.distributed.all_reduce(count, torch.distributed.ReduceOp.MAX)
        return int(count)

    def share_alone(self, share_of: Callable[[Any], TermSums], micro: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """A micro-batch's share without its backward pass; the `forward` of strategies that shard weights."""
        loss, terms = share_of(micro)
        return loss, terms

    def configure_model(self) -> None:
        """Shard the weights over ranks if the strategy does so."""
        if (mesh := self.device_mesh) is not None:
            blocks = blocks_of(self) if self.ranks_run_alike else ()
            shard(self, blocks, mesh["data_parallel"], keep=self.trainer.strategy.keep)  # type: ignore[attr-defined]

    def on_validation_end(self) -> None:
        """Record the validated step; release the weights that were gathered for it."""
        self.validated_at = self.trainer.global_step
        rest(self)

    def on_test_end(self) -> None:
        """Release the weights that were gathered for the test."""
        rest(self)

    def on_fit_end(self) -> None:
        """Take the module back from DeepSpeed; all ranks take part, so not after a failed fit."""
        if self.zero is not None:
            self.zero.close()
            self.zero = None

    def _step(self, optimizer: Any, totals: dict[str, Tensor]) -> None:
        trained = [*self.student.parameters(), *self.projections.parameters()]
        if (scaler := scaler_of(self.trainer.precision_plugin)) is not None:
            scaler.unscale_(optimizer.optimizer)
        norm = self.zero.step() if self.zero else nn.utils.clip_grad_norm_(trained, self.optimization.clip or math.inf)
        names = [*totals, "grad_norm"]
        shares = torch.stack(list(totals.values()))
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(shares)  # each rank has its share of the step's means
        # One synchronisation with the device.
        values = dict(zip(names, [*shares.tolist(), float(whole(norm))], strict=True))
        bad = [
            name
            for name in [*self.active, "loss", "grad_norm"]
            if name in values and not math.isfinite(values[name])  # a term without a weight in this step has no value
        ]
        self._skipped_in_row = self._skipped_in_row + 1 if bad else 0
        if bad:
            what = "gradient norm" if bad[0] == "grad_norm" else f"term {bad[0]}"
            error = f"step {self.global_step + 1}: {what} is {values[bad[0]]}"
            overflow = scaler is not None and bad == ["grad_norm"]  # the scaled gradient's: the scale is halved
            skips = overflow or self.nonfinite == SKIP
            if not skips or self._skipped_in_row > MOST_SKIPPED:
                row = f", as in the {MOST_SKIPPED} before" if skips else ""
                raise TrainingError(
                    f"{error}{row}; try a smaller optimizer.lr, a smaller trainer.gradient_clip_val, or "
                    "trainer.precision=32-true"
                )
            log.log(logging.INFO if overflow else logging.WARNING, "%s; the step is skipped", error)
            self.skipped_steps += 1
            optimizer.zero_grad(set_to_none=True)  # so that the optimizer's step changes nothing, but is counted
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule = self.lr_schedulers()
        if schedule is not None:
            schedule.step()  # type: ignore[union-attr]
        self.last_step = {f"train/loss_{name}": values[name] for name in totals if name != "loss"}
        self.last_step |= {
            "train/loss": values["loss"],
            "train/grad_norm": values["grad_norm"],
            "train/lr": rate,
            **self._shares,
            **({"train/skipped_steps": self.skipped_steps} if self.skipped_steps else {}),
        }
        # Lightning's log costs milliseconds, and writes at these steps only.
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log_dict(self.last_step, on_step=True, on_epoch=False)
            self.log("loss", values["loss"], prog_bar=True, logger=False)

    def _sync(self, last: bool) -> Any:
        """Exchange gradients with the last micro-batch only."""
        exchange(self, last)
        if self.zero:
            self.zero.exchange(last)
        parallel = self.trainer.strategy.model
        if not last and isinstance(parallel, nn.parallel.DistributedDataParallel):
            return parallel.no_sync()
        return torch.enable_grad()

    def configure_optimizers(self) -> Any:
        """The optimizer over the student's trainable parameters and the projections, with its schedule."""
        assert self.optimization.optimizer is not None
        optimizer = self.optimization.optimizer(self.student)
        for name, rate in self._rates.items():
            own = {} if rate is None else {"lr": rate}
            optimizer.add_param_group({"params": list(self.projections[name].parameters()), **own})
        schedule = None
        if self.optimization.schedule is not None:
            schedule = self.optimization.schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        self._settings = [
            {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        ]
        return optimizer if schedule is None else ([optimizer], [schedule])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remove the teacher; add terms and the last step."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith(TEACHER_PREFIX)}
        checkpoint["objective"] = sorted(self.active)
        checkpoint["skipped_steps"] = self.skipped_steps
        checkpoint["last_step"], checkpoint["validated_at"] = dict(self.last_step), self.validated_at

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the terms and the shapes of weights; add the teacher's weights for a strict load.

        Raises:
            CheckpointError: a checkpoint of other terms or of another model.
        """
        self.skipped_steps = int(checkpoint["skipped_steps"])
        self.last_step, self.validated_at = dict(checkpoint["last_step"]), checkpoint["validated_at"]
        self._shares = {name: v for name, v in self.last_step.items() if name.startswith(GRADIENT_SHARE)}
        terms = checkpoint.get("objective")
        if terms != sorted(self.active):
            raise CheckpointError(f"ckpt_path: the checkpoint is of terms {terms}, this run of {sorted(self.active)}")
        own, saved = self.state_dict(), checkpoint["state_dict"]
        for key, value in own.items():
            if key.startswith(TEACHER_PREFIX):
                saved[key] = value
            elif key not in saved or saved[key].shape != value.shape:
                found = tuple(saved[key].shape) if key in saved else "nothing"
                raise CheckpointError(
                    f"ckpt_path: a checkpoint of another model: {key} is {found} there and {tuple(value.shape)} here"
                )
        if unknown := sorted(set(saved) - set(own)):
            raise CheckpointError(f"ckpt_path: a checkpoint of another model: {unknown[0]} is not in this one")


def _end(task: str) -> str:
    return f"_{task}" if task else ""
