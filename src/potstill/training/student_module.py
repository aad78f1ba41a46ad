"""One `training_step` is one optimizer step: what every module that trains a student does alike."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from lightning import LightningModule
from torch import Tensor, nn

from potstill.errors import CheckpointError, TrainingError
from potstill.training.gradient_shares import gradient_shares
from potstill.training.sharding import blocks_of, exchange, rest, shard, whole
from potstill.training.zero import Zero

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
MakeSchedule = Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler]

TEACHER_PREFIX = "teacher."
GRADIENT_SHARE = "train/gradient_share_"
STOP, SKIP = "stop", "skip"
MOST_SKIPPED = 20  # in a row; more is no accident

log = logging.getLogger(__name__)


class _Objective(Protocol):
    @property
    def active(self) -> tuple[str, ...]:
        """Terms with a weight."""


class _Step(Protocol):
    micro: list[Any]
    seed: int


class _Share(Protocol):
    @property
    def loss(self) -> Tensor:
        """With gradient: the micro-batch's share of the step's loss."""

    @property
    def terms(self) -> dict[str, Tensor]:
        """The micro-batch's share of each term's mean, detached."""


class StudentModule(LightningModule):
    """Trains a student by manual optimisation: micro-batches, clipping, the step, its log, guarded checkpoints.

    A step runs its micro-batches itself, so that every loss is divided by the positions of the whole step (Lightning's
    own accumulation would divide by each micro-batch's).

    Args:
        student: trained.
        teacher: frozen, in evaluation mode, absent from checkpoints; several as a list of modules; None where no term
            reads it.
        objective: its active terms name what a checkpoint is of; projections of its matches train with the student.
        optimizer: makes the optimizer of the student's parameters.
        schedule: makes the learning-rate schedule from the optimizer and the number of steps.
        clip: largest norm of the gradient, projections included; None for none.
        shares_every: optimizer steps between measurements of the terms' shares of the gradient; None for none.
    """

    ranks_run_alike = True  # the same modules in the same order, so that blocks can be gathered one at a time

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        objective: _Objective,
        *,
        optimizer: MakeOptimizer | None,
        schedule: MakeSchedule | None,
        clip: float | None,
        shares_every: int | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.student, self.teacher = student, teacher
        if teacher is not None:
            teacher.requires_grad_(False).eval()
        self.objective: Any = objective
        matches = getattr(objective, "matches", None)
        self.projections = nn.ModuleDict() if matches is None else matches.projections
        self._rates: dict[str, float | None] = {} if matches is None else matches.rates
        self.clip, self.shares_every = clip, shares_every
        self._make_optimizer, self._make_schedule = optimizer, schedule
        self._settings: list[dict[str, Any]] = []  # of the optimizer's groups, as configured
        self.last_step: dict[str, float] = {}
        self._shares: dict[str, float] = {}
        self.nonfinite = STOP  # what becomes of a step whose loss or gradient is no number
        self.skipped_steps, self._skipped_in_row = 0, 0
        self.zero: Zero | None = None  # set by the strategy where DeepSpeed exchanges gradients and updates
        self.validated_at: int | None = None  # the step whose student was validated last

    def train(self, mode: bool = True) -> StudentModule:
        """The student's mode; the teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def on_train_start(self) -> None:
        """`from_pretrained` gives evaluation mode, and Lightning's fit keeps what it finds: set both, and check.

        A resumed run has the state of the checkpoint's optimizer, and the settings of its own command line.
        """
        if self.global_step:
            self._set_rates()
        self.train()
        assert self.student.training
        assert self.teacher is None or not (
            self.teacher.training or any(p.requires_grad for p in self.teacher.parameters())
        )

    def _set_rates(self) -> None:
        """Put the configured settings in the place of those that were restored, at the step that is reached."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        for group, settings in zip(optimizer.param_groups, self._settings, strict=True):  # type: ignore[union-attr]
            group.update(settings)
        if isinstance(schedule, torch.optim.lr_scheduler.LRScheduler):
            schedule.base_lrs = [settings["initial_lr"] for settings in self._settings]
            schedule.last_epoch = self.global_step - 1
            schedule.step()

    def measure_shares(
        self, batch: _Step, objective: Any, share_of: Callable[[Any, Any], _Share], end: str = ""
    ) -> None:
        """Every so many steps: how the student's gradient divides among the terms.

        Args:
            batch: the step.
            objective: with the weights of this step.
            share_of: (objective, micro-batch) -> its share.
            end: what the terms' names end in.
        """
        if not self.shares_every or self.global_step % self.shares_every:
            return
        shares = gradient_shares(
            [parameter for parameter in self.student.parameters() if parameter.requires_grad],
            batch.micro,
            {term: partial(share_of, objective.only(term)) for term in objective.active},
            seed=batch.seed + self.global_rank,
            world=self.trainer.world_size,
        )
        self._shares = {f"{GRADIENT_SHARE}{term}{end}": share for term, share in shares.items()}

    def optimizer_step_over(self, batch: _Step, share_of: Callable[[Any], _Share]) -> None:
        """One optimizer step over all micro-batches of `batch`, each of which gives its share."""
        torch.manual_seed(
            batch.seed + self.global_rank
        )  # dropout is a function of the step: resuming is exact
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
            for name, value in {"loss": loss.detach(), **terms}.items():
                totals[name] = totals[name] + value if name in totals else value
        self._step(optimizer, totals)

    def _passes(self, own: int) -> int:
        """Micro-batches of the step: ranks that share weights gather them together, so all run as many as any."""
        if self.trainer.world_size == 1 or (self.device_mesh is None and self.zero is None):
            return own
        count = torch.tensor(own, device=self.device)
        torch.distributed.all_reduce(count, torch.distributed.ReduceOp.MAX)
        return int(count)

    def share_alone(self, share_of: Callable[[Any], _Share], micro: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """A micro-batch's share, without its backward pass: what stands for `forward` where weights are shared out."""
        share = share_of(micro)
        return share.loss, share.terms

    def configure_model(self) -> None:
        """Share the weights out over ranks where the strategy asks for it."""
        if (mesh := self.device_mesh) is not None:
            blocks = blocks_of(self) if self.ranks_run_alike else ()
            shard(self, blocks, mesh["data_parallel"], keep=self.trainer.strategy.keep)  # type: ignore[attr-defined]

    def on_validation_end(self) -> None:
        """Remember what was validated; weights that were gathered for it are old after the next step."""
        self.validated_at = self.trainer.global_step
        rest(self)

    def on_test_end(self) -> None:
        """Release the weights that were gathered for the test."""
        rest(self)

    def on_fit_end(self) -> None:
        """Take the module back from DeepSpeed; not where a fit fails, since all ranks take part."""
        if self.zero is not None:
            self.zero.close()
            self.zero = None

    def _step(self, optimizer: Any, totals: dict[str, Tensor]) -> None:
        trained = [*self.student.parameters(), *self.projections.parameters()]
        norm = self.zero.step() if self.zero else nn.utils.clip_grad_norm_(trained, self.clip or math.inf)
        names = [*totals, "grad_norm"]
        shares = torch.stack(list(totals.values()))
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(shares)  # each rank has its share of the step's means
        # One wait for the device.
        values = dict(zip(names, [*shares.tolist(), float(whole(norm))], strict=True))
        bad = [
            name
            for name in [*self.objective.active, "loss", "grad_norm"]
            if name in values
            and not math.isfinite(values[name])  # a term whose weight is 0 in this step has none
        ]
        self._skipped_in_row = self._skipped_in_row + 1 if bad else 0
        if bad:
            what = "gradient norm" if bad[0] == "grad_norm" else f"term {bad[0]}"
            fault = f"step {self.global_step + 1}: {what} is {values[bad[0]]}"
            if self.nonfinite != SKIP or self._skipped_in_row > MOST_SKIPPED:
                row = f", as in the {MOST_SKIPPED} before" if self.nonfinite == SKIP else ""
                raise TrainingError(
                    f"{fault}{row}; try a smaller optimizer.lr, a smaller trainer.gradient_clip_val, or "
                    "trainer.precision=32-true"
                )
            log.warning("%s; the step is left out", fault)
            self.skipped_steps += 1
            optimizer.zero_grad(set_to_none=True)  # the optimizer's step then changes nothing, and is counted
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
        """Ranks exchange gradients with the last micro-batch only."""
        exchange(self, last)
        if self.zero:
            self.zero.exchange(last)
        parallel = self.trainer.strategy.model
        if not last and isinstance(parallel, nn.parallel.DistributedDataParallel):
            return parallel.no_sync()
        return torch.enable_grad()

    def configure_optimizers(self) -> Any:
        """The optimizer over the student's trainable parameters and the projections, with its schedule."""
        assert self._make_optimizer is not None
        optimizer = self._make_optimizer(self.student)
        for name, rate in self._rates.items():
            own = {} if rate is None else {"lr": rate}
            optimizer.add_param_group({"params": list(self.projections[name].parameters()), **own})
        schedule = None
        if self._make_schedule is not None:
            schedule = self._make_schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        self._settings = [
            {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        return optimizer if schedule is None else ([optimizer], [schedule])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The teacher is not part of a checkpoint."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith(TEACHER_PREFIX)}
        checkpoint["objective"] = sorted(self.objective.active)
        checkpoint["skipped_steps"] = self.skipped_steps
        checkpoint["last_step"], checkpoint["validated_at"] = dict(self.last_step), self.validated_at

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another objective; put the teacher's weights where a strict load looks for them."""
        self.skipped_steps = int(checkpoint["skipped_steps"])
        self.last_step, self.validated_at = dict(checkpoint["last_step"]), checkpoint["validated_at"]
        self._shares = {name: v for name, v in self.last_step.items() if name.startswith(GRADIENT_SHARE)}
        terms = checkpoint.get("objective")
        if terms != sorted(self.objective.active):
            raise CheckpointError(
                f"ckpt_path: the checkpoint is of terms {terms}, this run of {sorted(self.objective.active)}"
            )
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
            raise CheckpointError(
                f"ckpt_path: a checkpoint of another model: {unknown[0]} is not in this one"
            )
