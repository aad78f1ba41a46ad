"""Two tasks of one student, told apart by a prefix: its label, and why (distilling step-by-step)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.data.rationales.datamodule import EXPLAIN, PREDICT, RationaleBatch
from potstill.losses.vocabulary import vocabulary_losses
from potstill.models.seq2seq import Seq2Seq

TOTAL = "total"


@dataclass
class PrefixShare:
    """A micro-batch's share of a step.

    Attributes:
        loss: scalar with gradient.
        terms: shares of the mean of each task, and of their weighted sum (`total`), detached.
    """

    loss: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class TaskPrefixObjective:
    """alpha * predict + (1 - alpha) * explain, each the mean negative log-likelihood of its target tokens, in nats.

    Source: Hsieh et al. 2023 (arXiv:2305.02301), section 3.2, equations 2 to 4, weighted as in the published code.

    Attributes:
        alpha: weight of prediction, from 0 to 1.
        explains: whether there is a second task; without it the loss is that of prediction, unweighted.
    """

    alpha: float = 0.5
    explains: bool = True

    @property
    def weights(self) -> dict[str, float]:
        """Of each task."""
        return {PREDICT: self.alpha, EXPLAIN: 1 - self.alpha} if self.explains else {PREDICT: 1.0}

    @property
    def active(self) -> tuple[str, ...]:
        """Tasks with a weight."""
        return tuple(name for name, weight in self.weights.items() if weight)

    def __call__(self, student: Seq2Seq, batch: RationaleBatch, tokens: dict[str, int]) -> PrefixShare:
        """A micro-batch's share of the loss; the inputs of both tasks go through the encoder together.

        The decoder runs a task at a time, so that short labels are not padded to the length of rationales; the
        projection runs on the real target tokens of both at once.

        Args:
            student: an encoder-decoder.
            batch: with inputs and targets.
            tokens: target tokens of the whole step by task, over all micro-batches and ranks: the denominators.

        Returns:
            The share; a task without a weight is not computed, and its rows are not encoded.
        """
        shown = batch.only(self.active)
        tied = student.tied() if torch.is_grad_enabled() else None
        targets = list(shown.targets.values())
        inputs, *starts = student.embed([shown.input_ids, *map(student.shifted, targets)], tied)
        states_BLD = student.encode(inputs, shown.attention_mask)
        rows, labels, coefficients = [], [], []
        for task, start in zip(shown.targets, starts, strict=True):
            own = shown.rows_of(task)
            target_BT = shown.targets[task]
            real_BT = target_BT.ge(0)
            decoded_BTD = student.decode(start, states_BLD[own], shown.attention_mask[own])
            rows.append(decoded_BTD[real_BT])
            labels.append(target_BT[real_BT])
            weight = self.weights[task] / max(tokens[task], 1)
            coefficients.append(torch.full_like(labels[-1], weight, dtype=torch.float32))
        losses = vocabulary_losses(
            torch.cat(rows),
            student.projection,
            None,
            labels_N=torch.cat(labels),
            weights={"nll": torch.cat(coefficients)},
            denominators={"nll": 1.0},
            tied=tied,
        )
        sums = [part.sum() for part in losses.rows["nll"].split([len(part) for part in labels])]
        terms = {task: total / max(tokens[task], 1) for task, total in zip(shown.targets, sums, strict=True)}
        terms[TOTAL] = losses.total.detach()
        return PrefixShare(losses.total, terms)
