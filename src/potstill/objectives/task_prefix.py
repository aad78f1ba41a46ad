"""The objective of distilling step-by-step: label and rationale, two tasks with different prefixes, or one target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from potstill.data.rationales.rows import EXPLAIN, PREDICT, SOFT
from potstill.losses.vocabulary import vocabulary_losses
from potstill.models.decoder import Decoder
from potstill.models.seq2seq import Part, Seq2Seq, minus_sums
from potstill.objectives.terms import TermSums

if TYPE_CHECKING:  # the data modules import lightning
    from potstill.data.rationales.datamodule import RationaleBatch

TOTAL = "total"


@dataclass(frozen=True)
class TaskPrefixObjective:
    """alpha * predict + (1 - alpha) * explain, each the mean negative log-likelihood of its target tokens, in nats.

    Source: Hsieh et al. 2023 (arXiv:2305.02301), section 3.2, equations 2 to 4, weighted as in the published code.

    With label probabilities of the LLM, predict is (1 - soft_weight) * hard + soft_weight * soft, see
    `soft_label_loss`; a row without them has the hard part only.

    Attributes:
        alpha: weight of prediction, from 0 to 1.
        explains: whether there is a second task; without it the loss is that of prediction, unweighted, whose target
            may be a label and its rationale (Wadhwa et al. 2024, arXiv:2406.14511).
        soft_weight: share of label probabilities in prediction, from 0 to 1.
        temperature: of label probabilities and of the student's.
    """

    alpha: float = 0.5
    explains: bool = True
    soft_weight: float = 0.0
    temperature: float = 1.0

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the tasks."""
        return {PREDICT: self.alpha, EXPLAIN: 1 - self.alpha} if self.explains else {PREDICT: 1.0}

    @property
    def active(self) -> tuple[str, ...]:
        """Tasks with a weight, and label probabilities if they have one."""
        tasks = tuple(name for name, weight in self.weights.items() if weight)
        return (*tasks, SOFT) if self.soft_weight and PREDICT in tasks else tasks

    def __call__(self, student: Seq2Seq | Decoder, batch: RationaleBatch, tokens: dict[str, int]) -> TermSums:
        """A micro-batch's share of the loss; the projection runs on the real target tokens of both tasks together.

        Args:
            student: an encoder-decoder or a decoder-only model.
            batch: with inputs and targets.
            tokens: denominators: target tokens of the whole step by task, over all micro-batches and ranks; for `soft`
                the rows with label probabilities.

        Returns:
            The share; a task without a weight is not computed, and its rows are not read.
        """
        shown = batch.only(self.active)
        soft = shown.soft if self.soft_weight and PREDICT in shown.targets else None
        parts: list[Part] = [(shown.rows_of(task), target) for task, target in shown.targets.items()]
        if soft is not None and shown.choices is not None and shown.choice_rows is not None:
            # Rows of prediction come first, so their indices are valid among all rows.
            parts.append((shown.choice_rows, shown.choices))
        states, tied = student.read(shown.input_ids, shown.attention_mask, parts)
        labels, coefficients = [], []
        for task, target_BT in shown.targets.items():
            labels.append(target_BT[target_BT.ge(0)])
            hard = 1 - self.soft_weight if task == PREDICT else 1.0
            weight = hard * self.weights[task] / max(tokens[task], 1)
            coefficients.append(torch.full_like(labels[-1], weight, dtype=torch.float32))
        losses = vocabulary_losses(
            torch.cat(states[: len(labels)]),
            *student.projection,
            labels_N=torch.cat(labels),
            weights={"nll": torch.cat(coefficients)},
            denominators={"nll": 1.0},
            tied=tied,
        )
        sums = [part.sum() for part in losses.rows["nll"].split([len(part) for part in labels])]
        terms = {task: total / max(tokens[task], 1) for task, total in zip(shown.targets, sums, strict=True)}
        total = losses.total
        if self.soft_weight and PREDICT in shown.targets:
            share = losses.total.new_zeros(())
            if soft is not None and shown.choices is not None and shown.choice_rows is not None:
                real_CT = shown.choices.ge(0)
                logits_NV = linear(states[-1], *student.projection).float()
                nll_N = cross_entropy(logits_NV, shown.choices[real_CT], reduction="none")
                summed = soft_label_loss(minus_sums(nll_N, real_CT), soft, shown.choice_rows, self.temperature)
                share = summed / max(tokens.get(SOFT, 0), 1)
            terms[SOFT] = share.detach()
            total = total + self.weights[PREDICT] * self.soft_weight * share
        terms[TOTAL] = total.detach()
        return TermSums(total, terms)


def soft_label_loss(scores: Tensor, probabilities: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """Cross entropy of a student's choices under an LLM's probabilities, times T², summed over rows, in nats.

    Both are taken at the temperature T, over the choices of each row: the student's is softmax(s / T) of the choices'
    log-likelihoods s, the LLM's is p^(1/T), scaled to 1 (Hinton et al. 2015, section 2, with p = softmax(z)).

    Args:
        scores: (candidates,) log-likelihoods of whole choices, nats.
        probabilities: (candidates,) of the LLM, with a sum of 1 per row.
        rows: (candidates,) indices of their rows.
        temperature: T, above 0.
    """
    # As logarithms, since p^(1/T) of a low T is below the smallest number for all choices of a row; log 0 gives 0.
    soft_C = _log_shares(probabilities.float().log() / temperature, rows).exp()
    return -(soft_C * _log_shares(scores.float() / temperature, rows)).sum() * temperature**2


def _log_shares(values_C: Tensor, rows: Tensor) -> Tensor:
    """The log-softmax of the values of each row, at least one of which is finite."""
    count = int(rows.max()) + 1
    # A sum of exponentials of differences from the largest.
    largest_R = values_C.new_full((count,), -torch.inf).scatter_reduce(0, rows, values_C.detach(), "amax")
    shifted_C = values_C - largest_R[rows]
    normaliser_R = shifted_C.new_zeros(count).index_add(0, rows, shifted_C.exp())
    return shifted_C - normaliser_R[rows].log()
