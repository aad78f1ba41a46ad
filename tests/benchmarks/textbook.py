"""The textbook distillation steps, to measure against: all logits of both models exist, and autograd does the rest.

They follow the published distillers (Sanh et al. 2019, `distiller.py`, `step`; Wu et al. 2022, `causal_distiller.py`):
full forward passes of both models, the wanted positions picked with `masked_select`, then KL * T^2, cross entropy and
cosine on them.
"""

import math
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


def gkd_step(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    beta: float,
) -> Tensor:
    """Forward passes of both causal language models, JSD(beta) over the labelled tokens, and the backward pass.

    Args:
        teacher: in evaluation mode.
        student: gets the gradients.
        input_ids: (batch, length).
        attention_mask: (batch, length), 0 at padding.
        labels: (batch, length) of the tokens themselves, -100 at those that are not learned.
        beta: share of the teacher in the mixture.

    Returns:
        The mean over labelled tokens, nats.
    """
    with torch.no_grad():
        theirs = teacher(input_ids=input_ids, attention_mask=attention_mask).logits
    ours = student(input_ids=input_ids, attention_mask=attention_mask).logits
    wanted = labels[:, 1:] != -100
    p, q = (functional.log_softmax(logits[:, :-1][wanted].float(), dim=-1) for logits in (theirs, ours))
    mixture = torch.logsumexp(torch.stack([p + math.log(beta), q + math.log(1 - beta)]), dim=0)
    parts = [functional.kl_div(mixture, own, reduction="batchmean", log_target=True) for own in (p, q)]
    loss = beta * parts[0] + (1 - beta) * parts[1]
    loss.backward()
    return loss


@torch.no_grad()
def sampled_completions(
    student: PreTrainedModel, prompts: Tensor, mask: Tensor, most: int, ends: list[int], pad: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Completions at temperature 1 by transformers: ids, mask and labels of prompts with completions.

    Args:
        student: in training mode, which it gets back.
        prompts: (batch, length), padded on the left.
        mask: (batch, length), 0 at padding.
        most: tokens of a completion.
        ends: tokens that end one.
        pad: padding id.
    """
    student.eval()
    ids = student.generate(
        prompts, attention_mask=mask, max_new_tokens=most, do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
        eos_token_id=ends, pad_token_id=pad,
    )  # fmt: skip
    student.train()
    written = ids[:, prompts.shape[1] :]
    ended = torch.isin(written, torch.tensor(ends)).cumsum(1)
    real = (ended - torch.isin(written, torch.tensor(ends)).long()) == 0  # up to the first end, with it
    labels = torch.cat([torch.full_like(prompts, -100), written.masked_fill(~real, -100)], dim=1)
    return ids, torch.cat([mask, real.long()], dim=1), labels
