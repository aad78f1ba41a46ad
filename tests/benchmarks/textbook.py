"""The textbook distillation steps, to measure against: all logits of both models exist, and autograd does the rest.

They follow the published distillers (Sanh et al. 2019, `distiller.py`, `step`; Wu et al. 2022, `causal_distiller.py`):
full forward passes of both models, the wanted positions picked with `masked_select`, then KL * T^2, cross entropy and
cosine on them.
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
    losses = kd_losses(teacher, student, input_ids, attention_mask, labels, temperature, weights)
    return finish(losses, weights)


def diito_step(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    swap: tuple[Tensor, Tensor],
    blocks: tuple[int, int],
    temperature: float,
    weights: Mapping[str, float],
) -> dict[str, Tensor]:
    """Base, source and counterfactual pass of both masked language models, all to the logits.

    Args:
        teacher: in evaluation mode.
        student: gets the gradients, those of the source pass included.
        input_ids: (batch, length); the source of a sequence is another one of the batch, run a second time.
        attention_mask: (batch, length), 0 at padding.
        labels: (batch, length), -100 at positions without.
        swap: (swaps,) indices into the flattened positions of base and of source.
        blocks: of teacher and student, whose whole output is swapped.
        temperature: T of `ce` and `causal_ce`.
        weights: of `ce`, `mlm`, `cos` and `causal_ce`.

    Returns:
        As `kd_step`.
    """
    losses = kd_losses(teacher, student, input_ids, attention_mask, labels, temperature, weights)
    with torch.no_grad():
        teacher_logits = counterfactual_logits(teacher, input_ids, attention_mask, swap, blocks[0])
    student_logits = counterfactual_logits(student, input_ids, attention_mask, swap, blocks[1])
    student_rows, teacher_rows = (pick(logits, attention_mask) for logits in (student_logits, teacher_logits))
    losses["causal_ce"] = temperature**2 * functional.kl_div(
        functional.log_softmax(student_rows / temperature, dim=-1),
        functional.softmax(teacher_rows / temperature, dim=-1),
        reduction="batchmean",
    )
    return finish(losses, weights)


def counterfactual_logits(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, swap: tuple[Tensor, Tensor], block: int
) -> Tensor:
    """A full source pass that records the block's output, then a full base pass that overwrites it."""
    encoder = getattr(model.base_model, "encoder", None) or model.base_model.transformer
    module, recorded = encoder.layer[block], []

    def record(_module: object, _args: object, output: Tensor) -> None:
        recorded.append(output[0] if isinstance(output, tuple) else output)

    def overwrite(_module: object, _args: object, output: Tensor) -> Tensor | tuple:
        hidden = output[0] if isinstance(output, tuple) else output
        written = hidden.flatten(0, 1).clone()
        written[swap[0]] = recorded[0].flatten(0, 1)[swap[1]].to(written.dtype)
        written = written.view_as(hidden)
        return (written, *output[1:]) if isinstance(output, tuple) else written

    handle = module.register_forward_hook(record)
    model(input_ids=input_ids, attention_mask=attention_mask)
    handle.remove()
    handle = module.register_forward_hook(overwrite)
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
    handle.remove()
    return logits


def kd_losses(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    temperature: float,
    weights: Mapping[str, float],
) -> dict[str, Tensor]:
    """The unweighted losses of the base passes, with gradients."""
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
    return losses


def finish(losses: dict[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """The backward pass of the weighted total, and every loss detached."""
    total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
    total.backward()
    return {name: loss.detach() for name, loss in {**losses, "total": total}.items()}


def pick(values: Tensor, attention_mask: Tensor) -> Tensor:
    """The rows (positions, width) of (batch, length, width) that are no padding."""
    mask = attention_mask.bool().unsqueeze(-1).expand_as(values)
    return values.masked_select(mask).view(-1, values.shape[-1])
