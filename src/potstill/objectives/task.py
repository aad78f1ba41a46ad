"""The objective of task models: named, weighted terms on the rows of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from potstill.data.tasks.datamodule import TaskBatch, TaskStep
from potstill.data.tasks.labels import REGRESSION
from potstill.models.trunk import Trunk
from potstill.objectives.language import TermSums


@dataclass(frozen=True)
class TaskObjective:
    """The mean over the rows of the whole step of term `label`.

    `label` is the cross entropy of the labels in nats, or the squared error of the scores.

    Attributes:
        kind: `classification` or `regression`.
    """

    kind: str

    @property
    def active(self) -> tuple[str, ...]:
        """Terms with a weight."""
        return ("label",)

    def denominators(self, step: TaskStep) -> dict[str, float]:
        """How many rows of the whole step each term is a mean over."""
        return {"label": float(max(step.examples, 1))}

    def __call__(self, student: Trunk, micro: TaskBatch, denominators: Mapping[str, float]) -> TermSums:
        """The share of one micro-batch.

        Args:
            student: trained; gradients flow.
            micro: rows and labels.
            denominators: from `denominators`, of the whole step.
        """
        assert micro.labels is not None
        loss = label_loss(self.kind, logits_of(student, micro), micro.labels) / denominators["label"]
        return TermSums(loss, {"label": loss.detach()})


def logits_of(trunk: Trunk, micro: TaskBatch) -> Tensor:
    """Logits of the labels `(batch, labels)`, or scores `(batch, 1)`, in float32."""
    output = trunk.encode(micro.input_ids, micro.attention_mask, token_type_ids_BL=micro.token_type_ids)
    return trunk.classify(output.last_hidden_BLD, micro.attention_mask).float()


def label_loss(kind: str, logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Summed over the rows: cross entropy in nats, or the squared error of a regression.

    Args:
        kind: `classification` or `regression`.
        logits_NC: `(rows, labels)`, or `(rows, 1)` scores.
        labels_N: `(rows,)` numbers of labels, or scores.
    """
    if kind == REGRESSION:
        return mse_loss(logits_NC[:, 0], labels_N.to(logits_NC.dtype), reduction="sum")
    return cross_entropy(logits_NC, labels_N.long(), reduction="sum")
