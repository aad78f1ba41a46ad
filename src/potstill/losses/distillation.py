"""Distillation of language models from hidden states: one function and one module for any training loop."""

from __future__ import annotations

from torch import Tensor, nn

from potstill.losses.soft_targets import IGNORED_LABEL
from potstill.losses.vocabulary import FORWARD, vocabulary_losses


def fused_linear_distillation_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    labels: Tensor | None = None,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    temperature: float = 1.0,
    divergence: str = FORWARD,
    beta: float = 0.5,
    soft_weight: float = 1.0,
    hard_weight: float = 0.0,
) -> Tensor:
    """Soft-target and hard-label loss of a language model without (rows, vocab) logits.

    `soft_weight * mean(T^2 * KL(teacher || student)) + hard_weight * mean(NLL(label))`, in nats; instead of
    the KL divergence also the reverse one or the generalised Jensen-Shannon divergence. The first mean is over
    all rows, at temperature T; the second over rows with a label, at temperature 1. The logits exist for a chunk of
    rows at a time. The student's three inputs get gradients, the teacher's none. Select the rows that count
    (no padding) before the call; `losses.vocabulary.vocabulary_losses` has weights and denominators by row.

    Args:
        student_hidden: (..., width), the input of the student's vocabulary projection (for models of transformers
            `backbone.head(last_hidden)`).
        student_weight: (vocab, width).
        teacher_hidden: (..., teacher width), the same rows.
        teacher_weight: (teacher vocab, teacher width). With vocabularies padded to different sizes the columns that
            both have are compared.
        labels: (...) token ids, -100 for rows without a label; required if `hard_weight` is not 0.
        student_bias: (vocab,) or None.
        teacher_bias: (teacher vocab,) or None.
        temperature: T, above 0.
        divergence: `forward_kl`, `reverse_kl` (KL(student || teacher)) or `jsd`.
        beta: The teacher's share of the mixture of `jsd`, above 0 and below 1.
        soft_weight: Weight of the soft targets.
        hard_weight: Weight of the labels.

    Returns:
        Scalar, float32 at least.

    Raises:
        ValueError: Both weights are 0, labels are missing, or the divergence is unknown.

    Source: Hinton et al. 2015 (arXiv:1503.02531), section 2; Agarwal et al. 2024 (GKD, arXiv:2306.13649), section 2,
    for the divergences; Hsu et al. 2024 (arXiv:2410.10989) for the fusion.

    Example:
        >>> import torch
        >>> from potstill.losses import fused_linear_distillation_loss
        >>> student, teacher = torch.randn(2, 5, 8, requires_grad=True), torch.randn(2, 5, 16)
        >>> weights = torch.randn(100, 8), torch.randn(100, 16)
        >>> loss = fused_linear_distillation_loss(student, weights[0], teacher, weights[1], temperature=2.0)
        >>> loss.backward()
        >>> p, q = (torch.log_softmax(h @ w.T / 2, -1) for h, w in zip((student, teacher), weights))
        >>> plain = 4 * torch.nn.functional.kl_div(p, q, reduction="none", log_target=True).sum(-1).mean()
        >>> torch.allclose(loss, plain, rtol=1e-4), student.grad.shape
        (True, torch.Size([2, 5, 8]))
    """
    labels_N = None if labels is None else labels.flatten()
    rows = student_hidden.shape[:-1].numel()
    labelled = 0 if labels_N is None else (labels_N != IGNORED_LABEL).sum()
    return vocabulary_losses(
        student_hidden.flatten(0, -2),
        student_weight,
        student_bias,
        labels_N=labels_N,
        teacher_NE=teacher_hidden.flatten(0, -2),
        teacher_weight_VE=teacher_weight,
        teacher_bias_V=teacher_bias,
        temperature=temperature,
        divergence=divergence,
        beta=beta,
        weights={"ce": soft_weight, "nll": hard_weight},
        denominators={"ce": rows, "nll": labelled},
    ).total


class FusedLinearDistillationLoss(nn.Module):
    """`fused_linear_distillation_loss` as a module without parameters.

    Args:
        temperature: T of the soft targets.
        soft_weight: Weight of the soft targets, `T^2 * KL(teacher || student)` in nats, mean over rows.
        hard_weight: Weight of the negative log-likelihood of the labels in nats, mean over rows with a label.
        divergence: As for `fused_linear_distillation_loss`.
        beta: As for `fused_linear_distillation_loss`.

    Raises:
        ValueError: In `forward`: both weights are 0, or labels are missing.

    Source: Hinton et al. 2015 (arXiv:1503.02531), section 2; Hsu et al. 2024 (arXiv:2410.10989) for the fusion.

    Example:
        >>> import torch
        >>> from potstill import FusedLinearDistillationLoss
        >>> loss = FusedLinearDistillationLoss(temperature=2.0, soft_weight=0.5, hard_weight=0.5)
        >>> student, teacher = torch.nn.Linear(8, 100), torch.nn.Linear(16, 100)
        >>> labels = torch.randint(100, (2, 5))
        >>> value = loss(
        ...     torch.randn(2, 5, 8), student.weight, torch.randn(2, 5, 16), teacher.weight, labels,
        ...     student_bias=student.bias, teacher_bias=teacher.bias,
        ... )
        >>> value.backward()
        >>> student.weight.grad.shape, teacher.weight.grad
        (torch.Size([100, 8]), None)
    """

    def __init__(
        self,
        temperature: float = 1.0,
        soft_weight: float = 1.0,
        hard_weight: float = 0.0,
        *,
        divergence: str = FORWARD,
        beta: float = 0.5,
    ) -> None:
        super().__init__()
        self.temperature, self.soft_weight, self.hard_weight = temperature, soft_weight, hard_weight
        self.divergence, self.beta = divergence, beta

    def forward(
        self,
        student_hidden: Tensor,
        student_weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        labels: Tensor | None = None,
        *,
        student_bias: Tensor | None = None,
        teacher_bias: Tensor | None = None,
    ) -> Tensor:
        """The loss; arguments as for `fused_linear_distillation_loss`."""
        inputs = student_hidden, student_weight, teacher_hidden, teacher_weight, labels
        return fused_linear_distillation_loss(
            *inputs,
            student_bias=student_bias,
            teacher_bias=teacher_bias,
            temperature=self.temperature,
            divergence=self.divergence,
            beta=self.beta,
            soft_weight=self.soft_weight,
            hard_weight=self.hard_weight,
        )

    def extra_repr(self) -> str:
        """The settings, for `print`."""
        names = ("temperature", "soft_weight", "hard_weight", "divergence", "beta")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
