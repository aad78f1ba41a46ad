"""Losses of language models and their gradients, against torch alone, under options at the edges of what is valid."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from potstill.data.corpus.datamodule import MicroBatch, StepBatch
from potstill.interchange.intervene import Swap
from potstill.interchange.mappings import read_mappings
from potstill.models.backbone import backbone_of
from potstill.objectives.interchange import Interchange
from potstill.objectives.language import LanguageObjective

HARD = {"masked": "mlm", "causal": "clm"}
BLOCKS = SimpleNamespace(teacher=1, student=0)  # whose output is swapped


def model_of(kind, vocabulary, depth, seed):
    torch.manual_seed(seed)
    if kind == "masked":
        config = BertConfig(
            vocab_size=vocabulary, hidden_size=16, num_hidden_layers=depth, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=16, initializer_range=0.4,
        )  # fmt: skip
        return BertForMaskedLM(config).eval()
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=16, n_layer=depth, n_head=2, n_positions=16, initializer_range=0.4,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def micro_of(lengths, kind, seed):
    draw = torch.Generator().manual_seed(seed)
    mask = torch.stack([(torch.arange(max(lengths)) < length).long() for length in lengths])
    ids = torch.randint(5, 60, mask.shape, generator=draw) * mask
    positions = mask.flatten().nonzero().squeeze(1)
    labels = ids.flatten().roll(-1)[positions]
    if kind == "masked":
        labels[torch.rand(labels.shape, generator=draw) > 0.3] = -100
    else:
        labels[torch.tensor(lengths).cumsum(0) - 1] = -100
    swap = Swap(torch.tensor([1, max(lengths) + 2]), torch.tensor([max(lengths) + 3, 0]))
    return MicroBatch(ids, mask, positions, labels, swap=swap, reached=torch.ones_like(positions, dtype=torch.bool))


def plain_run(model, micro, block, swap):
    """Last hidden states and logits of all positions; with `swap` of the counterfactual run."""
    blocks = model.bert.encoder.layer if isinstance(model, BertForMaskedLM) else model.transformer.h
    inputs = {"attention_mask": micro.attention_mask, "output_hidden_states": True}
    if not swap:
        found = model(micro.input_ids, **inputs)
        return found.hidden_states[-1].flatten(0, 1), found.logits.flatten(0, 1)
    kept = []

    def keep(_, __, output):
        kept.append(output[0] if isinstance(output, tuple) else output)

    def put(_, __, output):
        state = output[0] if isinstance(output, tuple) else output
        changed = state.flatten(0, 1).clone()
        changed[micro.swap.base] = kept[0].flatten(0, 1)[micro.swap.source]
        changed = changed.view_as(state)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with blocks[block].register_forward_hook(keep):
        model(micro.input_ids, **inputs)
    with blocks[block].register_forward_hook(put):
        found = model(micro.input_ids, **inputs)
    return found.hidden_states[-1].flatten(0, 1), found.logits.flatten(0, 1)


def plain_loss(kind, student, teacher, parts, weights, temperature):
    """By the definitions, over the positions of the whole step at once."""
    sums = dict.fromkeys(weights, 0.0)
    for micro in parts:
        for start, swap in (("", False), ("causal_", True)):
            own_ND, own_NV = (out[micro.positions] for out in plain_run(student, micro, BLOCKS.student, swap))
            with torch.no_grad():
                their_ND, their_NV = (out[micro.positions] for out in plain_run(teacher, micro, BLOCKS.teacher, swap))
            width = min(own_NV.shape[1], their_NV.shape[1])
            target_NV = (their_NV[:, :width] / temperature).softmax(-1)
            log_NV = (own_NV[:, :width] / temperature).log_softmax(-1)
            divergence = functional.kl_div(log_NV, target_NV, reduction="sum") * temperature**2
            distance = (1 - functional.cosine_similarity(own_ND, their_ND)).sum()
            found = {f"{start}ce": divergence, f"{start}cos": distance}
            if not swap:
                found[HARD[kind]] = functional.cross_entropy(own_NV, micro.labels, reduction="sum")
            for name in sums.keys() & found.keys():
                sums[name] = sums[name] + found[name]
    tokens = sum(len(micro.positions) for micro in parts)
    labelled = sum(int((micro.labels != -100).sum()) for micro in parts)
    return sum(weight * sums[name] / (labelled if name == HARD[kind] else tokens) for name, weight in weights.items())


SOFT = {"ce": 1.0}
DIITO = {"ce": 0.25, "cos": 0.25, "causal_ce": 2.0, "causal_cos": 0.5}


@pytest.mark.parametrize("widths", [(60, 60), (60, 72), (72, 60)], ids=["equal", "teacher-wider", "student-wider"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
@pytest.mark.parametrize(
    ("terms", "hard"), [({}, 1.0), (SOFT, 0.0), (SOFT, 2.0), (DIITO, 0.0), (DIITO, 0.25)],
    ids=["hard", "kd", "kd-hard", "diito", "diito-hard"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_loss_and_gradient_of_unequal_micro_batches(kind, terms, hard, temperature, widths):
    student, teacher = model_of(kind, widths[0], 2, 1), model_of(kind, widths[1], 3, 2)
    parts = [micro_of(lengths, kind, seed) for seed, lengths in enumerate(([9, 6, 7], [5, 4]))]
    weights = {name: weight for name, weight in (*terms.items(), (HARD[kind], hard)) if weight}
    ours, theirs = backbone_of(student), backbone_of(teacher)
    exchange = None
    if "causal_ce" in terms:
        mapping = [{"teacher": {"layers": BLOCKS.teacher}, "student": {"layers": BLOCKS.student}}]
        exchange = Interchange(read_mappings(mapping, theirs, ours))
    objective = LanguageObjective(kind, terms | {HARD[kind]: hard}, temperature, interchange=exchange)
    tokens = sum(len(micro.positions) for micro in parts)
    labelled = sum(int((micro.labels != -100).sum()) for micro in parts)
    step = StepBatch(parts, tokens, labelled, reached=tokens, reached_labelled=labelled)
    denominators, loss = objective.denominators(step), 0.0
    for micro in parts:
        share = objective(ours, theirs if terms else None, micro, denominators)
        share.loss.backward()
        loss += share.loss.item()
    found = {name: weight.grad for name, weight in student.named_parameters()}
    student.zero_grad()
    expected = plain_loss(kind, student, teacher, parts, weights, temperature)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    for name, weight in student.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(
                found[name], weight.grad, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
            )
