"""Steps with sampled completions."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from potstill.data.common.batching import IGNORED, derive_seed
from potstill.data.common.ragged import starts_of
from potstill.data.corpus.datamodule import StepBatch, pad
from potstill.data.corpus.masking import next_tokens
from potstill.models.backbone import backbone_of
from potstill.models.generation import Sampling, Tokens
from potstill.objectives.language import LanguageObjective
from potstill.training.generative import Generation, GenerativeDistillation, sample

GENERATION = Generation(Sampling(max_new_tokens=6), Tokens(50, frozenset({1}), 0), decode=str, on_policy=0.3)
LENGTHS, PROMPTS = np.array([9, 5, 12, 7]), np.array([4, 2, -1, 6])


def gpt2(seed):
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=24, initializer_range=0.3)
    ).eval()


def micro(rows):
    """Sequences 10, 11, ... of a corpus, whose completions begin behind their prompts."""
    ids = [np.random.default_rng(row).integers(2, 50, LENGTHS[row]) for row in rows]
    flat = torch.from_numpy(np.concatenate(ids))
    labels, lengths = next_tokens(flat, torch.from_numpy(np.cumsum(LENGTHS[rows]) - 1)), LENGTHS[rows]
    for start, prompt in zip(starts_of(lengths), PROMPTS[rows], strict=True):
        labels[start : start + max(prompt, 3) - 1] = IGNORED
    part = pad(flat, labels, lengths, starts_of(lengths), 0)
    part.sequences, part.prompts = rows + 10, PROMPTS[rows]
    return part


def sequences(parts):
    """Ids and labels of each sequence."""
    for part in parts:
        lengths = part.attention_mask.sum(1).tolist()
        labels = part.labels.split(lengths)
        yield from ((ids[:length], own) for ids, own, length in zip(part.input_ids, labels, lengths, strict=True))


def test_sampled_sequences_have_the_prompts_and_labels_of_their_completions():
    given = [micro(np.arange(4))]
    parts, lengths = sample(backbone_of(gpt2(0)), given, GENERATION, 7)
    assert len(lengths) == 3  # one has no prompt
    assert all(1 <= length <= 6 for length in lengths)
    for row, ((ids, labels), (before, old)) in enumerate(zip(sequences(parts), sequences(given), strict=True)):
        prompt = PROMPTS[row]
        if prompt < 0:
            assert torch.equal(ids, before)
            assert torch.equal(labels, old)
            continue
        assert torch.equal(ids[:prompt], before[:prompt])
        assert torch.equal(labels[prompt - 1 : -1], ids[prompt:])
        assert (labels[: prompt - 1] == IGNORED).all()
        assert labels[-1] == IGNORED
        assert 1 not in ids[prompt:-1].tolist()


def test_sequences_do_not_depend_on_the_cut_of_the_step_but_on_its_seed():
    student = backbone_of(gpt2(0))
    whole, _ = sample(student, [micro(np.arange(4))], GENERATION, 7)
    cut, _ = sample(student, [micro(np.array([2, 0])), micro(np.array([3, 1]))], GENERATION, 7)
    one, other = ([ids.tolist() for ids, _ in sequences(parts)] for parts in (whole, cut))
    assert [one[row] for row in (2, 0, 3, 1)] == other
    again, _ = sample(student, [micro(np.arange(4))], GENERATION, 8)
    assert [ids.tolist() for ids, _ in sequences(again)] != one


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_the_loss_of_sampled_completions_is_the_dense_one(beta):
    """JSD(beta) by its definition, from all logits, token by token."""
    student, teacher = gpt2(0), gpt2(1)
    parts, _ = sample(backbone_of(student), [micro(np.arange(4))], GENERATION, 7)
    objective = LanguageObjective("causal", {"ce": 1.0}, 1.5, "masked", divergence="jsd", beta=beta)
    labelled = int((parts[0].labels != IGNORED).sum())
    step = StepBatch(parts, len(parts[0].labels), labelled)
    found = objective(backbone_of(student), backbone_of(teacher), parts[0], objective.denominators(step))
    total, count = 0.0, 0
    for ids, labels in sequences(parts):
        with torch.no_grad():
            q, p = (model(ids[None]).logits[0].double().div(1.5).softmax(-1) for model in (student, teacher))
        m = beta * p + (1 - beta) * q
        rows = beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1)
        total += float(rows[labels != IGNORED].sum()) * 1.5**2
        count += int((labels != IGNORED).sum())
    assert count == labelled
    assert float(found.terms["ce"]) == pytest.approx(total / count, rel=1e-4)


def test_the_share_of_sampled_steps():
    student = gpt2(0)
    module = GenerativeDistillation(student, None, LanguageObjective("causal", {"clm": 1.0}), GENERATION)
    steps = [module.is_sampled(derive_seed(42, epoch, step)) for epoch in range(4) for step in range(500)]
    assert np.mean(steps) == pytest.approx(0.3, abs=0.03)
    assert steps[:500] != steps[500:1000]
