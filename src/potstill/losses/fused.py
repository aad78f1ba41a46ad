"""The chunk loop of losses that start from hidden states, fused with the output projection.

The rows are processed in chunks. The logits of a chunk are computed, overwritten by their own gradient and multiplied
into the gradients of hidden states, weight and bias; then the next chunk reuses the memory. So the gradients exist
when the forward pass ends; the backward pass scales them.

A *chunk* (tens of MB) is as tall as efficient matrix products need. Within it, *blocks* of a few rows fit the caches
of the processor, so the element-wise passes of a softmax hardly touch main memory.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from potstill.losses.soft_targets import IGNORED_LABEL, at_least_float32, nonzero
from potstill.losses.tied import TiedGradient

CHUNK_BYTES = 32 * 2**20
BLOCK_BYTES_PER_CORE = 2**20
SLICE_BYTES = 16 * 2**20

Coefficients = Mapping[str, Tensor | float]
# (logits, rows, coefficients of these rows, whether gradients are needed) -> each term's unweighted values by row.
# The logits (rows, vocab) are the student's, which become the gradient of the total, and the teacher's if `Task` has
# one, which may be overwritten; in float32 at least.
SoftTerms = Callable[[Sequence[Tensor], slice, Coefficients, bool], dict[str, Tensor]]


class VocabularyLosses(NamedTuple):
    """Result of a fused loss.

    Attributes:
        total: scalar with gradient, the sum over terms of weight * sum / denominator.
        rows: for each term with a weight its detached, unweighted values by row, in float32 at least. On a CPU `nll`
            alone has the labelled rows only; otherwise it is 0 for a row without a label.
    """

    total: Tensor
    rows: dict[str, Tensor]

    @property
    def sums(self) -> dict[str, Tensor]:
        """Sums over rows."""
        return {term: values.sum() for term, values in self.rows.items()}


class Head(NamedTuple):
    """An output projection (vocab, width) and its input (rows, width) in the dtype of their product."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


class _Gradients(NamedTuple):
    """Gradients of the total by the parts of a head; None where no gradient is needed."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True)
class Task:
    """Terms and settings shared by all chunks.

    Attributes:
        coefficients: weight / denominator of each term, (rows, 1) or a number (`coefficients_of`).
        labels_N: (rows,) token ids of the term `nll`, -100 for rows without; None without that term.
        soft: the other terms, which compare with a teacher; None if there are none.
        soft_width: columns of the vocabulary that `soft` compares.
        teacher: the teacher's projection, if `soft` reads its logits.
        chunk_rows: rows whose logits exist at a time; None: as many as fit `CHUNK_BYTES` for each projection.
    """

    coefficients: Coefficients
    labels_N: Tensor | None
    soft: SoftTerms | None = None
    soft_width: int = 0
    teacher: Head | None = None
    chunk_rows: int | None = None

    def heads(self, student: Head) -> tuple[Head, ...]:
        """The projections that run: the student's, and the teacher's if there is one."""
        return (student,) if self.teacher is None else (student, self.teacher)


def fused_losses(
    student_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, task: Task, tied: TiedGradient | None = None
) -> VocabularyLosses:
    """The terms of a task, with gradients to the three parts of the student's projection that require one.

    Args:
        student_ND: (rows, width), input of the student's output projection.
        weight_VD: (vocab, width).
        bias_V: (vocab,) or None.
        task: the losses.
        tied: receives the gradient of the weight if the embeddings share it (`losses.tied`).

    Source: for the gradient in the forward pass, Hsu et al. 2024 (Liger Kernel, arXiv:2410.10989).
    """
    parts = (student_ND, weight_VD, bias_V)
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in parts):
        total, losses_KN = _FusedLosses.apply(*parts, task, tied)  # type: ignore[no-untyped-call]
    else:
        total, losses_KN, _, _ = _run(*parts, task, (False, False, False))
    return VocabularyLosses(total, dict(zip(task.coefficients, losses_KN.unbind(), strict=True)))


class _FusedLosses(torch.autograd.Function):
    """The gradients are computed in the forward pass; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any, student_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, task: Task, tied: TiedGradient | None
    ) -> tuple[Tensor, Tensor]:
        """Computes the losses and keeps the gradients."""
        parts = (student_ND, weight_VD, bias_V)
        total, losses_KN, gradients, ctx.unit = _run(*parts, task, ctx.needs_input_grad[:3])
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if part is None else part.dtype for part in parts]
        ctx.tied = tied
        ctx.mark_non_differentiable(losses_KN)
        return total, losses_KN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _grad_losses_KN: Tensor) -> tuple[Tensor | None, ...]:
        """Scales the kept gradients by that of the total."""
        # On the CPU reading the scalar is free, and a factor of 1 saves a copy of the weight's size.
        factor = grad_total * ctx.unit
        unscaled = grad_total.device.type == "cpu" and factor.item() == 1
        hidden, weight, bias = (
            g if g is None else _scaled(g, None if unscaled else factor).to(dtype)
            for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        if ctx.tied is not None and weight is not None:
            ctx.tied.give(weight)
            weight = None
        return hidden, weight, bias, None, None


def _scaled(gradient: Tensor, factor: Tensor | None) -> Tensor:
    """A gradient times a factor; float16 in float32, as loss scales and divisors of many rows are beyond its range."""
    if factor is None:
        return gradient
    gradient = gradient.float() if gradient.dtype == torch.float16 else gradient
    return gradient * factor.to(gradient.dtype)


@torch.no_grad()
def _run(
    student_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, task: Task, needs: tuple[bool, ...]
) -> tuple[Tensor, Tensor, _Gradients, Tensor | float]:
    """The total, the unweighted losses (terms, rows), the needed gradients of the total, and the factor they lack."""
    student = head_of(student_ND, weight_VD, bias_V)
    n_rows, dtype, device = student_ND.shape[0], student.weight.dtype, student_ND.device
    wide = torch.promote_types(dtype, torch.float32)
    # float16 cannot hold gradients divided by the rows of a large batch: those are divided in the backward pass.
    late = dtype == torch.float16
    unit = sum(c.max() if isinstance(c, Tensor) else c for c in task.coefficients.values()) if late else 1.0
    scaled = replace(task, coefficients={term: c / unit for term, c in task.coefficients.items()})
    gradients = _Gradients(
        torch.empty_like(student.hidden) if needs[0] else None,
        # Summed over chunks, so in half precision it would lose what the accumulator of one product keeps.
        torch.zeros_like(student.weight, dtype=wide) if needs[1] else None,
        torch.zeros(weight_VD.shape[0], dtype=wide, device=device) if needs[2] else None,
    )
    losses_KN = torch.zeros(len(task.coefficients), n_rows, dtype=wide, device=device)
    step = _chunk_rows(n_rows, student, task)
    # The dtypes are those of the heads.
    with torch.autocast(device.type, enabled=False):
        for start in range(0, n_rows, step):
            rows = slice(start, min(start + step, n_rows))
            _run_chunk(student, scaled, rows, losses_KN, gradients)
    # A coefficient is a number or (rows, 1).
    weighted = [
        (losses_N * c.squeeze(-1)).sum() if isinstance(c, Tensor) else losses_N.sum() * c
        for losses_N, c in zip(losses_KN, task.coefficients.values(), strict=True)
    ]
    total = torch.stack(weighted).sum()
    kept = (
        g if g is None or part is None or late else g.to(part.dtype)
        for g, part in zip(gradients, (student_ND, weight_VD, bias_V), strict=True)
    )
    return total, losses_KN, _Gradients(*kept), unit


def _run_chunk(student: Head, task: Task, rows: slice, losses_KN: Tensor, gradients: _Gradients) -> None:
    """Writes the losses of some rows to `losses_KN` and adds their gradients."""
    heads = task.heads(student)
    logits = [torch.mm(head.hidden[rows], head.weight.t()) for head in heads]
    wants_gradient = any(g is not None for g in gradients)
    chunk_RV, step = logits[0], _block_rows(logits[0])
    for start in range(0, chunk_RV.shape[0], step):
        # Biases are added here, in cache: as part of the product they would cost a pass over memory.
        block = [_with_bias(r[start : start + step], head.bias) for head, r in zip(heads, logits, strict=True)]
        block_RV = block[0]
        in_batch = slice(rows.start + start, rows.start + start + block_RV.shape[0])
        losses = _run_block(block, task, in_batch, wants_gradient)
        for k, term in enumerate(task.coefficients):
            losses_KN[k, in_batch] = losses[term]
        if gradients.bias is not None:
            gradients.bias.add_(block_RV.sum(dim=0))
        if wants_gradient and block_RV.dtype != chunk_RV.dtype:
            chunk_RV[start : start + step] = block_RV
    del logits  # those of the teacher
    if gradients.hidden is not None:
        gradients.hidden[rows] = chunk_RV @ student.weight
    if gradients.weight is not None:
        for columns in _column_slices(gradients.weight):
            gradients.weight[columns].add_(chunk_RV[:, columns].t() @ student.hidden[rows])


def _run_block(logits: Sequence[Tensor], task: Task, rows: slice, wants_gradient: bool) -> dict[str, Tensor]:
    """Each term's unweighted values by row; the student's logits, the first, become the gradient of the total."""
    coefficients = {term: rows_of(c, rows) for term, c in task.coefficients.items()}
    student_RV, losses = logits[0], {}
    if task.labels_N is not None:
        losses["nll"], rows_H, hard_HV = _hard_part(student_RV, task.labels_N[rows], coefficients["nll"])
    if task.soft is not None:
        compared = [logits_RV[:, : task.soft_width] for logits_RV in logits]
        losses |= task.soft(compared, rows, coefficients, wants_gradient)
    if wants_gradient:
        student_RV[:, task.soft_width :].zero_()
        if task.labels_N is not None:
            student_RV.index_add_(0, rows_H, hard_HV)
    return losses


def _column_slices(weight_VD: Tensor) -> list[slice]:
    """The vocabulary in parts whose products are small beside a chunk; on an accelerator the whole of it."""
    n, width = weight_VD.shape
    step = n if weight_VD.device.type != "cpu" else max(1, SLICE_BYTES // (4 * width))
    return [slice(start, start + step) for start in range(0, n, step)]


def rows_of(coefficient: Tensor | float, rows: slice | Tensor) -> Tensor | float:
    """The coefficients of some rows, where each row has its own."""
    by_row = isinstance(coefficient, Tensor) and coefficient.dim() > 0
    return coefficient[rows] if by_row else coefficient  # type: ignore[index]


def _hard_part(logits_RV: Tensor, labels_R: Tensor, coefficient: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """`nll` by row (rows,), the indices of the labelled rows (labelled,) and their gradient (labelled, vocab).

    On an accelerator these are all rows, because a selection would synchronize; rows without a label give 0.
    """
    counted_R = labels_R != IGNORED_LABEL
    if labels_R.device.type == "cpu":
        rows_H = counted_R.nonzero().squeeze(1)
    else:
        rows_H = torch.arange(labels_R.shape[0], device=labels_R.device)
    exp_HV = logits_RV.index_select(0, rows_H)
    target_H1 = labels_R[rows_H].clamp_min(0).unsqueeze(1)
    counted_H1 = counted_R[rows_H].unsqueeze(1).to(exp_HV.dtype)
    target_logit_H1 = exp_HV.gather(1, target_H1)
    log_H1, sum_H1 = exponentiate(exp_HV, 1.0)
    loss_H = ((log_H1 - target_logit_H1) * counted_H1).squeeze(1)
    scale_H1 = rows_of(coefficient, rows_H) * counted_H1
    exp_HV.mul_(scale_H1 / sum_H1).scatter_add_(1, target_H1, -scale_H1)
    return loss_H.new_zeros(labels_R.shape[0]).index_copy_(0, rows_H, loss_H), rows_H, exp_HV


def exponentiate(logits_RV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Turns z into exp((z - max z) / T) in place; returns log sum exp(z / T) and the sum of the new values."""
    peak_R1 = logits_RV.amax(dim=1, keepdim=True)
    logits_RV.sub_(peak_R1)
    if temperature != 1:
        logits_RV.div_(temperature)
    sum_R1 = logits_RV.exp_().sum(dim=1, keepdim=True)
    return sum_R1.log() + peak_R1 / temperature, sum_R1


def head_of(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Head:
    """A detached projection in the dtype its product runs in: autocast's, or that of the weight."""
    device, dtype = weight_VD.device.type, weight_VD.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    bias_V = None if bias_V is None else at_least_float32(bias_V.detach())
    return Head(hidden_ND.detach().to(dtype), weight_VD.detach().to(dtype), bias_V)


def _with_bias(logits_RV: Tensor, bias_V: Tensor | None) -> Tensor:
    """Logits in float32 at least with the bias added; in place where they have that dtype already."""
    logits_RV = at_least_float32(logits_RV)
    return logits_RV if bias_V is None else logits_RV.add_(bias_V)


def _chunk_rows(n_rows: int, student: Head, task: Task) -> int:
    """Rows of a chunk: no more than fit, and such that the last chunk is hardly shorter than the others."""
    row_bytes = max(head.weight.shape[0] * head.weight.element_size() for head in task.heads(student))
    most = task.chunk_rows or max(1, CHUNK_BYTES // row_bytes)
    return max(1, math.ceil(n_rows / max(1, math.ceil(n_rows / most))))


def _block_rows(logits_RV: Tensor) -> int:
    """Rows of a block: what the caches of the cores at work hold; on an accelerator the whole chunk."""
    if logits_RV.device.type != "cpu":
        return logits_RV.shape[0]
    return max(1, BLOCK_BYTES_PER_CORE * torch.get_num_threads() // (4 * logits_RV.shape[1]))


def coefficients_of(
    weights: Mapping[str, Tensor | float], denominators: Mapping[str, Tensor | float], missing: Mapping[str, str | None]
) -> dict[str, Tensor | float]:
    """Weight / denominator of the terms to compute.

    Args:
        weights: by term, a number or (rows,); a term that is absent or 0 is not computed.
        denominators: by term; 0 counts as 1.
        missing: for each known term, the name of an input that it lacks, or None.

    Returns:
        By term, in the order of `missing`, a number or (rows, 1).

    Raises:
        ValueError: an unknown term, a term without its inputs or its denominator, or no term at all.
    """
    active = [term for term in missing if given(weights.get(term))]
    if not active or not set(weights) <= set(missing):
        raise ValueError(f"a loss over the vocabulary needs weights of {list(missing)}, not {dict(weights)}")
    for term in active:
        if missing[term]:
            raise ValueError(f"{term} lacks {missing[term]}")
        if term not in denominators:
            raise ValueError(f"{term} has no denominator")
    coefficients = {term: weights[term] / nonzero(denominators[term]) for term in active}
    return {term: c.unsqueeze(-1) if isinstance(c, Tensor) and c.dim() else c for term, c in coefficients.items()}


def given(weight: Tensor | float | None) -> bool:
    """Whether a term is computed; weights by row always count."""
    return isinstance(weight, Tensor) or bool(weight)
