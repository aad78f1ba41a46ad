"""The textbook distillation step, to measure against: all logits of both models exist, and autograd does the rest.

It follows the published DistilBERT distiller (Sanh et al. 2019, `distiller.py`, `step`): full forward passes of both
models, the wanted positions picked with `masked_select`, then KL * T^2, cross entropy and cosine on them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel


def kd_step(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    temperature: float,
    weights: Mapping[str, float],
) -> dict[str, Tensor]:
    """Forward passes of both masked language models, the losses, and the backward pass; no optimizer.

    Args:
        teacher: in evaluation mode.
        student: gets the gradients.
        input_ids: (batch, length).
        attention_mask: (batch, length), 0 at padding.
        labels: (batch, length), -100 at positions without.
        temperature: T of `ce`.
        weights: of `ce`, `mlm` and `cos`; a term without a weight is left out.

    Returns:
        The unweighted losses, means over counted positions in nats (`cos`: 1 - cosine), and the weighted `total`.
    """
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "output_hidden_states": True}
    with torch.no_grad():
        teacher_output = teacher(**inputs)
    student_output = student(**inputs)

    losses = {}
    if weights.get("ce"):
        student_logits = pick(student_output.logits, attention_mask)
        teacher_logits = pick(teacher_output.logits, attention_mask)
        losses["ce"] = temperature**2 * functional.kl_div(
            functional.log_softmax(student_logits / temperature, dim=-1),
            functional.softmax(teacher_logits / temperature, dim=-1),
            reduction="batchmean",
        )
    if weights.get("mlm"):
        losses["mlm"] = functional.cross_entropy(student_output.logits.flatten(0, 1), labels.flatten())
    if weights.get("cos"):
        student_hidden = pick(student_output.hidden_states[-1], attention_mask)
        teacher_hidden = pick(teacher_output.hidden_states[-1], attention_mask)
        same = student_hidden.new_ones(student_hidden.shape[0])
        losses["cos"] = functional.cosine_embedding_loss(student_hidden, teacher_hidden, same)

    total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
    total.backward()
    return {name: loss.detach() for name, loss in {**losses, "total": total}.items()}


def pick(values: Tensor, attention_mask: Tensor) -> Tensor:
    """The rows (positions, width) of (batch, length, width) that are no padding."""
    mask = attention_mask.bool().unsqueeze(-1).expand_as(values)
    return values.masked_select(mask).view(-1, values.shape[-1])
