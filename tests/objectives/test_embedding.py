from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertModel

from potstill.data.corpus.sentences import SentenceBatch, SentenceStep
from potstill.losses import cosine_distance, similarity_distance, vector_mse
from potstill.models.sentence import SentenceEncoder, add_dense
from potstill.models.sentence_folders import SentenceSettings
from potstill.objectives.embedding import EmbeddingObjective, Pair


@pytest.fixture
def encoders():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    made = [BertModel(BertConfig(vocab_size=50, **shape), add_pooling_layer=False).eval() for _ in range(2)]
    return [SentenceEncoder(model, SentenceSettings("mean", True)) for model in made]


def batch(rows, start=0):
    ids = torch.arange(5, 5 + rows * 4).view(rows, 4) + start
    mask = torch.ones_like(ids)
    return SentenceBatch(ids, mask, torch.arange(ids.numel()), ids.flatten())


@pytest.mark.parametrize("widths", [(), (8, 4)])
def test_terms_are_their_definitions(widths, encoders):
    student, teacher = encoders
    weights = {"mse": 0.5, "cos": 2.0, "similarity": 3.0}
    turn = torch.linalg.qr(torch.randn(16, 16)).Q[:12]
    add_dense(student.backbone.model, torch.randn(12, 16))
    objective = EmbeddingObjective("sentences", weights, widths=widths, normalized=True, components=turn)
    micro = batch(3)
    step = SentenceStep([micro], tokens=12, labelled=0, sequences=3)
    found = objective(student, teacher, micro, objective.denominators(step))
    ours = student(micro.input_ids, micro.attention_mask)
    norm = torch.nn.functional.normalize
    theirs = norm(teacher(micro.input_ids, micro.attention_mask) @ turn.T, dim=-1)
    cut = [(norm(ours[:, :n], dim=-1), norm(theirs[:, :n], dim=-1)) for n in (12, *widths)]
    expected = {
        "mse": torch.stack([vector_mse(*pair) for pair in cut]).mean(),
        "cos": torch.stack([cosine_distance(*pair) for pair in cut]).mean(),
        "similarity": torch.stack([similarity_distance(own, theirs) for own, _ in cut]).mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found.terms[name], value.detach())
    torch.testing.assert_close(found.loss, sum(weights[name] * value for name, value in expected.items()))


def test_a_step_is_the_same_however_it_is_cut(encoders):
    student, teacher = encoders
    objective = EmbeddingObjective("sentences", {"mse": 1.0, "similarity": 4.0}, normalized=True)
    parts = [batch(2), batch(3, start=11), batch(1, start=29)]
    whole = SentenceBatch(*(torch.cat([getattr(p, name) for p in parts]) for name in ("input_ids", "attention_mask")),
                          torch.arange(24), torch.arange(24))  # fmt: skip
    step = SentenceStep([whole], tokens=24, labelled=0, sequences=6)
    counts, parameters = objective.denominators(step), [*student.backbone.model.parameters()]
    one = objective(student, teacher, whole, counts)
    expected = torch.autograd.grad(one.loss, parameters)
    with torch.no_grad():
        vectors = Pair(*(encoder(whole.input_ids, whole.attention_mask) for encoder in encoders))
    start, shares = 0, []
    for part in parts:
        shares.append(objective(student, teacher, replace(part, start=start), counts, vectors))
        start += len(part.input_ids)
    torch.testing.assert_close(sum(share.loss for share in shares), one.loss)
    for name, value in one.terms.items():
        torch.testing.assert_close(sum(share.terms[name] for share in shares), value)
    found = torch.autograd.grad(sum(share.loss for share in shares), parameters)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
